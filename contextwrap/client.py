"""ContextWrap: settings, outbox and courier as one thing, and the default one that decorators find late.

`record` and `rate` end with one append to the outbox: when they return, the record is on disk. They never
raise into the host's call; what could not be kept is counted in `stats()`.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import weakref
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Self, cast
from urllib.parse import urlsplit

from contextwrap.errors import OutboxError
from contextwrap.guard import Guard, logger
from contextwrap.ids import new_id
from contextwrap.model import RATINGS, Conversation, Log, RatingMark, Route
from contextwrap.outbox import LOCAL, Parcel
from contextwrap.settings import Settings, load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from contextwrap.courier import Courier
    from contextwrap.model import Rating
    from contextwrap.outbox import Outbox


@dataclass(frozen=True, slots=True, kw_only=True)
class FlushResult:
    """What a flush left behind: parcels delivered by this process so far, still waiting, and dead letters.

    In local mode everything waits, on disk, until `contextwrap serve` takes it.
    """

    delivered: int
    pending: int
    dead: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What this process recorded so far, and what it lost, by reason."""

    recorded: int
    lost: Mapping[str, int]


class ContextWrap:
    """Records conversations. Use the default one through `configure`, or make your own.

    Every keyword is a row of `contextwrap.settings.TABLE`; `clock` answers the time of what is recorded
    without one (aware; default: now). Raises ConfigurationError for settings that cannot work and OutboxError
    for a home that cannot be written.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        token: str | None = None,
        home: str | Path | None = None,
        tenant_id: str | None = None,
        disabled: bool | None = None,
        exit_timeout: float | None = None,
        allow_http: bool | None = None,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self.settings: Settings = load(
            {
                "endpoint": endpoint,
                "token": token,
                "home": home,
                "tenant_id": tenant_id,
                "disabled": disabled,
                "exit_timeout": exit_timeout,
                "allow_http": allow_http,
            }
        )
        self._clock = clock or _now
        self.guard = Guard()
        self._recorded = 0
        self._opening = threading.Lock()
        self._counting = threading.Lock()
        self._outbox: Outbox | None = None
        self._courier: Courier | None = None
        self._closed = False
        if not self.settings.disabled:
            _probe(self.settings.home)
            _warn_of_the_old_host(self.settings.endpoint)
        _living.add(self)

    def now(self) -> datetime:
        """The time by this client's clock."""
        return self._clock()

    def record(self, conversation: Conversation) -> Conversation | None:
        """Keep the conversation's messages; to one with an id of before they are appended.

        Returns it with every id filled in, or None when it could not be kept.
        """
        with self.guard("record"):
            log = Log(route=Route.THREAD, tenant_id=self.settings.tenant_id, conversation=conversation)
            if not self._accepts("record"):
                return None
            key = new_id()
            sealed = log.sealed(key=key, at=self._clock())
            assert sealed.conversation is not None
            self._put(sealed, key=key, lane=sealed.conversation.id or key)
            with self._counting:
                self._recorded += 1
            return sealed.conversation
        return None

    def rate(
        self, rating: Rating, *, message: str | None = None, thread: str | None = None, feedback: str | None = None
    ) -> bool:
        """Rate the message of that id, or the newest answer of the thread of that id: -1, 0 or +1.

        Give `thread` beside `message` when you know it: then the rating can never overtake its message.
        Returns whether it was kept; it does not wait for delivery.
        """
        if isinstance(rating, bool) or rating not in RATINGS:
            self.guard.lost("rate: a rating is -1, 0 or +1")
            return False
        target = message or thread
        if target is None:
            self.guard.lost("rate: there is no answer to rate")
            return False
        with self.guard("rate"):
            if not self._accepts("rate"):
                return False
            mark = RatingMark(rating=rating, feedback=feedback)
            log = Log(route=Route.RATING, tenant_id=self.settings.tenant_id, rated=target, marks=(mark,))
            self._put(log, key=new_id(), lane=thread or target)
            return True
        return False

    def flush(self, timeout: float = 10.0) -> FlushResult:
        """Deliver what waits, for at most `timeout` seconds; says what became of it."""
        with self.guard("flush"):
            if self._courier is not None:
                self._courier.flush(timeout)
            if self._outbox is not None:
                counts = self._outbox.counts()
                delivered = self._courier.delivered if self._courier else 0
                return FlushResult(delivered=delivered, pending=counts.pending, dead=counts.dead)
        return FlushResult(delivered=0, pending=0, dead=0)

    async def aflush(self, timeout: float = 10.0) -> FlushResult:  # noqa: ASYNC109  the same word as flush
        """`flush`, without blocking the event loop."""
        return await asyncio.to_thread(self.flush, timeout)

    def stats(self) -> Stats:
        """What was recorded and what was lost, since this client was made."""
        return Stats(recorded=self._recorded, lost=self.guard.counts())

    def shutdown(self, timeout: float | None = None) -> FlushResult:
        """Flush within `timeout` seconds (default: exit_timeout) and stop; the rest stays on disk."""
        if self._closed:
            return FlushResult(delivered=0, pending=0, dead=0)
        result = self.flush(self.settings.exit_timeout if timeout is None else timeout)
        self._closed = True
        with self.guard("shutdown"), self._opening:
            if self._courier is not None:
                self._courier.stop(0.2)
            if self._outbox is not None:
                self._outbox.close(discard_if_empty=True)
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def _accepts(self, doing: str) -> bool:
        if self._closed and not self.settings.disabled:
            self.guard.lost(f"{doing}: after shutdown")
        return not (self._closed or self.settings.disabled)

    def _put(self, log: Log, *, key: str, lane: str) -> None:
        outbox = self._outbox or self._open()
        request = log.to_request()
        outbox.put(
            [
                Parcel(
                    key=key,
                    address=self.settings.address,
                    lane=f"{log.tenant_id}/{lane}",
                    method=request.method,
                    target=request.target,
                    body=request.body,
                    created_at=self._clock().timestamp(),
                )
            ]
        )
        if self._courier is not None:
            self._courier.wake()

    def _open(self) -> Outbox:
        from contextwrap.outbox import Outbox  # noqa: PLC0415  sqlite3 is not needed to import an app

        with self._opening:
            if self._outbox is None:
                settings = self.settings
                remote = settings.address != LOCAL
                outbox = Outbox.create(settings.home / "outbox", checkpoints=not remote)
                if remote:
                    from contextwrap.courier import Courier  # noqa: PLC0415
                    from contextwrap.transport import ContextTransport  # noqa: PLC0415

                    # An address that is not local has both.
                    endpoint, token = cast("str", settings.endpoint), cast("str", settings.token)
                    transport = ContextTransport(endpoint=endpoint, token=token)
                    self._courier = Courier(outbox=outbox, address=settings.address, transport=transport)
                self._outbox = outbox
            return self._outbox

    def _after_fork(self) -> None:
        """In a child of fork: the parent's file, thread and locks are the parent's."""
        if self._outbox is not None:
            self._outbox.forsake()
        if self._courier is not None:
            self._courier.forsake()
        self._opening = threading.Lock()
        self._counting = threading.Lock()
        self.guard = Guard()
        self._outbox = None
        self._courier = None
        self._recorded = 0


