"""What `import contextwrap` offers, and what it costs."""

from __future__ import annotations

import inspect
import subprocess
import sys

import pytest

import contextwrap

NAMES = [
    "ConfigurationError",
    "ContextCallbackHandler",
    "ContextWrap",
    "ContextwrapError",
    "__version__",
    "aflush",
    "configure",
    "flush",
    "forget",
    "in_session",
    "instrument",
    "rate",
    "rate_by_token",
    "rating_token",
    "session",
    "shutdown",
    "track_context",
    "uninstrument",
    "wrap",
]
HEAVY = ("wrapt", "tenacity", "langchain_core", "getcontext", "fastapi", "duckdb", "click", "rich", "platformdirs")


def test_the_public_names_are_these() -> None:
    """Adding a public name is a decision, taken here."""
    assert list(contextwrap.__all__) == NAMES
    assert sorted(contextwrap.__all__) == list(contextwrap.__all__)


def test_dir_shows_the_public_names() -> None:
    """Names that load late are seen by completion all the same."""
    assert set(NAMES) <= set(dir(contextwrap))


@pytest.mark.parametrize("name", [name for name in NAMES if name != "__version__"])
def test_every_public_name_is_there_and_described(name: str) -> None:
    """A public name has a docstring of its own."""
    assert inspect.getdoc(getattr(contextwrap, name))


@pytest.mark.parametrize("room", ["testing", "web"])
def test_the_public_modules_are_there(room: str) -> None:
    """What is imported by module is found as an attribute, too."""
    assert getattr(contextwrap, room).__name__ == f"contextwrap.{room}"


def test_an_unknown_name_is_an_attribute_error() -> None:
    """Late loading does not change what a typing mistake gets."""
    with pytest.raises(AttributeError, match="no attribute 'sesion'"):
        _ = contextwrap.sesion  # type: ignore[attr-defined]


def test_importing_loads_nothing_heavy() -> None:
    """An app pays for LangChain, the API's client and the server when it uses them, not at import."""
    code = f"import sys, contextwrap; print(sorted(set({HEAVY!r}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True)
    assert done.stdout.strip() == "[]"


def test_importing_takes_under_forty_milliseconds() -> None:
    """The import budget, as the best of five so that a busy machine does not matter."""
    code = "import time; t = time.perf_counter(); import contextwrap; print(time.perf_counter() - t)"
    seconds = [
        float(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
        for _ in range(5)
    ]
    assert min(seconds) < 0.040
