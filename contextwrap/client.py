"""ContextWrap: settings and a place for what is recorded as one thing, and the default one that decorators find late.

`record` and `rate` end with one append to the outbox: when they return, the record is on disk. They never
raise into the host's call; what could not be kept is counted in `stats()`. This is the one way out of the app:
sampling, consent, the API's bounds and redaction all apply here, in this order, before anything is written.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import threading
import time
import weakref
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Self
from urllib.parse import urlsplit

from contextwrap.bounds import bounded, bounded_id, bounded_text, parts, within
from contextwrap.guard import Guard, logger
from contextwrap.identity import current_scope
from contextwrap.ids import new_id
from contextwrap.keeping import FlushResult, Keep, OutboxKeep, forget_in
from contextwrap.model import RATINGS, Conversation, Log, RatingMark, Route
from contextwrap.sampling import sample_key, sampled
from contextwrap.settings import Settings, load

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path
    from typing import Literal

    from contextwrap.model import Rating
    from contextwrap.redaction import Choice, Redact


_PATIENCE: Final = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What this client recorded so far, what it left out as it was told to, and what it lost, by reason.

    `outbox` is what became of the recorded: parcels delivered, waiting and refused.
    """

    recorded: int
    skipped: Mapping[str, int]
    lost: Mapping[str, int]
    outbox: FlushResult


