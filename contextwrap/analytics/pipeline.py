"""From the journal and the local outboxes into the store: nothing is acknowledged before it is stored.

What is read twice is stored once, because the store knows each parcel's key. What can never be stored is kept
as a dead letter with its reason. Knows a `Store` and `Outbox`es; nothing of HTTP.
"""

from __future__ import annotations

import logging
import sqlite3
import threading
import time
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Literal, TypeAlias, cast

from contextwrap.errors import OutboxError, WireError
from contextwrap.model import Log, Request
from contextwrap.outbox import LOCAL, Outbox, outbox_files
from contextwrap.store.records import Entry

if TYPE_CHECKING:
    from pathlib import Path

    from contextwrap.outbox import Parcel
    from contextwrap.store.records import Store

    Letter: TypeAlias = tuple[Parcel, Entry]

logger = logging.getLogger("contextwrap")

BATCH: Final = 1000
POLL_SECONDS: Final = 0.3
LEASE_SECONDS: Final = 15.0
CHECKPOINT_SECONDS: Final = 30.0
SHUN_SECONDS: Final = 60.0
LONGEST_PAUSE_SECONDS: Final = 30.0
TRIES: Final = 3
_UNREADABLE: Final = (OutboxError, sqlite3.Error, OSError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Drained:
    """What became of parcels.

    `retried` went back because they rate what may lie in an outbox not yet read, `failed` because the store
    did not take them; both are leased again later.
    """

    applied: int = 0
    duplicates: int = 0
    dead: int = 0
    retried: int = 0
    failed: int = 0

    def __add__(self, other: Drained) -> Drained:
        """Both counts as one."""
        return Drained(**{item.name: getattr(self, item.name) + getattr(other, item.name) for item in fields(self)})

    def __bool__(self) -> bool:
        """Whether there was any parcel."""
        return self != Drained()


class Pipeline:
    """Carries parcels to the store, in a thread of its own (`start`, `stop`) or in the caller's (`drain`)."""

    def __init__(self, *, store: Store, journal: Outbox, outboxes: Path | None) -> None:
        """`outboxes` is the folder of this machine's outbox files, or None to leave them alone."""
        self._store = store
        self._journal = journal
        self._folder = outboxes
        self._living: dict[Path, Outbox] = {}
        self._finished: set[Path] = set()
        self._shunned: dict[Path, float] = {}
        self._busy = threading.Lock()
        self._awake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        # Looks at the journal are numbered as they begin; a clean one left nothing behind.
        self._looked = threading.Condition()
        self._look = 0
        self._clean_look = 0

    def start(self) -> None:
        """Carry from now on, in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="contextwrap-pipeline", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Finish the batch at hand and let go of the outboxes; what is left stays on disk."""
        if self._thread is not None:
            self._stopping.set()
            self._awake.set()
            self._thread.join()
            self._thread = None
            self._stopping.clear()
        with self._busy:
            while self._living:
                self._living.popitem()[1].close()

    def wake(self) -> None:
        """Look now instead of at the next poll."""
        self._awake.set()

    def depth(self) -> int:
        """How many parcels wait in the journal."""
        return self._journal.counts(LOCAL).pending

    def settle(self, timeout: float) -> bool:
        """Wait until all that is in the journal now is stored; False when `timeout` seconds are not enough."""
        if not self._journal.has_waiting(LOCAL):
            return True
        with self._looked:
            wanted = self._look + 1
            self.wake()
            return self._looked.wait_for(lambda: self._clean_look >= wanted, timeout)

    def drain(self) -> Drained:
        """Carry all there is, in the caller's thread; ends early, with `failed`, when the store takes nothing."""
        total = Drained()
        while drained := self._sweep():
            total += drained
            if drained.failed:
                break
        return total

    def _run(self) -> None:
        pause, checkpoint_at = 0.0, time.monotonic() + CHECKPOINT_SECONDS
        stored = False
        while not self._stopping.wait(pause):
            self._awake.clear()
            try:
                drained = self._sweep()
                stored = stored or drained.applied > 0
                if stored and not drained and time.monotonic() >= checkpoint_at:
                    self._store.checkpoint()
                    self._journal.checkpoint()
                    stored, checkpoint_at = False, time.monotonic() + CHECKPOINT_SECONDS
            except Exception:
                logger.exception("contextwrap: the pipeline pauses after an error")
                drained = Drained(failed=1)
            # A store that fails is not asked sooner because somebody wakes us.
            pause = min(LONGEST_PAUSE_SECONDS, pause * 2 or 1.0) if drained.failed else 0.0
            if not drained:
                self._awake.wait(POLL_SECONDS)

    def _sweep(self) -> Drained:
        """Empty the journal and every outbox file once."""
        with self._busy:
            total = self._empty_journal()
            for path in self._paths():
                if total.failed or self._stopping.is_set():
                    break
                try:
                    total += self._empty_file(path)
                except _UNREADABLE as error:
                    self._shun(path, error)
            return total

    def _empty_journal(self) -> Drained:
        with self._looked:
            self._look += 1
            look = self._look
        drained = self._empty(self._journal)
        if not (drained.failed or drained.retried or self._stopping.is_set()):
            with self._looked:
                self._clean_look = look
                self._looked.notify_all()
        return drained

    def _empty_file(self, path: Path) -> Drained:
        adopted = Outbox.adopt(path)
        if adopted is None:
            if path not in self._living:
                self._living[path] = Outbox(path)
            return self._empty(self._living[path])
        self._forget(path)
        try:
            drained = self._empty(adopted)
            finished = not adopted.has_waiting(LOCAL)
        except BaseException:
            adopted.close()
            raise
        adopted.close(discard_if_empty=finished)
        if finished:
            self._finished.add(path)
        return drained

    def _empty(self, outbox: Outbox) -> Drained:
        """Carry batch after batch until `outbox` has no more."""
        total = Drained()
        early: list[int] = []
        try:
            while outbox.has_waiting(LOCAL) and not total.failed and not self._stopping.is_set():
                parcels = outbox.lease(LOCAL, limit=BATCH, seconds=LEASE_SECONDS)
                if not parcels:
                    break
                total += self._carry(outbox, parcels, early)
                if outbox is not self._journal and not total.failed:
                    # A long backlog here must not keep waiting who reads what was just logged.
                    total += self._empty_journal()
        finally:
            outbox.defer(early, seconds=0, reason="rates something unknown so far")
        return total

    def _carry(self, outbox: Outbox, parcels: list[Parcel], early: list[int]) -> Drained:
        """Store one batch and acknowledge it; ratings that came too early are added to `early`, still leased."""
        dead = Drained()
        letters: list[Letter] = []
        for parcel in parcels:
            entry = _entry(parcel)
            if isinstance(entry, Entry):
                letters.append((parcel, entry))
            else:
                outbox.bury(parcel.seq, reason=entry)
                dead += Drained(dead=1)
        try:
            return dead + self._keep(outbox, letters, early)
        except Exception as error:  # noqa: BLE001  whatever it is, nothing may be lost by it
            logger.warning("contextwrap: %d parcels not stored yet: %s", len(letters), _line(error))
        return dead + self._keep_singly(outbox, letters, early)

    def _keep(self, outbox: Outbox, letters: list[Letter], early: list[int]) -> Drained:
        result = self._store.apply([entry for _, entry in letters])
        unmatched = set(result.unmatched)
        outbox.ack([parcel.seq for parcel, entry in letters if entry.key not in unmatched])
        retried = dead = 0
        for parcel, _ in (letter for letter in letters if letter[1].key in unmatched):
            # What it rates may lie in the outbox of another process, or of one that is read later.
            if parcel.attempts + 1 < TRIES:
                early.append(parcel.seq)
                retried += 1
            else:
                outbox.bury(parcel.seq, reason="rates something unknown")
                dead += 1
        return Drained(applied=result.applied, duplicates=result.duplicates, dead=dead, retried=retried)

    def _keep_singly(self, outbox: Outbox, letters: list[Letter], early: list[int]) -> Drained:
        """After a failure: a parcel that fails again and again while others are stored is itself the reason."""
        total = Drained()
        refused: list[tuple[Parcel, str]] = []
        for parcel, entry in letters:
            try:
                total += self._keep(outbox, [(parcel, entry)], early)
            except Exception as error:  # noqa: BLE001  likewise
                refused.append((parcel, f"the store refuses it: {_line(error)}"))
        others_stored = bool(total)
        for parcel, reason in refused:
            if others_stored and parcel.attempts + 1 >= TRIES:
                outbox.bury(parcel.seq, reason=reason)
                total += Drained(dead=1)
            else:
                outbox.defer([parcel.seq], seconds=0, reason=reason)
                total += Drained(failed=1)
        return total

    def _paths(self) -> list[Path]:
        """The outbox files worth a look; lets go of those that are gone."""
        if self._folder is None:
            return []
        listed = outbox_files(self._folder)
        for path in self._living.keys() - set(listed):
            self._forget(path)
        self._finished &= set(listed)
        now = time.monotonic()
        return [path for path in listed if path not in self._finished and self._shunned.get(path, now) <= now]

    def _forget(self, path: Path) -> None:
        outbox = self._living.pop(path, None)
        if outbox is not None:
            outbox.close()

    def _shun(self, path: Path, error: Exception) -> None:
        self._forget(path)
        if path not in self._shunned:
            logger.warning("contextwrap: cannot read %s, the others go on: %s", path, _line(error))
        self._shunned[path] = time.monotonic() + SHUN_SECONDS


def _entry(parcel: Parcel) -> Entry | str:
    """What the parcel says, or why nobody can tell."""
    try:
        method = cast('Literal["POST", "PATCH"]', parcel.method)
        log = Log.from_request(Request(method=method, target=parcel.target, body=parcel.body))
        at = datetime.fromtimestamp(parcel.created_at, UTC)
        return Entry(key=parcel.key, log=log.sealed(key=parcel.key, at=at))
    except WireError as error:
        return str(error)
    except Exception as error:  # noqa: BLE001  a body nobody foresaw is a dead letter, not the end of the queue
        return _line(error)


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {error}".splitlines()[0][:300]
