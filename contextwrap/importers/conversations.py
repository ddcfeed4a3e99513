"""Conversations in a JSON Lines file, plain or gzipped: one Context API conversation a line.

    {"id": "c1", "user_id": "u1", "topic": "billing", "messages": [{"role": "user", "message": "…"}, …]}

`messages`, `metadata`, `id` and `feedback` are the API's. Any other key with a string, number or boolean is kept
as metadata under its own name (`metadata` wins over it); other keys with null, a list or an object are left out.
Blank lines are skipped. Reads one line at a time, whatever the file's size; knows no store and no queue.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import zlib
from dataclasses import replace
from typing import IO, TYPE_CHECKING, Any, Final, cast

from contextwrap.errors import ImportFileError, WireError
from contextwrap.ids import derived_id
from contextwrap.model import Conversation, from_json, to_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from datetime import datetime

MAX_LINE: Final = 32 * 1024 * 1024

_OWN_KEYS: Final = frozenset({"messages", "metadata", "id", "feedback"})


def read_conversations(
    stream: IO[bytes], *, source: str, on_bad: Callable[[ImportFileError], None] | None = None
) -> Iterator[Conversation]:
    """The conversations in `stream`, as they are written there; `source` names it in errors.

    Raises ImportFileError at the first bad line, or gives it to `on_bad` and goes on. What cannot be read past
    (a damaged gzip file) is raised either way.
    """
    number = 0
    for number, line in enumerate(_lines(stream, source=source), 1):
        try:
            if line.strip():
                yield _conversation(line)
        except WireError as error:
            bad = ImportFileError(str(error), source=source, line=number)
            if on_bad is None:
                raise bad from None
            on_bad(bad)


def identified(conversation: Conversation, *, tenant_id: str) -> tuple[str, Conversation]:
    """The conversation's idempotency key, and the conversation with its ids made up where it has none.

    The same content gets the same key and ids every time. Message ids derive from the conversation's id and the
    message's place, so a conversation that has grown since the last import gets only its new messages.
    """
    digest = hashlib.sha256(to_json(conversation.to_wire())).hexdigest()
    thread = conversation.id or derived_id("import", digest)
    messages = tuple(
        message if message.id else replace(message, id=derived_id("import", thread, str(index)))
        for index, message in enumerate(conversation.messages)
    )
    return derived_id("import", tenant_id, thread, digest), replace(conversation, id=thread, messages=messages)


def timed(conversation: Conversation, *, at: datetime) -> Conversation:
    """Every message with a time: its own, else that of the one before it, else the first known, else `at`."""
    moment = next((m.event_timestamp for m in conversation.messages if m.event_timestamp is not None), at)
    messages = []
    for message in conversation.messages:
        moment = message.event_timestamp or moment
        messages.append(replace(message, event_timestamp=moment))
    return replace(conversation, messages=tuple(messages))


def _conversation(line: bytes) -> Conversation:
    wire = from_json(line)
    if not isinstance(wire, dict):
        raise WireError("the line must be a JSON object")
    loose = {key: value for key, value in wire.items() if key not in _OWN_KEYS and isinstance(value, str | int | float)}
    metadata = wire.get("metadata")
    if loose and (metadata is None or isinstance(metadata, dict)):
        wire = wire | {"metadata": loose | (metadata or {})}
    return Conversation.from_wire(cast("dict[str, Any]", wire), where="conversation")


def _lines(stream: IO[bytes], *, source: str) -> Iterator[bytes]:
    number = 0
    try:
        text = _opened(stream)
        while line := text.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise ImportFileError(f"longer than {MAX_LINE >> 20} MiB", source=source, line=number)
            yield line
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ImportFileError(f"the gzip file is damaged here: {error}", source=source, line=number + 1) from None
    except OSError as error:
        raise ImportFileError(f"cannot be read: {error.strerror}", source=source, line=number + 1) from None


def _opened(stream: IO[bytes]) -> IO[bytes]:
    """The stream itself, or what is in it when its first bytes say gzip: names and pipes do not always."""
    buffered = stream if isinstance(stream, io.BufferedReader) else io.BufferedReader(cast("io.RawIOBase", stream))
    if buffered.peek(2)[:2] == b"\x1f\x8b":
        return cast("IO[bytes]", gzip.GzipFile(fileobj=buffered))
    return buffered
