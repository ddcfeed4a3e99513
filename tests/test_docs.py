"""The README is held to what it says: its code runs, and nothing a user can set or call is left out."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest

from contextwrap.cli import cli
from contextwrap.settings import TABLE

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PROSE = "\n".join(path.read_text() for path in [ROOT / "README.md", *sorted(ROOT.glob("docs/**/*.md"))])

_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)
_SNIPPET = re.compile(r"(?P<mark><!-- no-run -->\s*)?^```python\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL)


def _snippets() -> list[tuple[bool, str]]:
    return [(match["mark"] is None, match["code"]) for match in _SNIPPET.finditer(README)]


def _commands(group: click.Group, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found: list[tuple[str, ...]] = []
    for name, command in group.commands.items():
        here = (*path, name)
        found.extend(_commands(command, here) if isinstance(command, click.Group) else [here])
    return found


def test_the_readme_code_runs(tmp_path: Path) -> None:
    """All Python in the README runs from top to bottom in one new process with a home of its own."""
    runnable = [code for runs, code in _snippets() if runs]
    assert runnable
    script = tmp_path / "readme.py"
    script.write_text("\n".join(runnable))
    environ = os.environ | {"CONTEXTWRAP_HOME": str(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, check=False, cwd=tmp_path, env=environ, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr


def test_the_readme_code_that_does_not_run_is_python_all_the_same() -> None:
    """A snippet marked no-run still compiles."""
    for _, code in _snippets():
        assert compile(code, "README.md", "exec")


@pytest.mark.parametrize("path", _commands(cli), ids=" ".join)
def test_every_command_is_documented(path: tuple[str, ...]) -> None:
    """Whoever reads the README knows each command."""
    assert f"contextwrap {' '.join(path)}" in PROSE


@pytest.mark.parametrize("setting", TABLE, ids=lambda setting: setting.name)
def test_every_setting_is_documented(setting) -> None:
    """Each row of the table is there under its name and the variable that sets it."""
    assert f"`{setting.name}`" in PROSE
    assert f"`{setting.variables[0]}`" in PROSE


def test_every_documented_variable_exists() -> None:
    """A variable the documentation names is one that is read."""
    known = {variable for setting in TABLE for variable in setting.variables}
    assert set(re.findall(r"\bCONTEXTWRAP_[A-Z_]+\b", PROSE)) <= known


@pytest.mark.parametrize("path", sorted(Path(__file__).parent.rglob("test_*.py")), ids=lambda path: path.stem)
def test_every_test_says_its_rule(path: Path) -> None:
    """A test is documentation: one sentence in its docstring states what holds."""
    functions = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, _FUNCTIONS)]
    tests = [node for node in functions if node.name.startswith("test_")]
    assert tests
    assert [node.name for node in tests if not ast.get_docstring(node)] == []


@pytest.mark.parametrize("path", _commands(cli), ids=" ".join)
def test_every_command_and_option_has_help(path: tuple[str, ...]) -> None:
    """`--help` says of each command and option what it is for."""
    command: click.Command = cli
    for name in path:
        assert isinstance(command, click.Group)
        command = command.commands[name]
    assert command.help
    options = [parameter for parameter in command.params if isinstance(parameter, click.Option)]
    assert [option.name for option in options if not option.help] == []
