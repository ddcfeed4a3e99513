"""Where a client's logs go: the seam between what is recorded and what becomes of it.

`OutboxKeep` is the one apps have: an outbox of this process's own, and with an endpoint a courier that empties it.
`testing` has one in memory.
"""

from __future__ import annotations

import os
import threading
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Final, Protocol, cast

from contextwrap.errors import OutboxCorruptError, OutboxError, WireError
from contextwrap.forking import settled
from contextwrap.model import Log, Request
from contextwrap.settings import LOCAL

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path
    from types import ModuleType
    from typing import Literal

    from contextwrap.courier import Courier
    from contextwrap.outbox import Outbox, Parcel
    from contextwrap.settings import Settings
    from contextwrap.window import Window


IN_USE: Final = "forget: the words are still in a file that is in use, forget once more"
# A thread that is not waiting for a server ends at once.
_STOP_SECONDS: Final = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushResult:
    """What a flush left behind: parcels delivered by this process so far, still waiting, and dead letters.

    In local mode everything waits, on disk, until `contextwrap serve` takes it.
    """

    delivered: int = 0
    pending: int = 0
    dead: int = 0


class Keep(Protocol):
    """What a client needs of the place its logs go to; threads share it."""

    def put(self, log: Log, *, key: str, lane: str, at: float) -> None:
        """Keep one log; those of a `lane` stay in order. `at` is seconds since 1970."""

    def flush(self, timeout: float, *, patient: bool = True) -> FlushResult:
        """Deliver what waits, for at most `timeout` seconds; not patient, only while the server can be reached."""

    def state(self) -> FlushResult:
        """What was delivered so far and what is left."""

    def forget(self, user_id: str, *, lost: Callable[[str], None]) -> int:
        """Drop what waits of this user and of their threads; says how much that was."""

    def close(self) -> None:
        """No more logs come."""

    def forsake(self) -> None:
        """This is a child of fork: what there is is the parent's."""


class OutboxKeep:
    """Logs wait as parcels on disk; nothing is opened before there is one."""

    def __init__(self, settings: Settings, *, lost: Callable[[str], None]) -> None:
        """`lost` is told of what `put` took and could not keep. OutboxError for a home that cannot be written."""
        self._settings = settings
        self._lost = lost
        self._folder = settings.home / "outbox"
        self._opening = threading.RLock()
        self._room: ModuleType | None = None
        self.outbox: Outbox | None = None
        self._window: Window | None = None
        self._courier: Courier | None = None
        _probe(settings.home)

    def put(self, log: Log, *, key: str, lane: str, at: float) -> None:
        """On disk when it returns, or within 5 ms if that is the durability; OutboxError when it cannot be."""
        request = log.to_request()
        parcel = (self._room or self._load()).Parcel(
            key=key,
            address=self._settings.address,
            lane=f"{log.tenant_id}/{lane}",
            method=request.method,
            target=request.target,
            body=request.body,
            created_at=at,
        )
        if self._settings.durability == "background":
            if self.outbox is None:
                # To make the file takes longer than the window is.
                self.open()
            self._opened_window().put(parcel)
        else:
            self._write([parcel])

    def flush(self, timeout: float, *, patient: bool = True) -> FlushResult:
        """What the courier manages in time, also of what others left in this home."""
        if self._window is not None:
            self._window.empty()
        from contextwrap.boxfiles import outbox_files  # noqa: PLC0415  see above

        courier = self._courier
        if courier is None and patient and self._settings.address != LOCAL and outbox_files(self._folder):
            courier = self._opened_courier()
        if courier is not None:
            courier.flush(timeout, patient=patient)
        return self.state()

    def state(self) -> FlushResult:
        """What the courier delivered so far, and what is left in this process's own file."""
        delivered = self._courier.delivered if self._courier else 0
        if self.outbox is None:
            return FlushResult(delivered=delivered)
        counts = self.outbox.counts()
        return FlushResult(delivered=delivered, pending=counts.pending, dead=counts.dead)

    def forget(self, user_id: str, *, lost: Callable[[str], None]) -> int:
        """From every outbox of this home."""
        if self._window is not None:
            self._window.empty()
        return forget_in(self._settings.home, user_id, lost=lost)

    def close(self) -> None:
        """Stop the courier; what waits stays on disk."""
        if self._window is not None:
            self._window.close()
        with self._opening:
            if self._courier is not None:
                self._courier.stop(_STOP_SECONDS)
            if self.outbox is not None:
                self.outbox.close(discard_if_empty=True)

    def forsake(self) -> None:
        """The parent's file, threads and locks are the parent's."""
        if self._courier is not None:
            self._courier.forsake()
        if self.outbox is not None:
            self.outbox.forsake()
        self._opening = threading.RLock()
        self.outbox = None
        self._window = None
        self._courier = None

    def open(self) -> Outbox:
        """The outbox, and its courier, from now on."""
        room = self._room or self._load()
        with self._opening:
            if self.outbox is None:
                remote = self._settings.address != LOCAL
                self.outbox = room.Outbox.create(
                    self._folder, checkpoints=not remote, limit=self._settings.outbox_limit
                )
                if remote:
                    self._opened_courier().outbox = self.outbox
            return self.outbox

    def _load(self) -> ModuleType:
        """SQLite and all that is needed to write: not needed to import an app."""
        with settled:
            from contextwrap import outbox  # noqa: PLC0415  see above

            self._room = outbox
        return outbox

    def _write(self, parcels: Sequence[Parcel]) -> None:
        outbox = self.outbox or self.open()
        try:
            outbox.put(parcels)
        except OutboxCorruptError as error:
            self._replace(outbox, partial(outbox.set_aside, error))
            self.open().put(parcels)
        else:
            # SQLite goes on writing to a file that somebody has deleted: nobody would ever read it.
            if not os.access(outbox.path, os.F_OK):
                self._lost("outbox: its file was deleted")
                self._replace(outbox, outbox.close)
                self.open().put(parcels)
        if self._courier is not None:
            self._courier.wake()

    def _replace(self, outbox: Outbox, end: Callable[[], None]) -> None:
        """Go on in a new file."""
        with self._opening:
            if self.outbox is outbox:
                self.outbox = None
                end()

    def _opened_window(self) -> Window:
        window = self._window
        if window is None:
            with settled:
                from contextwrap.window import Window  # noqa: PLC0415  only for who wants it

            with self._opening:
                window = self._window = self._window or Window(self._write, lost=self._lost)
        return window

    def _opened_courier(self) -> Courier:
        with settled:
            from contextwrap.courier import Courier  # noqa: PLC0415  see above
            from contextwrap.transport import ContextTransport  # noqa: PLC0415

        settings = self._settings
        with self._opening:
            if self._courier is None:
                # An address that is not local has both.
                endpoint, token = cast("str", settings.endpoint), cast("str", settings.token)
                transport = ContextTransport(endpoint=endpoint, token=token)
                self._courier = Courier(
                    folder=self._folder, outbox=self.outbox, address=settings.address, transport=transport
                )
            return self._courier


