"""A real HTTP server on loopback, and the default client on it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from arrivals import Arrivals, configured
from fakeserver import FakeServer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from contextwrap import ContextCallbackHandler


@pytest.fixture
def server() -> Iterator[FakeServer]:
    """It takes everything."""
    with FakeServer() as running:
        yield running


@pytest.fixture
def arrived(server: FakeServer, home: Path) -> Iterator[Arrivals]:
    """What has arrived there; when the test is over nothing was lost and no run is remembered."""
    from contextwrap.recorder import Recorder

    arrived = configured(server, home)
    yield arrived
    assert arrived.client.stats().lost == {}
    assert (Recorder.runs.roots, Recorder.runs.of) == ({}, {})


@pytest.fixture
def handler(arrived: Arrivals) -> ContextCallbackHandler:
    """The shared handler."""
    from contextwrap import ContextCallbackHandler

    return ContextCallbackHandler()
