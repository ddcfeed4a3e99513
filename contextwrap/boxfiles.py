"""The files of an outbox: which there are, whose they are, how they are opened and how they are put away.

An outbox is one SQLite file with its write-ahead log and a lock that its process holds for life. Works where fcntl
does: Linux and macOS.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from contextlib import closing, contextmanager, suppress
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from contextwrap.errors import OutboxCorruptError, OutboxError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


_SCHEMA_VERSION: Final = 2
# Other processes write here only for the length of one small transaction: waiting beats failing.
PATIENCE_MS: Final = 5000
# Only `parcels` is written while somebody waits: one row at its end and no index beside it is 11 µs a put, where a
# unique key, an index by lane and AUTOINCREMENT's own table make it 28. So a number may come back once all rows are
# gone, and it is the lease that says whose an ack is.
_DDL: Final = """
CREATE TABLE parcels (
    seq INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    address TEXT NOT NULL,
    lane TEXT NOT NULL,
    method TEXT NOT NULL,
    target TEXT NOT NULL,
    body BLOB NOT NULL,
    created_at REAL NOT NULL
) STRICT;
CREATE TABLE deferred (
    seq INTEGER PRIMARY KEY,
    due_at REAL NOT NULL,
    attempts INTEGER NOT NULL,
    reason TEXT
) STRICT;
CREATE TABLE dead_letters (
    seq INTEGER PRIMARY KEY,
    key TEXT NOT NULL,
    address TEXT NOT NULL,
    lane TEXT NOT NULL,
    method TEXT NOT NULL,
    target TEXT NOT NULL,
    body BLOB NOT NULL,
    created_at REAL NOT NULL,
    attempts INTEGER NOT NULL,
    reason TEXT
) STRICT;
CREATE TABLE carriers (
    address TEXT PRIMARY KEY,
    carrier TEXT,
    leased_until REAL NOT NULL DEFAULT 0,
    due_at REAL NOT NULL DEFAULT 0,
    attempts INTEGER NOT NULL DEFAULT 0,
    reason TEXT
) STRICT;
"""
FIELDS: Final = "key, address, lane, method, target, body, created_at"
_FROM_VERSION_1: Final = f"""
ALTER TABLE parcels RENAME TO old_parcels;
{_DDL}
INSERT INTO parcels (seq, {FIELDS}) SELECT seq, {FIELDS} FROM old_parcels WHERE dead = 0;
INSERT INTO deferred SELECT seq, due_at, attempts, reason FROM old_parcels WHERE dead = 0 AND attempts > 0;
INSERT INTO dead_letters (seq, {FIELDS}, attempts, reason)
    SELECT seq, {FIELDS}, attempts, reason FROM old_parcels WHERE dead = 1;
