"""What every test gets: a home of its own and an environment that says nothing about contextwrap."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from contextwrap import ContextCallbackHandler
    from contextwrap.client import ContextWrap

# How long a thing takes is the benchmarks' question.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")
_OURS = ("CONTEXTWRAP_", "CONTEXT_", "GETCONTEXT_")


@pytest.fixture(autouse=True)
def isolated_environment(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HOME is an empty folder, and no setting comes from whoever runs the tests. Returns that folder."""
    for variable in list(os.environ):
        if variable.startswith(_OURS) or variable.startswith("XDG_"):
            monkeypatch.delenv(variable)
    home = tmp_path_factory.mktemp("user")
    monkeypatch.setenv("HOME", str(home))
    # What a host would never see fail has to fail here; the tests of host safety take this back.
    monkeypatch.setenv("CONTEXTWRAP_RAISE", "1")
    return home


@pytest.fixture(autouse=True)
def nothing_shared(isolated_environment: Path) -> Iterator[None]:
    """No test finds the default client or the open runs of another; who uses neither imports neither."""
    yield
    client, recorder = sys.modules.get("contextwrap.client"), sys.modules.get("contextwrap.recorder")
    if client is not None:
        client.reset_defaults()
    if recorder is not None:
        recorder.Recorder.runs = recorder.Runs()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A contextwrap home that does not exist yet."""
    return tmp_path / "home"


@pytest.fixture
def recording(home: Path) -> Iterator[ContextWrap]:
    """A default client on `home`; when the test is over the shared handler holds nothing."""
    from contextwrap.client import configure
    from contextwrap.recorder import Recorder

    yield configure(home=home)
    assert (Recorder.runs.roots, Recorder.runs.of) == ({}, {})


@pytest.fixture
def handler(recording: ContextWrap) -> ContextCallbackHandler:
    """The shared handler, recording to `home`."""
    from contextwrap import ContextCallbackHandler

    return ContextCallbackHandler()
