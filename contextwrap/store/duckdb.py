"""The store on DuckDB: one file, held by one process; every write is one transaction.

Rows and look-up keys reach SQL as one JSON parameter, unnested there: a list parameter or executemany costs up
to 0.5 ms a row. Knows SQL; what a batch means is `Batch`'s business.
"""

from __future__ import annotations

import json
import os
import re
import threading
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar

import duckdb

from contextwrap.errors import ContextwrapError, HomeInUseError
from contextwrap.store.batch import Batch, ConversationRow, Found, MessageRow, dumped, mend, storable
from contextwrap.store.migrations import MIGRATIONS
from contextwrap.store.periods import first_days
from contextwrap.store.records import Applied, Bucket, Page, StoredConversation, Summary, Totals

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence
    from pathlib import Path

    from contextwrap.model import Message
    from contextwrap.store.batch import Changes, Key, Needs
    from contextwrap.store.records import ConversationQuery, Entry, SeriesQuery

Row = TypeVar("Row", ConversationRow, MessageRow)

_SETTINGS: Final[dict[str, str | bool | int | float | list[str]]] = {
    "memory_limit": "1GB",
    # A commit that crosses this waits for a checkpoint; whoever calls `checkpoint` now and then never sees it.
    "checkpoint_threshold": "64MB",
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
}
_INSERT_ROWS: Final = 5000
_EXPORT_ROWS: Final = 1000

_CONVERSATION: Final = tuple(item.name for item in fields(ConversationRow))
_MESSAGE: Final = tuple(item.name for item in fields(MessageRow))
_KEY: Final = {"tenant_id": "VARCHAR", "id": "VARCHAR"}

# Constants only: every value is a parameter.
# ruff: noqa: S608


