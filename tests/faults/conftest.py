"""What the fault tests share: `contextwrap serve` in a process of its own, and what it has in the end."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from serving import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

sys.path.insert(0, str(Path(__file__).parent))

from drains import created_key, until


@dataclass(frozen=True, slots=True)
class Real:
    """A running server, and a key that may do everything there."""

    url: str
    key: str

    @property
    def environ(self) -> dict[str, str]:
        """The environment of an app that sends there."""
        return {"CONTEXTWRAP_ENDPOINT": self.url, "CONTEXT_API_TOKEN": self.key}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """A contextwrap server; each test has threads of its own."""
    home = tmp_path_factory.mktemp("faults") / "home"
    key = created_key(home)
    with serving(home) as running:
        yield Real(running.url, key)


@pytest.fixture(autouse=True)
def _shielded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a host: what fails is counted, and the tests look at the counts."""
    monkeypatch.setenv("CONTEXTWRAP_RAISE", "0")


class Stored:
    """What a server has, by thread: each text as often as it is there."""

    _markers = count()

    def __init__(self, server: Real) -> None:
        self._http = httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.key}"}, timeout=30)

    def settle(self) -> None:
        """Until the store has all that was acknowledged: what comes last is there."""
        marker = f"marker-{next(self._markers)}"
        call = {"conversation": {"id": marker, "messages": [{"role": "user", "message": "here"}]}}
        assert self._http.post("/api/v1/log/conversation/thread", json=call).status_code == 201
        until(lambda: self.thread(marker) == ["here"])

    def thread(self, thread_id: str) -> list[str]:
        """The texts of a thread, in order; nothing when there is none."""
        answer = self._http.get(f"/api/v1/conversations/{thread_id}")
        return [] if answer.status_code == 404 else [one["message"] for one in answer.json()["messages"]]

    def threads(self, prefix: str) -> dict[str, list[str]]:
        """The texts of each thread whose id begins like this; each has to be its own user's, and only theirs."""
        found: dict[str, list[str]] = {}
        for one in self._listed():
            if one["id"].startswith(prefix):
                assert one["metadata"]["user_id"] == one["id"]
                assert one["id"] not in found
                found[one["id"]] = [message["message"] for message in one["messages"]]
        return found

    def close(self) -> None:
        self._http.close()

    def _listed(self) -> Iterator[dict[str, Any]]:
        page = 1
        while page:
            said = self._http.get("/api/v1/conversations", params={"page": page, "per_page": 100}).json()
            yield from said["conversations"]
            page = said["pagination"]["next_page"]


@pytest.fixture
def stored(server: Real) -> Iterator[Stored]:
    """Reads what the server has."""
    found = Stored(server)
    yield found
    found.close()
