"""API keys, sign-in links and browser sessions, in one SQLite file that a running server and the command line share.

Secrets are stored as SHA-256 only: they are 192 random bits, which no dictionary holds, so a slow hash gains
nothing. Knows no HTTP.
"""

from __future__ import annotations

import hashlib
import os
import secrets
import sqlite3
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

from contextwrap.errors import ConfigurationError
from contextwrap.ids import new_id
from contextwrap.tokens import digest_secret, fingerprint

if TYPE_CHECKING:
    from pathlib import Path

Scope: TypeAlias = Literal["ingest", "read", "admin"]

SCOPES: Final = ("ingest", "read", "admin")
LINK_SECONDS: Final = 24 * 3600.0
SESSION_SECONDS: Final = 30 * 24 * 3600.0
_USED_EVERY: Final = 60.0
_DDL: Final = """
CREATE TABLE IF NOT EXISTS keys (
    id TEXT PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    scope TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    name TEXT NOT NULL,
    created_at REAL NOT NULL,
    used_at REAL
) STRICT;
CREATE TABLE IF NOT EXISTS passes (
    digest TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    scope TEXT NOT NULL,
    tenant_id TEXT NOT NULL,
    key_id TEXT,
    until REAL NOT NULL
) STRICT;
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Viewer:
    """Who asks: may do what `scope` says, in `tenant_id`; with "" a key names its tenant call by call.

    `key_id` is which key it came by, or None for a sign-in link.
    """

    scope: Scope
    tenant_id: str = ""
    key_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """A key without its secret; times are seconds since 1970."""

    id: str
    scope: Scope
    tenant_id: str
    name: str
    created_at: float
    used_at: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Signer:
    """Who signs rating tokens with this secret."""

    secret: bytes
    viewer: Viewer


class Keys:
    """The file of keys and passes. Threads and processes may share it."""

    def __init__(self, path: Path) -> None:
        """Open or make the file; ConfigurationError when that cannot be."""
        self._lock = threading.Lock()
        self._touched: dict[str, float] = {}
        self._lent: dict[str, Viewer] = {}
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.executescript(_DDL)
        except OSError as error:
            raise ConfigurationError(
                f"cannot write to {path.parent} ({error.strerror}): choose another --home"
            ) from error
        except sqlite3.Error as error:
            if hasattr(self, "_db"):
                self._db.close()
            raise ConfigurationError(f"cannot open the keys in {path}: {error}") from error

    def create(self, *, scope: str, tenant_id: str = "", name: str = "") -> str:
        """A new key's secret, which is shown this once. A `tenant_id` binds it to that tenant."""
        if scope not in SCOPES:
            raise ConfigurationError(f"a key's scope is one of {', '.join(SCOPES)}, not {scope!r}")
        secret = f"cw_{scope}_{secrets.token_urlsafe(24)}"
        with self._lock:
            self._db.execute(
                "INSERT INTO keys VALUES (?, ?, ?, ?, ?, ?, NULL)",
                (new_id()[-12:], _digest(secret), scope, tenant_id, name, time.time()),
            )
        return secret

    def lend(self, viewer: Viewer) -> str:
        """A key that is good as long as this object lives, and never on disk here."""
        secret = f"cw_{viewer.scope}_{secrets.token_urlsafe(24)}"
        self._lent[_digest(secret)] = viewer
        return secret

    def list(self) -> list[Key]:
        """Every key, oldest first."""
        with self._lock:
            rows = self._db.execute(
                "SELECT id, scope, tenant_id, name, created_at, used_at FROM keys ORDER BY created_at"
            ).fetchall()
        return [
            Key(id=row[0], scope=row[1], tenant_id=row[2], name=row[3], created_at=row[4], used_at=row[5])
            for row in rows
        ]

    def revoke(self, key_id: str) -> Key:
        """Let the key whose id starts with `key_id` open nothing more, nor the browsers signed in with it.

        ConfigurationError when no key's id does, or more than one.
        """
        found = [key for key in self.list() if key_id and key.id.startswith(key_id)]
        if len(found) != 1:
            which = "no key has" if not found else f"{len(found)} keys have"
            raise ConfigurationError(f"{which} an id that starts with {key_id!r}: see `contextwrap keys list`")
        with self._lock:
            self._db.execute("DELETE FROM keys WHERE id = ?", (found[0].id,))
            self._db.execute("DELETE FROM passes WHERE key_id = ?", (found[0].id,))
        return found[0]

    def check(self, secret: str) -> Viewer | None:
        """Who holds this key, or None when nobody does."""
        digest = _digest(secret)
        if digest in self._lent:
            return self._lent[digest]
        with self._lock:
            row = self._db.execute("SELECT id, scope, tenant_id FROM keys WHERE digest = ?", (digest,)).fetchone()
            if row is None:
                return None
            now = time.time()
            if now - self._touched.get(row[0], 0.0) > _USED_EVERY:
                self._touched[row[0]] = now
                self._db.execute("UPDATE keys SET used_at = ? WHERE id = ?", (now, row[0]))
        return Viewer(scope=cast("Scope", row[1]), tenant_id=row[2], key_id=row[0])

    def signer(self, name: str) -> Signer | None:
        """The key whose signing secret has that fingerprint, of those that may write; None when there is none."""
        with self._lock:
            rows = self._db.execute("SELECT digest, id, scope, tenant_id FROM keys").fetchall()
        held = {row[0]: Viewer(scope=row[2], tenant_id=row[3], key_id=row[1]) for row in rows}
        for digest, viewer in (held | self._lent).items():
            secret = digest_secret(digest)
            if viewer.scope != "read" and fingerprint(secret) == name:
                return Signer(secret=secret, viewer=viewer)
        return None

    def make_link(self, viewer: Viewer) -> str:
        """A secret that signs in once, within a day."""
        return self._make("link", viewer, LINK_SECONDS)

    def follow_link(self, secret: str) -> str | None:
        """The session that a link's secret opens, or None when it was used, has run out or never was."""
        with self._lock:
            row = self._db.execute(
                "DELETE FROM passes WHERE digest = ? AND kind = 'link' AND until > ? "
                "RETURNING scope, tenant_id, key_id",
                (_digest(secret), time.time()),
            ).fetchone()
        if row is None:
            return None
        return self.make_session(Viewer(scope=cast("Scope", row[0]), tenant_id=row[1], key_id=row[2]))

    def make_session(self, viewer: Viewer) -> str:
        """A browser session's secret, good for 30 days."""
        return self._make("session", viewer, SESSION_SECONDS)

    def session(self, secret: str) -> Viewer | None:
        """Whose session this is, or None."""
        with self._lock:
            row = self._db.execute(
                "SELECT scope, tenant_id, key_id FROM passes WHERE digest = ? AND kind = 'session' AND until > ?",
                (_digest(secret), time.time()),
            ).fetchone()
        return None if row is None else Viewer(scope=cast("Scope", row[0]), tenant_id=row[1], key_id=row[2])

    def end_session(self, secret: str) -> None:
        """Sign out."""
        with self._lock:
            self._db.execute("DELETE FROM passes WHERE digest = ? AND kind = 'session'", (_digest(secret),))

    def close(self) -> None:
        """Close the file."""
        with self._lock:
            self._db.close()

    def _make(self, kind: str, viewer: Viewer, seconds: float) -> str:
        secret = secrets.token_urlsafe(24)
        now = time.time()
        with self._lock:
            self._db.execute("DELETE FROM passes WHERE until <= ?", (now,))
            self._db.execute(
                "INSERT INTO passes VALUES (?, ?, ?, ?, ?, ?)",
                (_digest(secret), kind, viewer.scope, viewer.tenant_id, viewer.key_id, now + seconds),
            )
        return secret


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "replace")).hexdigest()
