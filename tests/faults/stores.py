"""A server that runs in a process of its own, and what it has stored in the end."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from typing import TYPE_CHECKING, Any

import httpx
from drains import until

if TYPE_CHECKING:
    from collections.abc import Iterator


@dataclass(frozen=True, slots=True)
class Real:
    """A running server, and a key that may do everything there."""

    url: str
    key: str

    @property
    def environ(self) -> dict[str, str]:
        """The environment of an app that sends there."""
        return {"CONTEXTWRAP_ENDPOINT": self.url, "CONTEXT_API_TOKEN": self.key}


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

    def ratings(self, thread_id: str) -> list[int]:
        """The rating of each message of a thread, in order."""
        return [one["rating"] for one in self._http.get(f"/api/v1/conversations/{thread_id}").json()["messages"]]

    def close(self) -> None:
        self._http.close()

    def _listed(self) -> Iterator[dict[str, Any]]:
        page = 1
        while page:
            said = self._http.get("/api/v1/conversations", params={"page": page, "per_page": 100}).json()
            yield from said["conversations"]
            page = said["pagination"]["next_page"]
