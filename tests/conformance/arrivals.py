"""What an app's records look like to the server they are sent to, and the ways an app can be asked."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from parcels import lines

import contextwrap
from contextwrap.model import Log, Request, Route
from contextwrap.outbox import Outbox, outbox_files

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from fakeserver import FakeServer

    from contextwrap.client import ContextWrap
    from contextwrap.model import Conversation, Message

TOKEN = "secret"

SYNC = ("invoke", "stream", "batch", "batch_as_completed", "transform")
ASYNC = ("ainvoke", "astream", "abatch", "abatch_as_completed", "atransform", "astream_events")
WAYS = (*SYNC, *ASYNC)


def ask(runnable: Any, value: Any, way: str = "invoke", config: Any = None, **options: Any) -> None:
    """Give `value` to the Runnable in one of `WAYS`, and read all that comes back."""
    match way:
        case "invoke":
            runnable.invoke(value, config, **options)
        case "stream":
            list(runnable.stream(value, config, **options))
        case "batch":
            runnable.batch([value], config, **options)
        case "batch_as_completed":
            list(runnable.batch_as_completed([value], config, **options))
        case "transform":
            list(runnable.transform(iter([value]), config, **options))
        case _:
            asyncio.run(_aask(runnable, value, way, config, **options))


async def _aask(runnable: Any, value: Any, way: str, config: Any, **options: Any) -> None:
    match way:
        case "ainvoke":
            await runnable.ainvoke(value, config, **options)
        case "abatch":
            await runnable.abatch([value], config, **options)
        case "abatch_as_completed":
            _ = [item async for item in runnable.abatch_as_completed([value], config, **options)]
        case "atransform":
            _ = [item async for item in runnable.atransform(_one(value), config, **options)]
        case "astream":
            _ = [item async for item in runnable.astream(value, config, **options)]
        case "astream_events":
            _ = [item async for item in runnable.astream_events(value, config, version="v2", **options)]


async def _one(value: Any) -> AsyncIterator[Any]:
    yield value


class Arrivals:
    """Reads what has arrived at `server`, once everything that waits has been delivered."""

    def __init__(self, server: FakeServer, client: ContextWrap) -> None:
        self.server = server
        self.client = client

    def logs(self) -> list[Log]:
        """Every log call, in order of arrival; nothing waits and nothing was refused."""
        left = contextwrap.flush(20)
        assert (left.pending, left.dead) == (0, 0)
        return [asked.log for asked in self.server.asked]

    def conversations(self) -> list[Conversation]:
        """One for each recorded turn."""
        return [log.conversation for log in self.logs() if log.conversation is not None]

    def only(self) -> Conversation:
        """The one that there is."""
        (conversation,) = self.conversations()
        return conversation

    def turns(self) -> list[list[tuple[str, str]]]:
        """The (role, text) lines of each turn."""
        return [lines(conversation) for conversation in self.conversations()]

    def threads(self) -> dict[str, list[tuple[str, str]]]:
        """All lines of each thread, under its id."""
        found: dict[str, list[tuple[str, str]]] = {}
        for conversation in self.conversations():
            found.setdefault(str(conversation.id), []).extend(lines(conversation))
        return found

    def by_user(self) -> dict[str | None, list[list[tuple[str, str]]]]:
        """The turns of each user."""
        found: dict[str | None, list[list[tuple[str, str]]]] = {}
        for conversation in self.conversations():
            found.setdefault(conversation.user_id, []).append(lines(conversation))
        return found

    def ratings(self) -> list[tuple[str, list[tuple[int, str | None]]]]:
        """What was rated, and how."""
        return [
            (log.rated, [(mark.rating, mark.feedback) for mark in log.marks])
            for log in self.logs()
            if log.route is Route.RATING
        ]


def facts(message: Message) -> dict[str, str]:
    """A message's metadata without the one that no test can know."""
    metadata = dict(message.metadata)
    metadata.pop("latency_ms", None)
    return metadata


def configured(server: FakeServer, home: Path, **settings: Any) -> Arrivals:
    """Send everything to `server` from now on."""
    return Arrivals(server, contextwrap.configure(endpoint=server.url, token=TOKEN, home=home, **settings))


def waiting(home: Path, arrived: Arrivals) -> list[list[tuple[str, str]]]:
    """The turns that were not delivered, as they lie on disk once their process is done with them."""
    parcels = []
    for path in outbox_files(home / "outbox"):
        outbox = Outbox.adopt(path)
        assert outbox is not None
        outbox.hurry(arrived.client.settings.address)
        parcels += outbox.lease(arrived.client.settings.address, seconds=0)
        outbox.close()
    logs = [Log.from_request(Request(method=one.method, target=one.target, body=one.body)) for one in parcels]
    return [lines(log.conversation) for log in logs if log.conversation is not None]
