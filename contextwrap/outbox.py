"""A durable queue of opaque parcels on SQLite: what `put` has returned survives kill -9.

One file per process under `<home>/outbox/`, its owner holding a lock on it for life; whoever finds the lock
free adopts the file. A parcel is one HTTP request to be made (method, target, body) at one `address`: LOCAL,
or an endpoint with a fingerprint of its token. Parcels of one `lane` leave in the order they came, and one carrier
at a time takes those of an address. Knows no wire model and no network.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
import time
from contextlib import closing, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from contextwrap.boxfiles import (
    FIELDS,
    PATIENCE_MS,
    check,
    claim,
    committing,
    connect,
    discard,
    ours,
    prepare,
    reading,
    set_aside,
    telling,
)
from contextwrap.boxfiles import outbox_files as outbox_files
from contextwrap.errors import OutboxCorruptError, OutboxError, OutboxFullError
from contextwrap.forking import register, settled
from contextwrap.ids import new_id
from contextwrap.settings import LOCAL as LOCAL

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

logger = logging.getLogger("contextwrap")

LEASE_SECONDS: Final = 60.0
LONGEST_HOLD: Final = 3600.0

_NO_LIMIT: Final = 2**32 - 2
_PAGE: Final = 4096
_ROW: Final = "(?, ?, ?, ?, ?, ?, ?)"
_PUT: Final = f"INSERT INTO parcels ({FIELDS}) VALUES {_ROW}"
# One statement takes 32,766 values: https://www.sqlite.org/limits.html#max_variable_number
_ROWS_A_PUT: Final = 1000
_WAITING: Final = (
    f"SELECT p.seq, {FIELDS}, coalesce(d.attempts, 0), d.reason, coalesce(d.due_at, 0) "
    "FROM parcels AS p LEFT JOIN deferred AS d USING (seq)"
)
_DEAD: Final = f"SELECT seq, {FIELDS}, attempts, reason FROM dead_letters"


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One request to be made; `created_at` is seconds since 1970, `seq` orders one file."""

    key: str
    address: str
    lane: str
    method: str
    target: str
    body: bytes
    created_at: float
    seq: int = 0
    attempts: int = 0
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many parcels wait and how many are dead letters."""

    pending: int = 0
    dead: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """An address that could not be reached: not asked again before `due_at`, after so many attempts, because."""

    due_at: float = 0.0
    attempts: int = 0
    reason: str | None = None


class _Leased(NamedTuple):
    address: str
    lane: str
    until: float


class Outbox:
    """One file of parcels. Threads may share it; a child of fork must open its own."""

    def __init__(
        self,
        path: Path,
        *,
        lock: int | None = None,
        clock: Callable[[], float] = time.time,
        checkpoints: bool = True,
        limit: int | None = None,
    ) -> None:
        """Open or make the file; with `checkpoints` False somebody calls `checkpoint` now and then.

        `limit` is how many bytes of parcels it takes. Raises OutboxError when the file cannot be opened or is none of
        ours, OutboxCorruptError when SQLite cannot read it.
        """
        self.path = path
        self._lock = lock
        self._clock = clock
        self._pages = _NO_LIMIT if limit is None else max(16, limit // _PAGE)
        self._carrier = new_id()
        self._leased: dict[int, _Leased] = {}
        # Whoever puts waits for `_guard`, so that is held for writing only; reading has a connection of its own.
        self._guard = threading.Lock()
        self._reading = threading.RLock()
        try:
            with settled, telling(path, "open"):
                register(self)
                self._db = connect(path)
                prepare(self._db, path, checkpoints=checkpoints, owned=lock is not None)
                self._db.execute(f"PRAGMA max_page_count = {self._pages}")
                self._reader = connect(path)
        except BaseException:
            if hasattr(self, "_db"):
                self._db.close()
            raise

    @property
    def locks(self) -> tuple[Any, ...]:
        """What a fork waits for."""
        return self._reading, self._guard

    @classmethod
    def create(cls, folder: Path, *, checkpoints: bool = True, limit: int | None = None) -> Self:
        """A new file of this process's own in `folder`, locked for as long as the process lives."""
        path = folder / f"{os.getpid()}-{new_id()}.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = claim(path)
        except OSError as error:
            raise OutboxError(f"cannot write to {folder}: {error.strerror}") from error
        return cls(path, lock=lock, checkpoints=checkpoints, limit=limit)

    @classmethod
    def adopt(cls, path: Path) -> Self | None:
        """The file of a process that is no more, or None while it lives.

        One that SQLite cannot read is set aside under a `.corrupt` name, never deleted, and an empty one takes its
        place.
        """
        try:
            lock = claim(path)
        except OSError as error:
            raise OutboxError(f"cannot adopt {path}: {error.strerror}") from error
        if lock is None:
            return None
        try:
            try:
                outbox = cls(path, lock=lock)
                with telling(path, "read"), outbox._transaction() as db:
                    check(db)
                    db.execute("UPDATE carriers SET carrier = NULL, leased_until = 0")
            except OutboxCorruptError as error:
                logger.error("contextwrap: %s: it is kept as %s", error, set_aside(path).name)  # noqa: TRY400  said whole
                outbox = cls(path, lock=lock)
        except OutboxError:
            os.close(lock)
            raise
        return outbox

    def put(self, parcels: Iterable[Parcel]) -> None:
        """Append all or none. OutboxFullError, with nothing appended, when there is no room within the limit."""
        rows = [(p.key, p.address, p.lane, p.method, p.target, p.body, p.created_at) for p in parcels]
        try:
            with self._guard:
                if len(rows) == 1:
                    self._db.execute(_PUT, rows[0])
                else:
                    self._put_many(rows)
        except sqlite3.Error as error:
            if self._is_full(error, sum(len(row[5]) for row in rows)):
                said = f"the outbox has reached its limit of {self._pages * _PAGE} bytes (outbox_limit)"
                raise OutboxFullError(f"{said}: see that it is delivered, or allow it more") from error
            raise ours(error, self.path, "use") from error

    def _put_many(self, rows: Sequence[tuple[Any, ...]]) -> None:
        # Each statement gives the GIL away, and a host that computes takes 5 ms to give it back: so few, not one a row.
        parts = [rows[start : start + _ROWS_A_PUT] for start in range(0, len(rows), _ROWS_A_PUT)]
        with committing(self._db) if len(parts) > 1 else nullcontext():
            for part in parts:
                self._db.execute(_PUT + f", {_ROW}" * (len(part) - 1), [value for row in part for value in row])

    def lease(self, address: str, *, limit: int = 100, seconds: float = LEASE_SECONDS) -> list[Parcel]:
        """The oldest due parcels for `address`, for `seconds` nobody else's; none while somebody else carries there.

        A parcel waits while an older one of its lane does, so no rating overtakes its message.
        """
        with self._reading:
            if not self._take(address, seconds):
                return []
            until = self._clock() + seconds
            found = self._ready(address, limit=limit)
            self._leased.update((one.seq, _Leased(one.address, one.lane, until)) for one in found)
            return found

    def ack(self, seqs: Sequence[int]) -> None:
        """The parcels have arrived: forget them. Those whose lease went to another carrier are that one's."""
        with self._transaction() as db:
            for first, last in _ranges(self._own(db, seqs)):
                db.execute("DELETE FROM parcels WHERE seq BETWEEN ? AND ?", (first, last))
                db.execute("DELETE FROM deferred WHERE seq BETWEEN ? AND ?", (first, last))
        self._release(seqs)

    def defer(self, seqs: Sequence[int], *, seconds: float, reason: str | None, attempted: bool = True) -> None:
        """Give the parcels back, due again in `seconds`."""
        due = self._clock() + seconds
        if seconds > 0 or attempted or reason:
            with self._transaction() as db:
                db.executemany(
                    "INSERT INTO deferred VALUES (?1, ?2, ?3, ?4) ON CONFLICT (seq) DO UPDATE "
                    "SET due_at = ?2, attempts = attempts + ?3, reason = coalesce(?4, reason)",
                    [(seq, due, int(attempted), reason) for seq in self._own(db, seqs)],
                )
        self._release(seqs)

    def bury(self, seq: int, *, reason: str) -> None:
        """The parcel can never arrive: keep it as a dead letter with its reason."""
        with self._transaction() as db:
            for own in self._own(db, [seq]):
                db.execute(
                    f"INSERT INTO dead_letters ({FIELDS}, attempts, reason) SELECT {FIELDS}, "
                    "1 + coalesce((SELECT attempts FROM deferred WHERE seq = ?1), 0), ?2 FROM parcels WHERE seq = ?1",
                    (own, reason),
                )
                db.execute("DELETE FROM parcels WHERE seq = ?", (own,))
                db.execute("DELETE FROM deferred WHERE seq = ?", (own,))
        self._release([seq])

    def hold(self, address: str, *, seconds: float, reason: str) -> None:
        """Ask nothing of this address for `seconds`: it cannot be reached, for this reason."""
        due = self._clock() + min(seconds, LONGEST_HOLD)
        with self._transaction() as db:
            db.execute(
                "INSERT INTO carriers (address, due_at, attempts, reason) VALUES (?1, ?2, 1, ?3) ON CONFLICT (address) "
                "DO UPDATE SET due_at = ?2, attempts = attempts + 1, reason = ?3",
                (address, due, reason),
            )

    def held(self, address: str) -> Held:
        """Until when nothing is asked of this address, and why; all nothing when it is reached."""
        with self._read() as db:
            row = db.execute("SELECT due_at, attempts, reason FROM carriers WHERE address = ?", (address,)).fetchone()
        return Held() if row is None or not row[1] else Held(due_at=row[0], attempts=row[1], reason=row[2])

    def reached(self, address: str) -> None:
        """The address answers (again): nothing is held back."""
        if self.held(address).attempts:
            with self._transaction() as db:
                db.execute("UPDATE carriers SET due_at = 0, attempts = 0, reason = NULL WHERE address = ?", (address,))

    def hurry(self, address: str) -> None:
        """Make every waiting parcel for `address` due now, as a flush wants it."""
        with self._transaction() as db:
            db.execute("UPDATE carriers SET due_at = 0 WHERE address = ?", (address,))
            db.execute(
                "UPDATE deferred SET due_at = 0 WHERE EXISTS "
                "(SELECT 1 FROM parcels AS p WHERE p.seq = deferred.seq AND p.address = ?)",
                (address,),
            )

    def readdress(self, old: str, new: str) -> int:
        """Send what waits for one address to another, dead letters apart; returns how many parcels that are."""
        with self._transaction() as db:
            return db.execute("UPDATE parcels SET address = ? WHERE address = ?", (new, old)).rowcount

    def parcels(self) -> Iterator[Parcel]:
        """Every parcel, leased ones too, oldest first, then the dead letters; the outbox works on meanwhile."""
        yield from self._paged(f"{_WAITING} WHERE p.seq > ? ORDER BY p.seq LIMIT 100")
        yield from self._paged(f"{_DEAD} WHERE seq > ? ORDER BY seq LIMIT 100")

    def dead_letters(self, *, limit: int = 100) -> list[Parcel]:
        """The oldest dead letters, each with its reason."""
        with self._read() as db:
            return [_parcel(row) for row in db.execute(f"{_DEAD} ORDER BY seq LIMIT ?", (limit,))]

    def purge(self, lanes: Collection[str]) -> int:
        """Drop all parcels of these lanes, for any address, dead letters too; returns how many went.

        Their bytes leave the file with the next `scrub`.
        """
        gone = 0
        with self._transaction() as db:
            for table in ("parcels", "dead_letters"):
                rows = db.execute(f"SELECT seq, lane FROM {table}")
                seqs = [(seq,) for seq, lane in rows if lane in lanes]
                db.executemany(f"DELETE FROM {table} WHERE seq = ?", seqs)
                gone += len(seqs)
            db.execute("DELETE FROM deferred WHERE seq NOT IN (SELECT seq FROM parcels)")
        return gone

    def scrub(self, *, seconds: float = 1.0) -> bool:
        """Take the bytes of all that was dropped or delivered out of the file; False when others use it for so long."""
        deadline = time.monotonic() + seconds
        for step in ("VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
            while not self._undisturbed(step):
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.01)
        return True

    def drop_dead_letters(self) -> int:
        """Forget every dead letter; returns how many there were. Their bytes leave the file with the next `scrub`."""
        with self._transaction() as db:
            return db.execute("DELETE FROM dead_letters").rowcount

    def revive(self, *, reason: str = "") -> int:
        """Make the dead letters whose reason contains `reason` wait again, now, behind the rest; says how many."""
        these = "WHERE instr(coalesce(reason, ''), ?)"
        with self._transaction() as db:
            db.execute(
                f"INSERT INTO parcels ({FIELDS}) SELECT {FIELDS} FROM dead_letters {these} ORDER BY seq", (reason,)
            )
            return db.execute(f"DELETE FROM dead_letters {these}", (reason,)).rowcount

    def counts(self, address: str | None = None) -> Counts:
        """How many wait and how many are dead, for one address or for all."""
        with self._read() as db:
            pending, dead = (
                db.execute(f"SELECT count(*) FROM {table} WHERE address = coalesce(?, address)", (address,)).fetchone()[
                    0
                ]
                for table in ("parcels", "dead_letters")
            )
        return Counts(pending=pending, dead=dead)

    def has_waiting(self, address: str) -> bool:
        """Whether anything waits for `address`, leased or due or not."""
        with self._read() as db:
            return db.execute("SELECT 1 FROM parcels WHERE address = ? LIMIT 1", (address,)).fetchone() is not None

    def is_busy(self, address: str) -> bool:
        """Whether anything for `address` is on its way now, or could be."""
        with self._reading:
            if any(one.address == address for one in self._leased.values()):
                return True
        due = self.next_due(address)
        return due is not None and due <= self._clock()

    def next_due(self, address: str) -> float | None:
        """When a parcel for `address` may be leased, in seconds since 1970; None when none waits."""
        if not self.has_waiting(address):
            return None
        with self._read() as db:
            until, due = db.execute(
                "SELECT max(leased_until) FILTER (WHERE carrier <> ?1), max(due_at) FROM carriers WHERE address = ?2",
                (self._carrier, address),
            ).fetchone()
            if self._ready(address, limit=1):
                return max(until or 0.0, due or 0.0)
            (deferred,) = db.execute(
                "SELECT min(due_at) FROM deferred JOIN parcels USING (seq) WHERE address = ?", (address,)
            ).fetchone()
        leases = [one.until for one in self._leased.values() if one.address == address]
        return max(until or 0.0, due or 0.0, min([*leases, *filter(None, [deferred])], default=0.0))

    def checkpoint(self) -> None:
        """Move the write-ahead log into the file, without anybody waiting for it."""
        with settled, telling(self.path, "use"), closing(connect(self.path)) as db:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self, *, discard_if_empty: bool = False) -> None:
        """Close and give up leases and lock; a file with nothing in it may go."""
        with self._reading, self._guard:
            empty = False
            with suppress(sqlite3.Error):
                self._db.execute("UPDATE carriers SET leased_until = 0 WHERE carrier = ?", (self._carrier,))
                empty = not any(self._db.execute(f"SELECT 1 FROM {t} LIMIT 1").fetchone() for t in _KEEPING)
            self._reader.close()
            self._db.close()
        if self._lock is not None:
            if empty and discard_if_empty:
                discard(self.path)
            os.close(self._lock)
            self._lock = None

    def set_aside(self, error: OutboxCorruptError) -> None:
        """Close a file that SQLite cannot read and keep it under a `.corrupt` name, never deleted."""
        self.close()
        logger.error("contextwrap: %s: it is kept as %s", error, set_aside(self.path).name)

    def forsake(self) -> None:
        """In a child of fork: let go of the parent's file without touching it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
        # Not even closed: https://www.sqlite.org/howtocorrupt.html, "Carrying an open database connection across a
        # fork". A reference nobody counts keeps them from being closed when the interpreter ends.
        import ctypes  # noqa: PLC0415  nobody else needs it

        for name in ("_reader", "_db"):
            if hasattr(self, name):
                ctypes.pythonapi.Py_IncRef(ctypes.py_object(getattr(self, name)))
                delattr(self, name)

    def __del__(self) -> None:
        """Python 3.13 warns the host of a connection that nobody closed, though nothing is lost with it."""
        for name in ("_reader", "_db"):
            if hasattr(self, name):
                getattr(self, name).close()

    def _take(self, address: str, seconds: float) -> bool:
        """Be the one who carries to `address` for `seconds`, unless somebody else is or nothing may be asked there."""
        now = self._clock()
        with self._read() as db:
            row = db.execute(
                "SELECT carrier, leased_until, due_at FROM carriers WHERE address = ?", (address,)
            ).fetchone()
        carrier, until, due = row or (None, 0.0, 0.0)
        # A time further ahead than any hold is long was written before the clock was set back.
        if now < due <= now + LONGEST_HOLD:
            return False
        if carrier == self._carrier and until - now >= seconds / 2:
            return True
        with self._transaction() as db:
            db.execute(
                "INSERT INTO carriers (address, carrier, leased_until) VALUES (?1, ?2, ?3) ON CONFLICT (address) DO "
                "UPDATE SET carrier = ?2, leased_until = ?3 "
                "WHERE carrier = ?2 OR carrier IS NULL OR leased_until NOT BETWEEN ?4 AND ?4 + ?5",
                (address, self._carrier, now + seconds, now, LONGEST_HOLD),
            )
            return self._carries(db, address)

    def _carries(self, db: sqlite3.Connection, address: str) -> bool:
        row = db.execute("SELECT carrier FROM carriers WHERE address = ?", (address,)).fetchone()
        return row is not None and row[0] == self._carrier

    def _ready(self, address: str, *, limit: int) -> list[Parcel]:
        now = self._clock()
        found: list[Parcel] = []
        with self._read() as db:
            leased = (one for one in self._leased.values() if now < one.until <= now + LONGEST_HOLD)
            blocked = {one.lane for one in leased if one.address == address}
            rows = db.execute(f"{_WAITING} WHERE p.address = ? ORDER BY p.seq", (address,))
            while len(found) < limit and (row := rows.fetchone()) is not None:
                lane, due = row[3], row[10]
                if now < due <= now + LONGEST_HOLD:
                    blocked.add(lane)
                elif lane not in blocked:
                    found.append(_parcel(row))
            rows.close()
        return found

    def _own(self, db: sqlite3.Connection, seqs: Sequence[int]) -> list[int]:
        """Those of the parcels that are still this carrier's."""
        held = [(seq, self._leased.get(seq)) for seq in seqs]
        carried = {one.address for _, one in held if one is not None}
        mine = {address for address in carried if self._carries(db, address)}
        return [seq for seq, one in held if one is not None and one.address in mine]

    def _release(self, seqs: Iterable[int]) -> None:
        with self._reading:
            for seq in seqs:
                self._leased.pop(seq, None)

    def _paged(self, sql: str) -> Iterator[Parcel]:
        seq = -1
        while True:
            with self._read() as db:
                rows = db.execute(sql, (seq,)).fetchall()
            if not rows:
                return
            yield from map(_parcel, rows)
            seq = rows[-1][0]

    def _undisturbed(self, step: str) -> bool:
        """Whether the step could be done; a checkpoint that meets another gives up whatever it was told to wait.

        https://www.sqlite.org/c3ref/wal_checkpoint_v2.html
        """
        with self._reading, self._guard, telling(self.path, "use"):
            # Whoever writes waits for this: not for long.
            self._db.execute("PRAGMA busy_timeout = 100")
            try:
                answer = self._db.execute(step).fetchone()
            except sqlite3.OperationalError:
                return False
            finally:
                self._db.execute(f"PRAGMA busy_timeout = {PATIENCE_MS}")
        return answer is None or answer[0] == 0

    def _is_full(self, error: sqlite3.Error, size: int) -> bool:
        """Whether the limit, and not the disk, has no room for so many bytes."""
        if self._pages == _NO_LIMIT or getattr(error, "sqlite_errorcode", None) != sqlite3.SQLITE_FULL:
            return False
        with self._guard:
            pages: int = self._db.execute("PRAGMA page_count").fetchone()[0]
        return pages + size // _PAGE + 8 >= self._pages

    @contextmanager
    def _read(self) -> Iterator[sqlite3.Connection]:
        with self._reading, telling(self.path, "use"):
            yield self._reader

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        """A write of the carrier's, for which there is room also in a full outbox."""
        with self._guard, telling(self.path, "use"):
            limited = self._pages != _NO_LIMIT
            if limited:
                self._db.execute(f"PRAGMA max_page_count = {_NO_LIMIT}")
            try:
                with committing(self._db) as db:
                    yield db
            finally:
                if limited:
                    self._db.execute(f"PRAGMA max_page_count = {self._pages}")


def look(path: Path) -> Iterator[tuple[Parcel, bool]]:
    """Every parcel in a file, and whether it is a dead letter, without disturbing who works with it."""
    with telling(path, "read"), reading(path) as db:
        for sql, dead in ((f"{_WAITING} ORDER BY p.seq", False), (f"{_DEAD} ORDER BY seq", True)):
            for row in db.execute(sql):
                yield _parcel(row), dead


def _ranges(seqs: Iterable[int]) -> Iterator[tuple[int, int]]:
    """The numbers as runs without a gap, each by its first and last."""
    run: list[int] = []
    for seq in sorted(seqs):
        if run and seq != run[-1] + 1:
            yield run[0], run[-1]
            run = []
        run.append(seq)
    if run:
        yield run[0], run[-1]


def _parcel(row: Sequence[Any]) -> Parcel:
    seq, key, address, lane, method, target, body, created_at, attempts, reason, *_ = row
    return Parcel(
        seq=seq,
        key=key,
        address=address,
        lane=lane,
        method=method,
        target=target,
        body=body,
        created_at=created_at,
        attempts=attempts,
        reason=reason,
    )


_KEEPING: Final = ("parcels", "dead_letters")