class DuckDBStore:
    """A `Store` in one DuckDB file. Reads from any thread; writes wait for each other."""

    def __init__(self, db: duckdb.DuckDBPyConnection) -> None:
        """`db` has the newest schema; use `open`."""
        self._db = db
        self._write = threading.Lock()
        self._closed = False
        self._types = {table: _column_types(db, table) for table in ("conversations", "messages")}
        (self._next_seq,) = _one(db, "SELECT coalesce(max(seq) + 1, 0) FROM messages")

    @classmethod
    def open(cls, path: Path) -> Self:
        """Open or make the file. Raises HomeInUseError when another process has it."""
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        settings = _SETTINGS | {"threads": str(min(4, os.cpu_count() or 1))}
        try:
            db = duckdb.connect(path, config=settings)
        except duckdb.IOException as error:
            if "lock" not in str(error):
                raise ContextwrapError(f"cannot open the store {path}: {str(error).splitlines()[0]}") from error
            found = re.search(r"PID (\d+)", str(error))
            holder = f"process {found[1]}" if found else "another process"
            raise HomeInUseError(f"{path} is in use by {holder}: stop it, or talk to it instead") from error
        try:
            _migrate(db, path)
            return cls(db)
        except BaseException:
            db.close()
            raise

    def apply(self, entries: Sequence[Entry]) -> Applied:
        """Write a batch in one transaction, in order; see `Store.apply`."""
        entries = [replace(entry, key=mend(entry.key), log=storable(entry.log)) for entry in entries]
        if not entries:
            return Applied()
        applied, duplicates, unmatched = [], 0, []
        with self._transaction() as db:
            keys = dumped([entry.key for entry in entries])
            known = {key for (key,) in _all(db, f"SELECT key FROM ledger WHERE key IN ({_LIST})", keys)}
            batch = Batch([entry for entry in entries if entry.key not in known], next_seq=self._next_seq)
            batch.learn(_find(db, batch.needs()))
            for entry in entries:
                if entry.key in known:
                    duplicates += 1
                elif batch.apply(entry):
                    known.add(entry.key)
                    applied.append(entry.key)
                else:
                    unmatched.append(entry.key)
            self._save(db, batch.changes)
            if applied:
                db.execute(f"INSERT INTO ledger {_LIST}", [dumped(applied)])
        self._next_seq = batch.next_seq
        return Applied(applied=len(applied), duplicates=duplicates, unmatched=tuple(unmatched))

    def summaries(self, query: ConversationQuery) -> Page[Summary]:
        """One page of the conversation list."""
        with self._reading() as db:
            rows, total = _page(db, query)
        items = tuple(
            Summary(
                id=row.id,
                user_id=row.user_id,
                first_question=row.first_question,
                last_answer=row.last_answer,
                messages=row.messages,
                positive=row.positive,
                negative=row.negative,
                started_at=row.started_at,
                last_at=row.last_at,
            )
            for row in rows
        )
        return Page(items=items, total=total, page=query.page, per_page=query.per_page)

    def conversations(self, query: ConversationQuery) -> Page[StoredConversation]:
        """One page of whole conversations, in the order of `summaries`."""
        with self._reading() as db:
            rows, total = _page(db, query)
            items = _whole(db, rows)
        return Page(items=items, total=total, page=query.page, per_page=query.per_page)

    def conversation(self, conversation_id: str, *, tenant_id: str = "") -> StoredConversation | None:
        """The whole conversation, or None."""
        with self._reading() as db:
            sql = f"SELECT {', '.join(_CONVERSATION)} FROM conversations WHERE tenant_id = ? AND id = ?"
            found = _whole(db, _rows(ConversationRow, _all(db, sql, mend(tenant_id), mend(conversation_id))))
        return found[0] if found else None

    def rateable(self, keys: Collection[Key]) -> set[Key]:
        """Those of the keys that name a message, or a conversation with an answer."""
        sql = (
            f"SELECT tenant_id, id FROM messages WHERE (tenant_id, id) IN ({_unnested(_KEY)})"
            " UNION SELECT tenant_id, conversation_id FROM messages WHERE type = 'message' AND role = 'assistant'"
            f" AND (tenant_id, conversation_id) IN ({_unnested(_KEY)})"
        )
        wanted = {(tenant, item): (mend(tenant), mend(item)) for tenant, item in keys}
        if not wanted:
            return set()
        packed = _keys(wanted.values())
        with self._reading() as db:
            found = set(_all(db, sql, packed, packed))
        return {key for key, mended in wanted.items() if mended in found}

    def totals(self, *, tenant_id: str = "") -> Totals:
        """How much the tenant has."""
        sql = (
            "SELECT count(*), coalesce(sum(messages), 0), count(DISTINCT user_id),"
            " coalesce(sum(positive), 0), coalesce(sum(negative), 0) FROM conversations WHERE tenant_id = ?"
        )
        with self._reading() as db:
            conversations, messages, users, positive, negative = map(int, _one(db, sql, mend(tenant_id)))
        return Totals(conversations=conversations, messages=messages, users=users, positive=positive, negative=negative)

    def series(self, query: SeriesQuery) -> tuple[Bucket, ...]:
        """Each period that the query touches, empty ones too, oldest first."""
        bounds = (query.period, mend(query.tenant_id), _naive(query.start), _naive(query.end))
        began = (
            "SELECT date_trunc($1, started_at)::DATE, count(*) FROM conversations"
            " WHERE tenant_id = $2 AND started_at >= $3 AND started_at < $4 GROUP BY 1"
        )
        rated = (
            "SELECT date_trunc($1, event_timestamp)::DATE, count(*), avg(rating) FROM messages"
            " WHERE tenant_id = $2 AND event_timestamp >= $3 AND event_timestamp < $4 AND rating IS NOT NULL GROUP BY 1"
        )
        with self._reading() as db:
            conversations = dict(_all(db, began, *bounds))
            ratings = {begins: (count, mean) for begins, count, mean in _all(db, rated, *bounds)}
        return tuple(
            Bucket(
                begins=begins,
                conversations=conversations.get(begins, 0),
                rated=ratings.get(begins, (0, None))[0],
                rating=ratings.get(begins, (0, None))[1],
            )
            for begins in first_days(query.start, query.end, period=query.period)
        )

    def export(self, *, tenant_id: str | None = None) -> Iterator[StoredConversation]:
        """Every conversation of the tenant (None: of all) as of the first step, oldest first, in constant memory."""
        wanted = None if tenant_id is None else mend(tenant_id)
        sql = (
            f"SELECT {', '.join(_CONVERSATION)} FROM conversations"
            " WHERE ($1::VARCHAR IS NULL OR tenant_id = $1)"
            " AND ($2::TIMESTAMP IS NULL OR (started_at, tenant_id, id) > ($2, $3, $4))"
            f" ORDER BY started_at, tenant_id, id LIMIT {_EXPORT_ROWS}"
        )
        with self._reading() as db:
            db.execute("BEGIN TRANSACTION READ ONLY")
            rows = _rows(ConversationRow, _all(db, sql, wanted, None, None, None))
            while rows:
                yield from _whole(db, rows)
                last = rows[-1]
                rows = _rows(ConversationRow, _all(db, sql, wanted, _naive(last.started_at), last.tenant_id, last.id))

    def checkpoint(self) -> None:
        """Move the write-ahead log into the file, unless an export still reads what has changed since it began."""
        with self._write, suppress(duckdb.TransactionException):
            self._db.execute("CHECKPOINT")

    def close(self) -> None:
        """Close; a second close does nothing."""
        with self._write:
            if not self._closed:
                self._closed = True
                self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[duckdb.DuckDBPyConnection]:
        with self._write, self._reading() as db:
            db.execute("BEGIN TRANSACTION")
            yield db
            db.execute("COMMIT")

    @contextmanager
    def _reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        # Closing a cursor rolls back what it has open.
        cursor = self._db.cursor()
        try:
            yield cursor
        finally:
            cursor.close()

    def _save(self, db: duckdb.DuckDBPyConnection, changes: Changes) -> None:
        self._insert(db, "conversations", list(changes.new_conversations.values()))
        self._insert(db, "messages", changes.new_messages)
        conversations = list(changes.changed_conversations.values())
        self._update(db, "conversations", conversations, key=("tenant_id", "id"), changing=_CONVERSATION[2:])
        messages = list(changes.changed_messages.values())
        self._update(db, "messages", messages, key=("seq",), changing=("rating", "metadata"))

    def _insert(
        self, db: duckdb.DuckDBPyConnection, table: str, rows: Sequence[ConversationRow] | Sequence[MessageRow]
    ) -> None:
        types = self._types[table]
        for start in range(0, len(rows), _INSERT_ROWS):
            packed = _packed(rows[start : start + _INSERT_ROWS], types)
            db.execute(f"INSERT INTO {table} ({', '.join(types)}) {_unnested(types)}", [packed])

    def _update(
        self,
        db: duckdb.DuckDBPyConnection,
        table: str,
        rows: Sequence[ConversationRow] | Sequence[MessageRow],
        *,
        key: tuple[str, ...],
        changing: tuple[str, ...],
    ) -> None:
        if not rows:
            return
        types = {name: self._types[table][name] for name in (*key, *changing)}
        assigned = ", ".join(f"{name} = changed.{name}" for name in changing)
        same = " AND ".join(f"{table}.{name} = changed.{name}" for name in key)
        sql = f"UPDATE {table} SET {assigned} FROM ({_unnested(types)}) AS changed WHERE {same}"
        db.execute(sql, [_packed(rows, types)])


