"""Conversations out of a home again, as files: JSON Lines that `contextwrap import` reads, or Parquet for analysis.

Oldest conversation first. While a server has this home's store open they come through its public API: the same
conversations, in the order of their last message instead of their first.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Final
from urllib.parse import urlencode

from contextwrap.errors import ContextwrapError, HomeInUseError
from contextwrap.model import Conversation, from_json, to_iso, to_json
from contextwrap.server.house import open_house

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# One row a message. DuckDB's names of types; JSON stays text that DuckDB, Spark and pandas all can read.
_COLUMNS: Final = {
    "conversation_id": "VARCHAR",
    "user_id": "VARCHAR",
    "position": "INTEGER",
    "message_id": "VARCHAR",
    "type": "VARCHAR",
    "role": "VARCHAR",
    "message": "VARCHAR",
    "rating": "TINYINT",
    "event_timestamp": "TIMESTAMPTZ",
    "name": "VARCHAR",
    "thought": "VARCHAR",
    "input": "VARCHAR",
    "observation": "VARCHAR",
    "metadata": "VARCHAR",
    "conversation_metadata": "VARCHAR",
    "feedback": "VARCHAR",
}
_MAX_ROW: Final = 1 << 28
_EVER: Final = "0001-01-01T00:00:00Z"
_ASK_SECONDS: Final = 60.0
# No proxy that the environment names stands between two processes of one machine.
_DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def export_to(path: Path, *, form: str, home: Path, tenant_id: str = "", user_id: str | None = None) -> int:
    """Write the tenant's conversations, or one user's, to `path` ("-" is stdout) as "jsonl" or "parquet".

    Returns how many there were. Raises ContextwrapError when the file cannot be written; then it is not there.
    """
    write = {"jsonl": write_jsonl, "parquet": write_parquet}[form]
    with _output(path) as stream:
        return write(_stored(home, tenant_id, user_id), stream)


def write_jsonl(conversations: Iterable[Conversation], stream: IO[bytes]) -> int:
    """One conversation a line; returns how many."""
    count = 0
    for conversation in conversations:
        stream.write(to_json(conversation.to_wire()) + b"\n")
        count += 1
    return count


def write_parquet(conversations: Iterable[Conversation], stream: IO[bytes]) -> int:
    """One row a message, in order; returns how many conversations. Memory does not grow with them."""
    import duckdb  # noqa: PLC0415  only for this format

    count = 0
    with tempfile.TemporaryDirectory(prefix="contextwrap-") as folder:
        rows, table = Path(folder, "rows.jsonl"), Path(folder, "rows.parquet")
        with rows.open("wb") as file:
            for conversation in conversations:
                count += 1
                for row in _rows(conversation):
                    # Parquet's text is UTF-8, which cannot carry the lone surrogates that JSON can.
                    file.write(json.dumps(row, ensure_ascii=False).encode(errors="replace") + b"\n")
        with duckdb.connect() as db:
            source = db.read_json(str(rows), columns=_COLUMNS, format="newline_delimited", maximum_object_size=_MAX_ROW)
            source.write_parquet(str(table), compression="zstd")
        with table.open("rb") as file:
            shutil.copyfileobj(file, stream)
    return count


def _stored(home: Path, tenant_id: str, user_id: str | None) -> Iterator[Conversation]:
    """What the home holds of the tenant (of one user), what waits in its outboxes included."""
    try:
        with open_house(home, carrying=False) as house:
            house.pipeline.drain()
            for item in house.store.export(tenant_id=tenant_id):
                if user_id in {None, item.user_id}:
                    yield Conversation(
                        id=item.id, metadata=item.metadata, messages=item.messages, feedback=item.feedback
                    )
    except HomeInUseError:
        yield from _served(home, tenant_id, user_id)


def _served(home: Path, tenant_id: str, user_id: str | None) -> Iterator[Conversation]:
    """The same from the server that has the home's store open."""
    now = to_iso(datetime.now(UTC))
    asked = {"tenant_id": tenant_id, "per_page": "100"} | ({} if user_id is None else {"user_id": user_id})
    seen: set[str | None] = set()
    # Up to now from the last page to the first: whoever goes on talking leaves this list at its beginning, which
    # moves nobody past us, and is found in the second one.
    for window in ({"start_time": _EVER, "end_time": now}, {"start_time": now}):
        pages = _ask(home, asked | window)["pagination"]["page_count"]
        for page in range(pages, 0, -1):
            for item in reversed(_ask(home, asked | window | {"page": str(page)})["conversations"]):
                conversation = Conversation.from_wire({**item, "messages": [_unrated(row) for row in item["messages"]]})
                if conversation.id not in seen:
                    seen.add(conversation.id)
                    yield conversation


def _unrated(row: dict[str, Any]) -> dict[str, Any]:
    """The message with no rating where it has none: the Context API answers 0 there."""
    return row if row["rated"] else {**row, "rating": None}


def _ask(home: Path, query: dict[str, str]) -> Any:
    """The server's answer to one question about conversations."""
    from contextwrap.server.run import running  # noqa: PLC0415  brings the web server, which is rarely running

    server = running(home)
    if server is None:
        raise ContextwrapError(f"another process has {home} open and is no server: try again when it is done")
    request = urllib.request.Request(  # noqa: S310  the address stands in a file of this home's own
        f"{server.url}/api/v1/conversations?{urlencode(query)}", headers={"Authorization": f"Bearer {server.token}"}
    )
    try:
        with _DIRECT.open(request, timeout=_ASK_SECONDS) as answer:
            return from_json(answer.read())
    except OSError as error:
        raise ContextwrapError(f"the server on {server.url} does not answer: {error}") from error


@contextmanager
def _output(path: Path) -> Iterator[IO[bytes]]:
    """The file to write, which is there whole or not at all; - is stdout. Raises ContextwrapError with the path."""
    if str(path) == "-":
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    # A device or a pipe is written to; it cannot be put in place afterwards.
    part = path if path.exists() and not path.is_file() else path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
        if part is not path:
            part.replace(path)
    except OSError as error:
        raise ContextwrapError(f"cannot write {path}: {error.strerror}") from error
    finally:
        if part is not path:
            part.unlink(missing_ok=True)


def _rows(conversation: Conversation) -> Iterator[dict[str, Any]]:
    common = {
        "conversation_id": conversation.id,
        "user_id": conversation.user_id,
        "conversation_metadata": _text(dict(conversation.metadata)),
        "feedback": conversation.feedback,
    }
    for position, message in enumerate(conversation.messages):
        wire = message.to_wire()
        yield common | {
            **{name: wire.get(name) for name in _COLUMNS if name in wire},
            "position": position,
            "message_id": message.id,
            "input": None if message.input is None else _text(message.input),
            "metadata": _text(dict(message.metadata)),
        }


def _text(value: object) -> str:
    return to_json(value).decode()