class ContextWrap:
    """Records conversations. Use the default one through `configure`, or make your own.

    Every keyword up to `allow_http` is a row of `contextwrap.settings.TABLE`. `consent(user_id, thread_id)` says
    whether a conversation may be recorded; one that raises says no. `clock` answers the time of what is recorded
    without one (aware; default: now). `keep` is where records go, instead of an outbox on disk; then the
    environment is not read. Raises ConfigurationError for settings that cannot work and OutboxError for a home
    that cannot be written.
    """

    def __init__(
        self,
        *,
        endpoint: str | None = None,
        token: str | None = None,
        home: str | Path | None = None,
        tenant_id: str | None = None,
        disabled: bool | None = None,
        redact: Choice = None,
        sample: float | None = None,
        sample_by: Literal["user", "thread"] | None = None,
        durability: Literal["call", "background"] | None = None,
        outbox_limit: int | None = None,
        flush_calls: bool | None = None,
        exit_timeout: float | None = None,
        allow_http: bool | None = None,
        consent: Callable[[str | None, str | None], bool] | None = None,
        clock: Callable[[], datetime] | None = None,
        keep: Keep | None = None,
    ) -> None:
        self.settings: Settings = load(
            {
                "endpoint": endpoint,
                "token": token,
                "home": home,
                "tenant_id": tenant_id,
                "disabled": disabled,
                "redact": redact,
                "sample": sample,
                "sample_by": sample_by,
                "durability": durability,
                "outbox_limit": outbox_limit,
                "flush_calls": flush_calls,
                "exit_timeout": exit_timeout,
                "allow_http": allow_http,
            },
            environ=os.environ if keep is None else {},
        )
        self._redact = _redactor(self.settings.redact)
        self._consent = consent
        self._clock = clock or _now
        self.guard = Guard()
        self._recorded = 0
        self._skipped: Counter[str] = Counter()
        self._counting = threading.Lock()
        self._closed = False
        self._away_until = 0.0
        self._delivered = 0
        self._keep: Keep | None = keep
        if keep is None and not self.settings.disabled:
            self._keep = OutboxKeep(self.settings, lost=_weakly(self._lost))
            # Who forgets a client does not shut it down: its thread and its files go with it all the same.
            weakref.finalize(self, self._keep.close).atexit = False
            _warn_of_the_old_host(self.settings.endpoint)
        _living.add(self)

    @property
    def closed(self) -> bool:
        """Whether it was shut down."""
        return self._closed

    def now(self) -> datetime:
        """The time by this client's clock."""
        return self._clock()

    def record(self, conversation: Conversation) -> Conversation | None:
        """Keep the conversation's messages; to one with an id of before they are appended.

        Returns it with every id filled in, or None when it was left out or could not be kept.
        """
        with self.guard("record"):
            keep = self._accepts("record")
            if keep is None:
                return None
            if not conversation.messages:
                self.guard.lost("record: a conversation without messages")
                return None
            if not conversation.id:
                conversation = replace(conversation, id=new_id())
            if not self._may_record(conversation):
                return None
            if self._redact is None and within(conversation):
                allowed, calls = conversation, [conversation]
            else:
                allowed = self._redacted(bounded(conversation, lost=self.guard.lost))
                calls = list(parts(allowed, lost=self.guard.lost))
            sealed = [self._put(keep, call) for call in calls]
            with self._counting:
                self._recorded += 1
            if current_scope() is None:
                self.call_over()
            if len(sealed) == 1:
                return sealed[0]
            return replace(allowed, messages=tuple(message for part in sealed for message in part.messages))
        return None

    def rate(
        self, rating: Rating, *, message: str | None = None, thread: str | None = None, feedback: str | None = None
    ) -> bool:
        """Rate the message of that id, or the newest answer of the thread of that id: -1, 0 or +1.

        Give `thread` beside `message` when you know it: then the rating can never overtake its message.
        Returns whether it was kept; it does not wait for delivery.
        """
        with self.guard("rate"):
            if isinstance(rating, bool) or rating not in RATINGS:
                self.guard.lost("rate: a rating is -1, 0 or +1")
                return False
            target = message or thread
            if target is None:
                self.guard.lost("rate: there is no answer to rate")
                return False
            keep = self._accepts("rate")
            if keep is None:
                return False
            mark = RatingMark(rating=rating, feedback=self._allowed_feedback(feedback))
            rated, lane = (bounded_id(text, lost=self.guard.lost) for text in (target, thread or target))
            log = Log(route=Route.RATING, tenant_id=self.settings.tenant_id, rated=rated, marks=(mark,))
            keep.put(log, key=new_id(), lane=lane, at=self._clock().timestamp())
            if current_scope() is None:
                self.call_over()
            return True
        return False

    def forget(self, user_id: str) -> int:
        """Drop what still waits of this user in the home's outboxes, with their threads; says how many parcels went.

        It may wait a second a file for other readers. What a server has received is for the server to erase; a rating
        that waits alone, its turn being delivered, names nobody and stays.
        """
        with self.guard("forget"):
            if self._keep is not None:
                return self._keep.forget(str(user_id), lost=self.guard.lost)
            return forget_in(self.settings.home, str(user_id), lost=self.guard.lost)
        return 0

    def flush(self, timeout: float = 10.0) -> FlushResult:
        """Deliver what waits, for at most `timeout` seconds; says what became of it."""
        with self.guard("flush"):
            return self._keep.flush(timeout) if self._keep is not None else FlushResult()
        return FlushResult()

    async def aflush(self, timeout: float = 10.0) -> FlushResult:  # noqa: ASYNC109  the same word as flush
        """`flush`, without blocking the event loop."""
        return await asyncio.to_thread(self.flush, timeout)

    def call_over(self) -> None:
        """The outermost session is over, or a turn outside of any: with `flush_calls`, deliver, for `exit_timeout`.

        A server that took nothing is not waited for again before ten times as long.
        """
        if self._flushes_calls():
            self._flush_call()

    async def acall_over(self) -> None:
        """`call_over`, without blocking the event loop."""
        if self._flushes_calls():
            await asyncio.to_thread(self._flush_call)

    def stats(self) -> Stats:
        """What was recorded, left out and lost, since this client was made, and what waits."""
        outbox = FlushResult()
        with self.guard("stats"):
            if self._keep is not None and not self._closed:
                outbox = self._keep.state()
        with self._counting:
            return Stats(recorded=self._recorded, skipped=dict(self._skipped), lost=self.guard.counts(), outbox=outbox)

    def shutdown(self, timeout: float | None = None) -> FlushResult:
        """Flush within `timeout` seconds (default: exit_timeout) and stop; the rest stays on disk."""
        if self._closed:
            return FlushResult()
        result = FlushResult()
        with self.guard("shutdown"):
            if self._keep is not None:
                # A server that cannot be reached now is not waited for: what it is to have is on disk.
                result = self._keep.flush(self.settings.exit_timeout if timeout is None else timeout, patient=False)
        self._closed = True
        with self.guard("shutdown"):
            if self._keep is not None:
                self._keep.close()
        return result

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()

    def _flushes_calls(self) -> bool:
        away = time.monotonic() < self._away_until
        return self.settings.flush_calls and self._keep is not None and not self._closed and not away

    def _flush_call(self) -> None:
        with self.guard("flush"):
            assert self._keep is not None
            begun = time.monotonic()
            left = self._keep.flush(self.settings.exit_timeout, patient=False)
            if left.pending and left.delivered == self._delivered:
                self._away_until = begun + _PATIENCE * (time.monotonic() - begun)
            self._delivered = left.delivered

    def _accepts(self, doing: str) -> Keep | None:
        if self.settings.disabled:
            return None
        if self._closed:
            self.guard.lost(f"{doing}: after shutdown")
            return None
        return self._keep

    def _may_record(self, conversation: Conversation) -> bool:
        if not sampled(sample_key(conversation, self.settings.sample_by), self.settings.sample):
            return self._skip("not sampled")
        if self._consent is None:
            return True
        try:
            return bool(self._consent(conversation.user_id, conversation.id)) or self._skip("no consent")
        except Exception as error:  # noqa: BLE001  the host's callable may raise anything, and then says no
            self.guard.lost(f"consent: {type(error).__name__}")
            return False

    def _skip(self, reason: str) -> bool:
        with self._counting:
            self._skipped[reason] += 1
        return False

    def _redacted(self, conversation: Conversation) -> Conversation:
        if self._redact is None:
            return conversation
        from contextwrap.redaction import bare, redacted  # noqa: PLC0415  6 ms of patterns, for who wants them

        try:
            # What stands for a thing may be longer than the thing.
            return bounded(redacted(conversation, self._redact), lost=self.guard.lost)
        except Exception as error:  # noqa: BLE001  the host's callable may raise anything: then nothing is said
            self.guard.lost(f"redact: {type(error).__name__}")
            return bare(conversation)

    def _allowed_feedback(self, feedback: str | None) -> str | None:
        if feedback is None:
            return None
        feedback = bounded_text(str(feedback), lost=self.guard.lost)
        if self._redact is None:
            return feedback
        try:
            return bounded_text(self._redact(feedback), lost=self.guard.lost)
        except Exception as error:  # noqa: BLE001  likewise
            self.guard.lost(f"redact: {type(error).__name__}")
            return None

    def _put(self, keep: Keep, conversation: Conversation) -> Conversation:
        key, now = new_id(), self._clock()
        log = Log(route=Route.THREAD, tenant_id=self.settings.tenant_id, conversation=conversation)
        sealed = log.sealed(key=key, at=now)
        assert sealed.conversation is not None
        keep.put(sealed, key=key, lane=sealed.conversation.id or key, at=now.timestamp())
        return sealed.conversation

    def _lost(self, reason: str) -> None:
        # The guard of now: a child of fork has another.
        self.guard.lost(reason)

    def _after_fork(self) -> None:
        """In a child of fork: what the parent holds, locks included, is the parent's."""
        if self._keep is not None:
            self._keep.forsake()
        self._counting = threading.Lock()
        self.guard = Guard()
        self._recorded = 0
        self._skipped = Counter()