_LIST: Final = """SELECT unnest(from_json(?::JSON, '["VARCHAR"]'))"""


def _find(db: duckdb.DuckDBPyConnection, needs: Needs) -> Found:
    """What is kept of what a batch needs; a need for nothing costs no query."""
    message, conversation = ", ".join(_MESSAGE), ", ".join(_CONVERSATION)
    rated: list[MessageRow] = []
    if needs.rated:
        sql = (
            f"SELECT {message} FROM messages WHERE (tenant_id, id) IN ({_unnested(_KEY)})"
            " QUALIFY row_number() OVER (PARTITION BY tenant_id, id ORDER BY seq DESC) = 1"
        )
        rated = _rows(MessageRow, _all(db, sql, _keys(needs.rated)))
    named = needs.conversations | needs.rated | {(row.tenant_id, row.conversation_id) for row in rated}
    sql = f"SELECT {conversation} FROM conversations WHERE (tenant_id, id) IN ({_unnested(_KEY)})"
    parameters = [_keys(named)]
    if needs.digests:
        sql += f" OR (tenant_id, digest) IN ({_unnested(_KEY)})"
        parameters.append(_keys(needs.digests))
    conversations = _rows(ConversationRow, _all(db, sql, *parameters))
    if not conversations:
        return Found(conversations=(), present=(), rated=(), answers=())
    within = f"FROM messages WHERE seq BETWEEN ? AND ? AND (tenant_id, conversation_id) IN ({_unnested(_KEY)})"
    bounds = _bounds(conversations)
    kept = {(row.tenant_id, row.id) for row in conversations}
    present: list[Any] = []
    if needs.messages:
        sql = f"SELECT tenant_id, conversation_id, id {within} AND (tenant_id, id) IN ({_unnested(_KEY)})"
        present = _all(db, sql, *bounds, _keys(kept), _keys(needs.messages))
    answers: list[MessageRow] = []
    if kept & needs.rated:
        sql = (
            f"SELECT {message} {within} AND type = 'message' AND role = 'assistant'"
            " QUALIFY row_number() OVER (PARTITION BY tenant_id, conversation_id ORDER BY seq DESC) <= ? ORDER BY seq"
        )
        answers = _rows(MessageRow, _all(db, sql, *bounds, _keys(kept & needs.rated), needs.answers))
    return Found(conversations=conversations, present=present, rated=rated, answers=answers)


