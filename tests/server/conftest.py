"""What the server's tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest
from browser import launched, visiting
from serving import Served, served
from talks import HOSTILE_TALKS, MADE_UP, ODD_TALKS, TOOLS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    """A server on an empty home."""
    with served(tmp_path / "home") as running:
        yield running


def _log(server, *conversations):
    """Log them as an app does, and wait until they can be read."""
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.key('ingest')}"}) as api:
        for conversation in conversations:
            answer = api.post("/api/v1/log/conversation/thread", json={"conversation": conversation})
            assert answer.status_code == 201, answer.text
    server.settle()


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A server with the sixty conversations, and no other."""
    with served(tmp_path_factory.mktemp("filled") / "home") as server:
        _log(server, *MADE_UP)
        yield server


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A server with everything that is not everyday: tools, hostile texts, strange ids."""
    with served(tmp_path_factory.mktemp("odd") / "home") as server:
        _log(server, TOOLS, *HOSTILE_TALKS, *ODD_TALKS)
        yield server


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A server that nothing was sent to."""
    with served(tmp_path_factory.mktemp("empty") / "home") as server:
        yield server


@pytest.fixture(scope="module")
def browser():
    """One Chromium for all."""
    with launched() as browser:
        yield browser


@pytest.fixture(scope="module")
def http(filled):
    """A signed-in reader without a browser, who follows no redirect."""
    with httpx.Client(base_url=filled.url, headers={"Accept": "text/html"}) as client:
        assert client.get(filled.sign_in_url()).status_code == 303
        yield client


@pytest.fixture
def tab(browser, filled):
    """A signed-in tab on the sixty conversations; nothing may have gone wrong in it at the end."""
    with visiting(browser, filled.sign_in_url()) as visit:
        yield visit.page
        assert visit.wrong == []


@pytest.fixture
def odd_tab(browser, odd):
    """A signed-in tab on what is not everyday; nothing may have gone wrong in it at the end."""
    with visiting(browser, odd.sign_in_url()) as visit:
        yield visit.page
        assert visit.wrong == []
