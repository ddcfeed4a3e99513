"""What type checkers make of a user's code: the types that come out, and the mistakes they report."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SAMPLES = Path(__file__).parent / "typing"


def _said_by(tool: str, *arguments: str) -> str:
    command = [sys.executable, "-m", tool, *arguments]
    environ = {**os.environ, "PYTHONPATH": str(ROOT), "MYPYPATH": str(ROOT)}
    return subprocess.run(
        command, capture_output=True, text=True, cwd=ROOT, env=environ, timeout=110, check=False
    ).stdout


def _by_mypy(path: Path, tmp_path: Path) -> dict[int, str]:
    """The lines that mypy complains about, and how."""
    settings = tmp_path / "mypy.ini"
    settings.write_text(
        "[mypy]\nstrict = True\nshow_error_codes = True\n[mypy-contextwrap.*]\nfollow_imports = silent\n"
    )
    said = _said_by("mypy", f"--config-file={settings}", f"--cache-dir={tmp_path}", str(path))
    assert "Found" in said or "Success" in said, said
    found = re.findall(rf"{re.escape(path.name)}:(\d+): error: (.*)", said)
    return {int(line): text for line, text in found}


def _by_pyright(path: Path, tmp_path: Path) -> dict[int, str]:
    """The same of pyright, in its strict mode."""
    # It looks at nothing outside the folder of its settings.
    shutil.copy(path, tmp_path)
    settings = tmp_path / "pyrightconfig.json"
    settings.write_text(
        json.dumps(
            {
                "include": [path.name],
                "extraPaths": [str(ROOT)],
                "typeCheckingMode": "strict",
                "reportUnusedCoroutine": False,
            }
        )
    )
    said = json.loads(_said_by("pyright", "--outputjson", "--pythonpath", sys.executable, "--project", str(settings)))
    errors = [one for one in said["generalDiagnostics"] if one["severity"] == "error"]
    assert said["summary"]["filesAnalyzed"] == 1
    return {one["range"]["start"]["line"] + 1: one["message"] for one in errors}


CHECKERS = {"mypy": _by_mypy, "pyright": _by_pyright}


@pytest.mark.parametrize("checker", CHECKERS)
def test_the_types_of_what_is_tracked_are_kept(checker, tmp_path):
    """Functions, methods, classes and callable objects have the types they had, in the checker's strict mode."""
    assert CHECKERS[checker](SAMPLES / "passes.py", tmp_path) == {}


@pytest.mark.parametrize("checker", CHECKERS)
def test_mistakes_are_reported(checker, tmp_path):
    """Each line marked as an error is reported, and no other."""
    path = SAMPLES / "fails.py"
    marked = {number for number, line in enumerate(path.read_text().splitlines(), 1) if line.endswith("# error")}
    found = CHECKERS[checker](path, tmp_path)
    assert set(found) == marked, found