DROP TABLE old_parcels;
"""
_CORRUPT: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})


def damaged_files(folder: Path) -> list[Path]:
    """What was set aside because SQLite could not read it."""
    return sorted(folder.glob("*.corrupt"))


def outbox_files(folder: Path) -> list[Path]:
    """The outbox files in `folder`, oldest first."""
    found = []
    for path in folder.glob("*.sqlite"):
        # Its process may end, and take it away, at any moment.
        with suppress(FileNotFoundError):
            found.append((path.stat().st_mtime, path))
    return [path for _, path in sorted(found)]


def stamp(path: Path) -> tuple[int, ...]:
    """What changes when anything is written to the file or its log."""
    found: list[int] = []
    for name in (path, path.with_name(f"{path.name}-wal")):
        with suppress(FileNotFoundError):
            state = name.stat()
            found += (state.st_mtime_ns, state.st_size)
    return tuple(found)


def claim(path: Path) -> int | None:
    """The descriptor that holds `path`'s lock, or None when somebody else does; the kernel frees it at death."""
    handle = os.open(path.with_suffix(".lock"), os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    return handle


def lives(path: Path) -> bool:
    """Whether the process that owns the file still does."""
    try:
        handle = os.open(path.with_suffix(".lock"), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    except OSError:
        # Another user's: whose process lives for all we can know.
        return True
    try:
        # Shared: an owner's lock is known by it, and whoever adopts in this instant takes the file for a living one.
        fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(handle)
    return False


def discard(path: Path) -> None:
    """Take an empty outbox away; whoever does holds its lock."""
    for suffix in (".sqlite", ".sqlite-wal", ".sqlite-shm", ".lock"):
        path.with_suffix(suffix).unlink(missing_ok=True)


def set_aside(path: Path) -> Path:
    """Rename a file that SQLite cannot read, log and all, so that nobody opens it again; answers its new name."""
    aside = path.with_name(f"{path.name}.corrupt")
    if aside.exists():
        aside = path.with_name(f"{path.name}.{time.time_ns()}.corrupt")
    # SQLite finds a log by its name: the two stay a pair for whoever wants to save something.
    for end in ("-wal", "-shm", ""):
        with suppress(FileNotFoundError):
            path.with_name(path.name + end).rename(aside.with_name(aside.name + end))
    return aside


@contextmanager
def committing(db: sqlite3.Connection) -> Iterator[sqlite3.Connection]:
    """One transaction, all of it or none."""
    db.execute("BEGIN IMMEDIATE")
    try:
        yield db
        db.execute("COMMIT")
    except BaseException:
        # A full disk ends the transaction itself.
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


@contextmanager
def telling(path: Path, doing: str) -> Iterator[None]:
    """SQLite's errors as ours."""
    try:
        yield
    except sqlite3.Error as error:
        raise ours(error, path, doing) from error


def ours(error: sqlite3.Error, path: Path, doing: str) -> OutboxError:
    """SQLite's error as one that names the file, and says whether it is damaged."""
    corrupt = getattr(error, "sqlite_errorcode", 0) & 0xFF in _CORRUPT
    return (OutboxCorruptError if corrupt else OutboxError)(f"cannot {doing} the outbox {path}: {error}")


def connect(path: Path) -> sqlite3.Connection:
    """A connection that threads may share, if they take turns."""
    return sqlite3.connect(path, timeout=PATIENCE_MS / 1000, isolation_level=None, check_same_thread=False)


@contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that only looks, also at a living process's file; sqlite3.Error when it cannot be read."""
    # With no write-ahead log nobody writes: only then may SQLite take the file as it lies, also on a read-only disk.
    mode = "mode=ro" if path.with_name(f"{path.name}-wal").exists() else "immutable=1"
    with closing(sqlite3.connect(f"file:{quote(str(path.absolute()))}?{mode}", uri=True, timeout=2.0)) as db:
        yield db


def prepare(db: sqlite3.Connection, path: Path, *, checkpoints: bool, owned: bool) -> None:
    """Make the tables, or bring those of an older version to this one if the file is `owned`."""
    db.execute("PRAGMA journal_mode = WAL")
    db.execute("PRAGMA synchronous = NORMAL")
    db.execute(f"PRAGMA wal_autocheckpoint = {4000 if checkpoints else 0}")
    if _version(db, path) == _SCHEMA_VERSION:
        return
    with committing(db):
        version = _version(db, path)
        if version == 1 and not owned:
            raise OutboxError(f"{path} is an older contextwrap's: it is taken over when no process has it any more")
        if version < _SCHEMA_VERSION:
            for statement in (_DDL, _FROM_VERSION_1)[version].split(";"):
                db.execute(statement)
            db.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")


def _version(db: sqlite3.Connection, path: Path) -> int:
    version: int = db.execute("PRAGMA user_version").fetchone()[0]
    if version > _SCHEMA_VERSION:
        raise OutboxError(f"{path} was written by a newer contextwrap: upgrade this one")
    return version


def check(db: sqlite3.Connection) -> None:
    """OutboxCorruptError when the file is damaged."""
    (said,) = db.execute("PRAGMA quick_check(1)").fetchone()
    if said != "ok":
        raise OutboxCorruptError(f"SQLite finds the outbox damaged: {said}")