class _Default:
    """The one piece of global state: the client that `wrap`, decorators and sessions use, and what makes it."""

    def __init__(self) -> None:
        self.client: ContextWrap | None = None
        self.make: Callable[..., ContextWrap] = ContextWrap
        self.lock = threading.Lock()


def configure(
    *,
    endpoint: str | None = None,
    token: str | None = None,
    home: str | Path | None = None,
    tenant_id: str | None = None,
    disabled: bool | None = None,
    redact: Choice = None,
    sample: float | None = None,
    sample_by: Literal["user", "thread"] | None = None,
    durability: Literal["call", "background"] | None = None,
    outbox_limit: int | None = None,
    flush_calls: bool | None = None,
    exit_timeout: float | None = None,
    allow_http: bool | None = None,
    consent: Callable[[str | None, str | None], bool] | None = None,
    clock: Callable[[], datetime] | None = None,
) -> ContextWrap:
    """Make the default client anew, for all that is wrapped already and all that will be.

    The one before is shut down. The keywords are ContextWrap's; raises ConfigurationError and OutboxError like it.
    """
    client = _default.make(
        endpoint=endpoint,
        token=token,
        home=home,
        tenant_id=tenant_id,
        disabled=disabled,
        redact=redact,
        sample=sample,
        sample_by=sample_by,
        durability=durability,
        outbox_limit=outbox_limit,
        flush_calls=flush_calls,
        exit_timeout=exit_timeout,
        allow_http=allow_http,
        consent=consent,
        clock=clock,
    )
    before, _ = exchange_default(client)
    if before is not None:
        before.shutdown()
    return client