class _Default:
    """The one piece of global state: the client that `wrap`, decorators and sessions use."""

    def __init__(self) -> None:
        self.client: ContextWrap | None = None
        self.lock = threading.Lock()


def configure(
    *,
    endpoint: str | None = None,
    token: str | None = None,
    home: str | Path | None = None,
    tenant_id: str | None = None,
    disabled: bool | None = None,
    exit_timeout: float | None = None,
    allow_http: bool | None = None,
    clock: Callable[[], datetime] | None = None,
) -> ContextWrap:
    """Make the default client anew, for all that is wrapped already and all that will be.

    The one before is shut down. Raises ConfigurationError and OutboxError, like ContextWrap.
    """
    client = ContextWrap(
        endpoint=endpoint,
        token=token,
        home=home,
        tenant_id=tenant_id,
        disabled=disabled,
        exit_timeout=exit_timeout,
        allow_http=allow_http,
        clock=clock,
    )
    with _default.lock:
        before, _default.client = _default.client, client
    if before is not None:
        before.shutdown()
    return client


def default_client() -> ContextWrap:
    """The default client, made from the environment if `configure` was not called.

    It is asked for in the host's calls: an environment that cannot work is logged once, and records nothing.
    """
    client = _default.client
    if client is None:
        with _default.lock:
            client = _default.client
            if client is None:
                client = _default.client = _from_environment()
    return client


def is_configured() -> bool:
    """Whether there is a default client yet."""
    return _default.client is not None


def reset_defaults() -> None:
    """Shut the default client down and forget it, as tests want it."""
    with _default.lock:
        client, _default.client = _default.client, None
    if client is not None:
        client.shutdown()


def flush(timeout: float = 10.0) -> FlushResult:
    """Deliver what the default client holds; see `ContextWrap.flush`."""
    return default_client().flush(timeout)


def shutdown(timeout: float | None = None) -> FlushResult:
    """Flush and stop the default client; see `ContextWrap.shutdown`."""
    return default_client().shutdown(timeout)


def _from_environment() -> ContextWrap:
    guard = Guard()
    with guard("start"):
        return ContextWrap()
    # Everything said, so that nothing is read from the environment that has just failed.
    idle = ContextWrap(disabled=True, home=".", tenant_id="", exit_timeout=0.0, allow_http=False)
    idle.guard = guard
    return idle


def _now() -> datetime:
    return datetime.now(UTC)


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


def _warn_of_the_old_host(endpoint: str | None) -> None:
    host = (urlsplit(endpoint).hostname or "") if endpoint else ""
    if host == "context.ai" or host.endswith(".context.ai"):
        logger.warning("contextwrap: %s no longer serves the Context API but another company's product", host)


def _at_exit() -> None:
    for client in list(_living):
        client.shutdown()


def _in_child() -> None:
    _default.lock = threading.Lock()
    for client in list(_living):
        client._after_fork()  # noqa: SLF001  its own module


_default = _Default()
_living: weakref.WeakSet[ContextWrap] = weakref.WeakSet()
atexit.register(_at_exit)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
