"""A durable queue of opaque parcels on SQLite: what `put` has returned survives kill -9.

One file per process under `<home>/outbox/`, its owner holding a lock on it for life; whoever finds the lock
free adopts the file. A parcel is one HTTP request to be made (method, target, body) at one `address`: LOCAL,
or an endpoint with a fingerprint of its token. Parcels of one `lane` leave in the order they came. Knows no
wire model and no network. Works where fcntl does: Linux and macOS.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import threading
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from contextwrap.errors import OutboxError
from contextwrap.ids import new_id
from contextwrap.settings import LOCAL as LOCAL

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
    from pathlib import Path

LEASE_SECONDS: Final = 60.0

_SCHEMA_VERSION: Final = 1
# Other processes write here only for the length of one small transaction: waiting beats failing.
_PATIENCE_MS: Final = 5000
_DDL: Final = """
CREATE TABLE IF NOT EXISTS parcels (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    address TEXT NOT NULL,
    lane TEXT NOT NULL,
    method TEXT NOT NULL,
    target TEXT NOT NULL,
    body BLOB NOT NULL,
    created_at REAL NOT NULL,
    due_at REAL NOT NULL DEFAULT 0,
    leased_until REAL NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    reason TEXT,
    dead INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS parcels_by_lane ON parcels (address, lane, seq) WHERE dead = 0;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parcel:
    """One request to be made; `created_at` and `due_at` are seconds since 1970, `seq` orders one file."""

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


_COLUMNS: Final = "seq, key, address, lane, method, target, body, created_at, attempts, reason"


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """How many parcels wait and how many are dead letters."""

    pending: int = 0
    dead: int = 0


class Outbox:
    """One file of parcels. Threads may share it; a child of fork must open its own."""

    def __init__(
        self, path: Path, *, lock: int | None = None, clock: Callable[[], float] = time.time, checkpoints: bool = True
    ) -> None:
        """Open or make the file; with `checkpoints` False somebody calls `checkpoint` now and then.

        Raises OutboxError when the file cannot be opened or is none of ours.
        """
        self.path = path
        self._lock = lock
        self._clock = clock
        self._guard = threading.Lock()
        try:
            self._db = sqlite3.connect(path, timeout=_PATIENCE_MS / 1000, isolation_level=None, check_same_thread=False)
            try:
                _prepare(self._db, path, checkpoints=checkpoints)
            except BaseException:
                self._db.close()
                raise
        except sqlite3.Error as error:
            raise OutboxError(f"cannot open the outbox {path}: {error}") from error

    @classmethod
    def create(cls, folder: Path, *, checkpoints: bool = True) -> Self:
        """A new file of this process's own in `folder`, locked for as long as the process lives."""
        path = folder / f"{os.getpid()}-{new_id()}.sqlite"
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = _claim(path)
        except OSError as error:
            raise OutboxError(f"cannot write to {folder}: {error.strerror}") from error
        return cls(path, lock=lock, checkpoints=checkpoints)

    @classmethod
    def adopt(cls, path: Path) -> Self | None:
        """The file of a process that is no more, or None while it lives."""
        lock = _claim(path)
        if lock is None:
            return None
        try:
            outbox = cls(path, lock=lock)
        except OutboxError:
            os.close(lock)
            raise
        with outbox._transaction() as db:
            db.execute("UPDATE parcels SET leased_until = 0 WHERE leased_until > 0")
        return outbox

    def put(self, parcels: Iterable[Parcel]) -> int:
        """Append all or none; a parcel whose key is here already is left out. Returns how many were new."""
        rows = [(p.key, p.address, p.lane, p.method, p.target, p.body, p.created_at) for p in parcels]
        with self._transaction() as db:
            before = db.total_changes
            db.executemany(
                "INSERT INTO parcels (key, address, lane, method, target, body, created_at) "
                "VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT (key) DO NOTHING",
                rows,
            )
            return db.total_changes - before

    def lease(self, address: str, *, limit: int = 100, seconds: float = LEASE_SECONDS) -> list[Parcel]:
        """The oldest due parcels for `address`, nobody else's for `seconds`.

        A parcel waits while an older one of its lane does, so no rating overtakes its message.
        """
        now = self._clock()
        with self._transaction() as db:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM parcels AS p "  # noqa: S608  constants only
                "WHERE dead = 0 AND address = ? AND max(due_at, leased_until) <= ? AND NOT EXISTS ("
                "  SELECT 1 FROM parcels AS older WHERE older.address = p.address AND older.lane = p.lane "
                "  AND older.seq < p.seq AND older.dead = 0 AND max(older.due_at, older.leased_until) > ?) "
                "ORDER BY seq LIMIT ?",
                (address, now, now, limit),
            ).fetchall()
            until = [(now + seconds, row[0]) for row in rows]
            db.executemany("UPDATE parcels SET leased_until = ? WHERE seq = ?", until)
        return [_parcel(row) for row in rows]

    def ack(self, seqs: Sequence[int]) -> None:
        """The parcels have arrived: forget them."""
        with self._transaction() as db:
            db.executemany("DELETE FROM parcels WHERE seq = ?", [(seq,) for seq in seqs])

    def defer(self, seqs: Sequence[int], *, seconds: float, reason: str | None, attempted: bool = True) -> None:
        """Give the parcels back, due again in `seconds`."""
        due = self._clock() + seconds
        with self._transaction() as db:
            db.executemany(
                "UPDATE parcels SET due_at = ?, leased_until = 0, attempts = attempts + ?, "
                "reason = coalesce(?, reason) WHERE seq = ?",
                [(due, int(attempted), reason, seq) for seq in seqs],
            )

    def hurry(self, address: str) -> None:
        """Make every waiting parcel for `address` due now, as a flush wants it."""
        with self._transaction() as db:
            db.execute("UPDATE parcels SET due_at = 0 WHERE dead = 0 AND address = ?", (address,))

    def bury(self, seq: int, *, reason: str) -> None:
        """The parcel can never arrive: keep it as a dead letter with its reason."""
        with self._transaction() as db:
            db.execute("UPDATE parcels SET dead = 1, attempts = attempts + 1, reason = ? WHERE seq = ?", (reason, seq))

    def parcels(self) -> Iterator[Parcel]:
        """Every parcel, leased ones and dead letters too, oldest first; the outbox works on meanwhile."""
        seq = -1
        while True:
            with self._using() as db:
                rows = db.execute(
                    f"SELECT {_COLUMNS} FROM parcels WHERE seq > ? ORDER BY seq LIMIT 100",  # noqa: S608  constants only
                    (seq,),
                ).fetchall()
            if not rows:
                return
            yield from map(_parcel, rows)
            seq = rows[-1][0]

    def purge(self, lanes: Collection[str]) -> int:
        """Drop all parcels of these lanes, for any address, dead letters too; returns how many went.

        Their bytes leave the file with the next `scrub`.
        """
        with self._transaction() as db:
            seqs = [(seq,) for seq, lane in db.execute("SELECT seq, lane FROM parcels") if lane in lanes]
            db.executemany("DELETE FROM parcels WHERE seq = ?", seqs)
        return len(seqs)

    def scrub(self, *, seconds: float = 1.0) -> bool:
        """Take the bytes of all that was dropped or delivered out of the file; False when others use it for so long."""
        deadline = time.monotonic() + seconds
        for step in ("VACUUM", "PRAGMA wal_checkpoint(TRUNCATE)"):
            while not self._undisturbed(step):
                if time.monotonic() > deadline:
                    return False
                time.sleep(0.01)
        return True

    def counts(self, address: str | None = None) -> Counts:
        """How many wait and how many are dead, for one address or for all."""
        with self._using() as db:
            rows = db.execute(
                "SELECT dead, count(*) FROM parcels WHERE address = coalesce(?, address) GROUP BY dead", (address,)
            ).fetchall()
        found = dict(rows)
        return Counts(pending=found.get(0, 0), dead=found.get(1, 0))

    def dead_letters(self, *, limit: int = 100) -> list[Parcel]:
        """The oldest dead letters, each with its reason."""
        with self._using() as db:
            rows = db.execute(
                f"SELECT {_COLUMNS} FROM parcels WHERE dead = 1 ORDER BY seq LIMIT ?",  # noqa: S608  constants only
                (limit,),
            ).fetchall()
        return [_parcel(row) for row in rows]

    def revive(self) -> int:
        """Make every dead letter wait for delivery again, now; returns how many there were."""
        with self._transaction() as db:
            cursor = db.execute(
                "UPDATE parcels SET dead = 0, due_at = 0, leased_until = 0, attempts = 0 WHERE dead = 1"
            )
            return cursor.rowcount

    def next_due(self, address: str) -> float | None:
        """When the earliest waiting parcel for `address` is due, in seconds since 1970, or None."""
        with self._using() as db:
            (due,) = db.execute(
                "SELECT min(max(due_at, leased_until)) FROM parcels WHERE dead = 0 AND address = ?", (address,)
            ).fetchone()
        return due if due is None else float(due)

    def checkpoint(self) -> None:
        """Move the write-ahead log into the file, without waiting for anybody."""
        with self._using() as db:
            db.execute("PRAGMA wal_checkpoint(PASSIVE)")

    def close(self, *, discard_if_empty: bool = False) -> None:
        """Close and give up the lock; a file with nothing in it may go."""
        with self._guard:
            empty = False
            if discard_if_empty:
                try:
                    empty = self._db.execute("SELECT NOT EXISTS (SELECT 1 FROM parcels)").fetchone()[0] == 1
                except sqlite3.ProgrammingError:
                    return
            self._db.close()
        if self._lock is not None:
            if empty:
                _remove(self.path)
            os.close(self._lock)
            self._lock = None

    def forsake(self) -> None:
        """In a child of fork: let go of the parent's file without touching it."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _undisturbed(self, step: str) -> bool:
        """Whether the step could be done; a checkpoint that meets another gives up whatever it was told to wait.

        https://www.sqlite.org/c3ref/wal_checkpoint_v2.html
        """
        with self._using() as db:
            # Whoever writes waits for this: not for long.
            db.execute("PRAGMA busy_timeout = 100")
            try:
                answer = db.execute(step).fetchone()
            except sqlite3.OperationalError:
                return False
            finally:
                db.execute(f"PRAGMA busy_timeout = {_PATIENCE_MS}")
        return answer is None or answer[0] == 0

    @contextmanager
    def _using(self) -> Iterator[sqlite3.Connection]:
        with self._guard:
            try:
                yield self._db
            except sqlite3.Error as error:
                raise OutboxError(f"cannot use the outbox {self.path}: {error}") from error

    def __del__(self) -> None:
        """Python 3.13 warns the host of a connection that nobody closed, though nothing is lost with it."""
        if hasattr(self, "_db"):
            self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._using() as db:
            db.execute("BEGIN IMMEDIATE")
            try:
                yield db
                db.execute("COMMIT")
            except BaseException:
                # A full disk ends the transaction itself.
                if db.in_transaction:
                    db.execute("ROLLBACK")
                raise


def outbox_files(folder: Path) -> list[Path]:
    """The outbox files in `folder`, oldest first."""
    found = []
    for path in folder.glob("*.sqlite"):
        # Its process may end, and take it away, at any moment.
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(found)]


def _prepare(db: sqlite3.Connection, path: Path, *, checkpoints: bool) -> None:
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(f"PRAGMA wal_autocheckpoint = {4000 if checkpoints else 0}")
    (version,) = db.execute("PRAGMA user_version").fetchone()
    if version > _SCHEMA_VERSION:
        raise OutboxError(f"{path} was written by a newer contextwrap: upgrade this one")
    if version < _SCHEMA_VERSION:
        db.executescript(_DDL + f"PRAGMA user_version = {_SCHEMA_VERSION};")


def _parcel(row: tuple[int, str, str, str, str, str, bytes, float, int, str | None]) -> Parcel:
    seq, key, address, lane, method, target, body, created_at, attempts, reason = row
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


def _claim(path: Path) -> int | None:
    """The descriptor that holds `path`'s lock, or None when somebody else does; the kernel frees it at death."""
    handle = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def _remove(path: Path) -> None:
    for suffix in (".sqlite", ".sqlite-wal", ".sqlite-shm", ".lock"):
        path.with_suffix(suffix).unlink(missing_ok=True)