def exchange_default(
    client: ContextWrap | None, make: Callable[..., ContextWrap] | None = None
) -> tuple[ContextWrap | None, Callable[..., ContextWrap]]:
    """Make this the default client, and `make` what makes the next ones; answers those before, left as they are."""
    with _default.lock:
        before = _default.client, _default.make
        _default.client, _default.make = client, make or _default.make
    return before


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


def is_idle() -> bool:
    """Whether the default client is known to record nothing."""
    client = _default.client
    return client is not None and client.settings.disabled


def reset_defaults() -> None:
    """Shut the default client down and forget it, as tests want it."""
    client, _ = exchange_default(None)
    if client is not None:
        client.shutdown()


def flush(timeout: float = 10.0) -> FlushResult:
    """Deliver what the default client holds; see `ContextWrap.flush`."""
    return default_client().flush(timeout)


async def aflush(timeout: float = 10.0) -> FlushResult:  # noqa: ASYNC109  likewise
    """`flush`, without blocking the event loop."""
    return await default_client().aflush(timeout)


def forget(user_id: str) -> int:
    """Drop what still waits of this user; see `ContextWrap.forget`."""
    return default_client().forget(user_id)


def shutdown(timeout: float | None = None) -> FlushResult:
    """Flush and stop the default client; see `ContextWrap.shutdown`."""
    return default_client().shutdown(timeout)


def _from_environment() -> ContextWrap:
    guard = Guard()
    with guard("start"):
        return _default.make()
    # Everything said, so that nothing is read from the environment that has just failed; a home that holds nothing.
    idle = ContextWrap(
        disabled=True, home=os.devnull, tenant_id="", redact=False, sample=1.0, sample_by="user", durability="call",
        outbox_limit=1, flush_calls=False, exit_timeout=0.0, allow_http=False,
    )  # fmt: skip
    idle.guard = guard
    return idle


def _now() -> datetime:
    return datetime.now(UTC)


def _weakly(lost: Callable[[str], None]) -> Callable[[str], None]:
    """The same, holding nobody."""
    method = weakref.WeakMethod(lost)

    def told(reason: str) -> None:
        alive = method()
        if alive is not None:
            alive(reason)

    return told


def _redactor(choice: Any) -> Redact | None:
    if not choice:
        return None
    from contextwrap.redaction import redactor  # noqa: PLC0415  see above

    return redactor(choice)


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