def forget_in(home: Path, user_id: str, *, lost: Callable[[str], None]) -> int:
    """Drop what waits of this user and of their threads in every outbox of the home, whosever it is.

    Says how many parcels went; `lost` is told of a file that cannot be used or still holds the words.
    """
    from contextwrap.outbox import outbox_files  # noqa: PLC0415  see above

    lanes: set[str] = set()

    def find(outbox: Outbox) -> int:
        lanes.update(parcel.lane for parcel in outbox.parcels() if _user(parcel) == user_id)
        return 0

    # What a thread's rating waits in need not be the file that names its user.
    for path in outbox_files(home / "outbox"):
        _visited(path, find, lost)
    return purge_in(home, lanes, lost=lost)


def purge_in(home: Path, lanes: Collection[str], *, lost: Callable[[str], None]) -> int:
    """Drop what waits and what is dead in these lanes, in every outbox of the home; says how many parcels went."""
    from contextwrap.outbox import outbox_files  # noqa: PLC0415  see above

    def drop(outbox: Outbox) -> int:
        gone = outbox.purge(lanes)
        if not outbox.scrub():
            lost(IN_USE)
        return gone

    return sum(_visited(path, drop, lost) or 0 for path in outbox_files(home / "outbox"))


def _visited(path: Path, do: Callable[[Outbox], int], lost: Callable[[str], None]) -> int | None:
    from contextwrap.outbox import Outbox  # noqa: PLC0415  see above

    try:
        # Opening a file that has gone meanwhile would make it anew.
        if not path.exists():
            return None
        with closing(Outbox(path)) as outbox:
            return do(outbox)
    except OutboxError as error:
        lost(f"forget: {error}")
        return None


def _user(parcel: Parcel) -> str | None:
    method = cast("Literal['POST', 'PATCH']", parcel.method)
    try:
        log = Log.from_request(Request(method=method, target=parcel.target, body=parcel.body))
    except WireError:
        return None
    return log.conversation.user_id if log.conversation is not None else None


def _probe(home: Path) -> None:
    """Make the home's folder, or say now what recording would say later."""
    try:
        (home / "outbox").mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise OutboxError(
            f"cannot write to {home} ({error.strerror}): set CONTEXTWRAP_HOME or home= to a folder you may write"
        ) from error
    if not os.access(home / "outbox", os.W_OK | os.X_OK):
        raise OutboxError(f"cannot write to {home}: set CONTEXTWRAP_HOME or home= to a folder you may write")
