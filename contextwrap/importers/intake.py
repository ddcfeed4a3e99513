"""Files of conversations into a home: queued in an outbox like live records, then carried into the store.

Whoever has the home's store open carries them: a running server, or nobody, and then it is done here. What is
queued survives kill -9; a second import of the same file adds nothing, whatever became of the first.
"""

from __future__ import annotations

import sys
import time
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import IO, TYPE_CHECKING, Final, Protocol

from contextwrap.errors import ContextwrapError, HomeInUseError, ImportFileError
from contextwrap.importers.conversations import identified, read_conversations, timed
from contextwrap.model import Log, Route
from contextwrap.outbox import LOCAL, Outbox, Parcel
from contextwrap.server.house import open_house

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from contextwrap.model import Conversation

_CHUNK: Final = 500
_POLL_SECONDS: Final = 0.1


class Progress(Protocol):
    """Who is told how far it is; `total` None is not known yet."""

    def __call__(self, step: str, done: int, total: int | None) -> None:
        """`step` is "Reading" (in bytes, in conversations when there is no total) or "Storing" (in conversations)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Imported:
    """What an import did. `new_messages` and `new_conversations` are None when a running server stored them."""

    conversations: int
    new_conversations: int | None = None
    new_messages: int | None = None
    bad: tuple[ImportFileError, ...] = ()


@dataclass(slots=True)
class _Reading:
    """How far the reading is, and the bad lines on the way."""

    conversations: int = 0
    bad: list[ImportFileError] = field(default_factory=list)


def import_files(
    paths: Sequence[Path], *, home: Path, tenant_id: str = "", skip_bad: bool = False, progress: Progress | None = None
) -> Imported:
    """Bring the conversations of the files into `home`; "-" is standard input.

    Returns when all of them are stored. At the first bad line those before it are stored, and then a
    ContextwrapError names the line and says how many they were; `skip_bad` goes on instead.
    """
    tell = progress or _silent
    for path in paths:
        _check(path)
    outbox = Outbox.create(home / "outbox")
    reading = _Reading()
    stopped: ImportFileError | None = None
    try:
        try:
            for path in paths:
                _queue(path, outbox=outbox, tenant_id=tenant_id, skip_bad=skip_bad, reading=reading, tell=tell)
        except ImportFileError as error:
            stopped = error
        stored = _store(outbox, home=home, tenant_id=tenant_id, tell=tell)
    finally:
        outbox.close(discard_if_empty=True)
    if stopped is not None:
        raise ContextwrapError(
            f"{stopped}. The {reading.conversations} conversations before it are imported; "
            "mend the line and import again, or pass over such lines with --skip-bad"
        )
    new_conversations, new_messages = stored or (None, None)
    return Imported(
        conversations=reading.conversations,
        new_conversations=new_conversations,
        new_messages=new_messages,
        bad=tuple(reading.bad),
    )


def _queue(path: Path, *, outbox: Outbox, tenant_id: str, skip_bad: bool, reading: _Reading, tell: Progress) -> None:
    """Append the file's conversations to the outbox; those before a bad line are in it when that is raised."""
    size = path.stat().st_size if path.is_file() else None
    on_bad = reading.bad.append if skip_bad else None
    with _stream(path) as stream:
        conversations = read_conversations(stream, source=str(path), on_bad=on_bad)
        pending: list[Parcel] = []
        try:
            for conversation in conversations:
                pending.append(_parcel(conversation, tenant_id=tenant_id, at=datetime.now(UTC)))
                if len(pending) == _CHUNK:
                    outbox.put(pending)
                    reading.conversations += len(pending)
                    pending.clear()
                    tell("Reading", reading.conversations if size is None else stream.tell(), size)
        finally:
            outbox.put(pending)
            reading.conversations += len(pending)


def _store(outbox: Outbox, *, home: Path, tenant_id: str, tell: Progress) -> tuple[int, int] | None:
    """Wait until nothing of the outbox is left to store, doing it here when nobody else does.

    How many conversations and messages are new, or None when another process stored them.
    """
    total = outbox.counts(LOCAL).pending
    while waiting := outbox.counts(LOCAL).pending:
        try:
            return _drain(outbox, home=home, tenant_id=tenant_id, tell=tell)
        except HomeInUseError:
            tell("Storing", total - waiting, total)
            time.sleep(_POLL_SECONDS)
    return None if total else (0, 0)


def _drain(outbox: Outbox, *, home: Path, tenant_id: str, tell: Progress) -> tuple[int, int]:
    total = outbox.counts(LOCAL).pending
    with ThreadPoolExecutor(1) as beside, open_house(home, carrying=False) as house:
        store = house.store
        before = store.totals(tenant_id=tenant_id)
        draining = beside.submit(house.pipeline.drain)
        while wait([draining], timeout=_POLL_SECONDS).not_done:
            tell("Storing", total - outbox.counts(LOCAL).pending, total)
        draining.result()
        left = outbox.counts(LOCAL)
        if left.pending or left.dead:
            raise ContextwrapError(
                f"{left.pending + left.dead} conversations could not be stored and are kept in {outbox.path}"
            )
        after = store.totals(tenant_id=tenant_id)
        return after.conversations - before.conversations, after.messages - before.messages


def _parcel(conversation: Conversation, *, tenant_id: str, at: datetime) -> Parcel:
    key, named = identified(conversation, tenant_id=tenant_id)
    request = Log(route=Route.THREAD, tenant_id=tenant_id, conversation=timed(named, at=at)).to_request()
    return Parcel(
        key=key,
        address=LOCAL,
        lane=f"{tenant_id}/{named.id}",
        method=request.method,
        target=request.target,
        body=request.body,
        created_at=at.timestamp(),
    )


def _check(path: Path) -> None:
    """A file that cannot be read is known before the first one is imported."""
    if str(path) != "-" and not path.is_fifo():
        with _stream(path):
            pass


@contextmanager
def _stream(path: Path) -> Iterator[IO[bytes]]:
    if str(path) == "-":
        yield sys.stdin.buffer
        return
    try:
        stream = path.open("rb")
    except OSError as error:
        raise ContextwrapError(f"cannot read {path}: {error.strerror}") from error
    with stream:
        yield stream


def _silent(step: str, done: int, total: int | None) -> None:
    """Tell nobody."""
