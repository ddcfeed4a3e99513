"""What the fault tests share: a real server in a process of its own, and what it has in the end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from serving import Served, served

if TYPE_CHECKING:
    from collections.abc import Iterator

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A contextwrap server; each test has threads of its own."""
    with served(tmp_path_factory.mktemp("faults") / "home") as running:
        yield running


@pytest.fixture(autouse=True)
def _shielded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a host: what fails is counted, and the tests look at the counts."""
    monkeypatch.setenv("CONTEXTWRAP_RAISE", "0")


class Stored:
    """What the server has, by thread: each text as often as it is there."""

    def __init__(self, server: Served) -> None:
        self._server = server
        self._http = httpx.Client(
            base_url=server.url, headers={"Authorization": f"Bearer {server.key('read')}"}, timeout=30
        )

    def thread(self, thread_id: str) -> list[str]:
        """The texts of a thread, in order; nothing when there is none."""
        answer = self._http.get(f"/api/v1/conversations/{thread_id}")
        return [] if answer.status_code == 404 else [one["message"] for one in answer.json()["messages"]]

    def users(self, prefix: str) -> dict[str, set[str]]:
        """The users of each thread whose id begins like this."""
        self._server.settle()
        found: dict[str, set[str]] = {}
        page = 1
        while page:
            said = self._http.get("/api/v1/conversations", params={"page": page, "per_page": 100}).json()
            for one in said["conversations"]:
                if one["id"].startswith(prefix):
                    found.setdefault(one["id"], set()).add(one["metadata"]["user_id"])
            page = said["pagination"]["next_page"]
        return found

    def close(self) -> None:
        self._http.close()


@pytest.fixture
def stored(server: Served) -> Iterator[Stored]:
    """Reads what the server has."""
    found = Stored(server)
    yield found
    found.close()
