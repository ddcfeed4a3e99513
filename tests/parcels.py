"""What an SDK has put on disk, read back the way a server reads it."""

from __future__ import annotations

from contextlib import closing
from typing import TYPE_CHECKING

from contextwrap.model import Log, Request, Route
from contextwrap.outbox import LOCAL, Outbox, outbox_files

if TYPE_CHECKING:
    from pathlib import Path

    from contextwrap.model import Conversation, Message


def sent(home: Path, address: str = LOCAL) -> list[Log]:
    """The calls that wait for `address` in all outboxes of `home`, in the order they were made."""
    parcels = []
    for path in outbox_files(home / "outbox"):
        with closing(Outbox(path)) as outbox:
            parcels += [parcel for parcel in outbox.parcels() if parcel.address == address]
    parcels.sort(key=lambda parcel: parcel.created_at)
    return [
        Log.from_request(Request(method=parcel.method, target=parcel.target, body=parcel.body)) for parcel in parcels
    ]


def conversations(home: Path) -> list[Conversation]:
    """The conversations among them, one for each turn."""
    return [log.conversation for log in sent(home) if log.conversation is not None]


def ratings(home: Path) -> list[Log]:
    """The ratings among them."""
    return [log for log in sent(home) if log.route is Route.RATING]


def lines(conversation: Conversation) -> list[tuple[str, str]]:
    """Its messages as (role, text); a row that is no message says its type instead of its role."""
    return [(_who(message), message.message or message.observation or "") for message in conversation.messages]


def threads(home: Path) -> dict[str, list[tuple[str, str]]]:
    """All lines of each thread."""
    found: dict[str, list[tuple[str, str]]] = {}
    for conversation in conversations(home):
        found.setdefault(str(conversation.id), []).extend(lines(conversation))
    return found


def _who(message: Message) -> str:
    return message.role if message.type == "message" else message.type