def _page(db: duckdb.DuckDBPyConnection, query: ConversationQuery) -> tuple[list[ConversationRow], int]:
    """The rows of one page of the list, and how many rows the whole list has."""
    conditions, values = ["tenant_id = ?"], [mend(query.tenant_id)]
    bounds: tuple[tuple[str, Any], ...] = (
        ("last_at >= ?", None if query.start is None else _naive(query.start)),
        ("last_at < ?", None if query.end is None else _naive(query.end)),
        ("user_id = ?", None if query.user_id is None else mend(query.user_id)),
    )
    for condition, value in bounds:
        if value is not None:
            conditions.append(condition)
            values.append(value)
    if query.rating is not None:
        conditions.append({1: "positive > 0", 0: "neutral > 0", -1: "negative > 0"}[query.rating])
    where = f"FROM conversations WHERE {' AND '.join(conditions)}"
    (total,) = _one(db, f"SELECT count(*) {where}", *values)
    sql = f"SELECT {', '.join(_CONVERSATION)} {where} ORDER BY last_at DESC, id LIMIT ? OFFSET ?"
    offset = (query.page - 1) * query.per_page
    return _rows(ConversationRow, _all(db, sql, *values, query.per_page, offset)), total


def _whole(db: duckdb.DuckDBPyConnection, rows: Sequence[ConversationRow]) -> tuple[StoredConversation, ...]:
    """The conversations of `rows`, in their order, with their messages."""
    if not rows:
        return ()
    sql = (
        f"SELECT {', '.join(_MESSAGE)} FROM messages WHERE seq BETWEEN ? AND ?"
        f" AND (tenant_id, conversation_id) IN ({_unnested(_KEY)}) ORDER BY seq"
    )
    messages: dict[tuple[str, str], list[Message]] = {(row.tenant_id, row.id): [] for row in rows}
    for row in _rows(MessageRow, _all(db, sql, *_bounds(rows), _keys(messages))):
        messages[row.tenant_id, row.conversation_id].append(row.to_message())
    return tuple(
        StoredConversation(
            id=row.id,
            tenant_id=row.tenant_id,
            metadata=row.metadata,
            messages=tuple(messages[row.tenant_id, row.id]),
            started_at=row.started_at,
            last_at=row.last_at,
            feedback=row.feedback,
        )
        for row in rows
    )


def _bounds(rows: Sequence[ConversationRow]) -> tuple[int, int]:
    """Where the messages of `rows` lie: seq grows through the file, so the rest of it is not read."""
    return min(row.first_seq for row in rows), max(row.last_seq for row in rows)


def _unnested(types: dict[str, str]) -> str:
    """A query that turns one JSON parameter, an object of equally long lists, into rows."""
    shape = json.dumps({name: [kind] for name, kind in types.items()})
    columns = ", ".join(f"unnest(packed.{name}) AS {name}" for name in types)
    return f"SELECT {columns} FROM (SELECT from_json(?::JSON, '{shape}') AS packed)"


def _packed(rows: Sequence[ConversationRow] | Sequence[MessageRow], names: Collection[str]) -> str:
    """The parameter of `_unnested` for `rows`."""
    return dumped({name: _cells(list(map(attrgetter(name), rows))) for name in names})


def _keys(keys: Collection[tuple[str, str]]) -> str:
    """The parameter of `_unnested(_KEY)` for `keys`."""
    return dumped({"tenant_id": [tenant for tenant, _ in keys], "id": [item for _, item in keys]})


def _cells(values: list[Any]) -> list[Any]:
    """A column; most are of texts and numbers, which are what they are."""
    first = values[0] if values else None
    if isinstance(first, datetime):
        return [_naive(value).isoformat() for value in values]
    return list(map(dumped, values)) if isinstance(first, dict) else values


def _value(name: str, cell: Any) -> Any:
    if isinstance(cell, datetime):
        return cell.replace(tzinfo=UTC)
    return json.loads(cell) if name == "metadata" else cell


def _rows(kind: type[Row], found: Sequence[tuple[Any, ...]]) -> list[Row]:
    """Rows of `kind` from tuples in the order of its fields."""
    names = [item.name for item in fields(kind)]
    return [kind(**{name: _value(name, cell) for name, cell in zip(names, cells, strict=True)}) for cells in found]


def _naive(moment: datetime) -> datetime:
    return (moment if moment.tzinfo is UTC else moment.astimezone(UTC)).replace(tzinfo=None)


def _all(db: duckdb.DuckDBPyConnection, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return db.execute(sql, parameters).fetchall()


def _one(db: duckdb.DuckDBPyConnection, sql: str, *parameters: Any) -> tuple[Any, ...]:
    return _all(db, sql, *parameters)[0]


def _column_types(db: duckdb.DuckDBPyConnection, table: str) -> dict[str, str]:
    return {name: kind for name, kind, *_ in _all(db, f"DESCRIBE {table}")}


def _migrate(db: duckdb.DuckDBPyConnection, path: Path) -> None:
    """Run what the file has not seen yet, all of it or nothing."""
    db.execute("BEGIN TRANSACTION")
    db.execute("CREATE TABLE IF NOT EXISTS schema_version (version INTEGER)")
    (version,) = _one(db, "SELECT coalesce(max(version), 0) FROM schema_version")
    if version > len(MIGRATIONS):
        raise ContextwrapError(f"{path} was written by a newer contextwrap: upgrade this one")
    for number, sql in enumerate(MIGRATIONS[version:], start=version + 1):
        db.execute(sql)
        db.execute("INSERT INTO schema_version VALUES (?)", [number])
    db.execute("COMMIT")
