"""Test what your app records: `captured()` keeps it in memory, with no file, thread, network or setting of the outside.

    from contextwrap.testing import captured

    with captured() as log:
        answer(request)
    assert [message.message for message in log.conversations[0].messages] == ["hi", "hello"]

In pytest the fixture `contextwrap_log` is the same, around one test.
"""

from __future__ import annotations

import threading
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from contextwrap.client import ContextWrap, exchange_default
from contextwrap.keeping import FlushResult

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Literal

    from contextwrap.model import Conversation, Log, Message, Rating
    from contextwrap.redaction import Choice

EPOCH: Final = datetime(2026, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedConversation:
    """One logged turn, or a conversation recorded whole.

    `metadata` is what the app said of it and what the answer says of itself (model, tokens, latency_ms, attempts,
    interrupted, …). `messages` are only the new ones. `error` is what went wrong, such as "ValueError: no", or None.
    """

    user_id: str | None
    thread_id: str | None
    metadata: Mapping[str, str]
    tags: tuple[str, ...]
    messages: tuple[Message, ...]
    error: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class CapturedRating:
    """One rating of the message or thread whose id is `rated`; `thread` is the one it belongs to, where it is known."""

    rating: Rating
    rated: str
    thread: str
    feedback: str | None


class CapturedLog:
    """What was recorded inside `captured()`, in order of completion."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._logs: list[tuple[Log, str]] = []
        self._clients: list[ContextWrap] = []

    @property
    def conversations(self) -> list[CapturedConversation]:
        """Every turn so far."""
        return [_conversation(log.conversation) for log, _ in self._taken() if log.conversation is not None]

    @property
    def ratings(self) -> list[CapturedRating]:
        """Every rating so far."""
        return [
            CapturedRating(rating=mark.rating, rated=log.rated, thread=lane, feedback=mark.feedback)
            for log, lane in self._taken()
            for mark in log.marks
        ]

    @property
    def lost(self) -> Mapping[str, int]:
        """What could not be recorded, by reason."""
        return _sum(client.stats().lost for client in self._clients)

    @property
    def skipped(self) -> Mapping[str, int]:
        """What was left out by sampling or consent, by reason."""
        return _sum(client.stats().skipped for client in self._clients)

    def clear(self) -> None:
        """Forget what was recorded so far."""
        with self._lock:
            self._logs.clear()

    # From here on it is a `keeping.Keep`.

    def put(self, log: Log, *, key: str, lane: str, at: float) -> None:  # noqa: ARG002  a keep's own signature
        """One more."""
        with self._lock:
            self._logs.append((log, lane))

    def flush(self, timeout: float, *, patient: bool = True) -> FlushResult:  # noqa: ARG002  likewise
        """Nothing waits for anything."""
        return self.state()

    def state(self) -> FlushResult:
        """All has arrived."""
        return FlushResult(delivered=len(self._taken()))

    def forget(self, user_id: str, *, lost: Callable[[str], None]) -> int:  # noqa: ARG002  likewise
        """Drop the threads of this user."""
        with self._lock:
            lanes = {lane for log, lane in self._logs if log.conversation and log.conversation.user_id == user_id}
            kept = [(log, lane) for log, lane in self._logs if lane not in lanes]
            gone = len(self._logs) - len(kept)
            self._logs[:] = kept
        return gone

    def close(self) -> None:
        """There is nothing to close."""

    def forsake(self) -> None:
        """A child of fork has a copy of its own."""
        self._lock = threading.Lock()

    def _taken(self) -> list[tuple[Log, str]]:
        with self._lock:
            return list(self._logs)


class captured:  # noqa: N801  a scope, read as `with captured() as log`
    """Record into memory whatever is wrapped or tracked, before or inside, in any thread, as `with` or `async with`.

    The default client of before is back at the end. The keywords are ContextWrap's; no setting comes from the
    environment. An app that calls `configure` inside stays in memory too: its redaction, sampling, consent, clock and
    tenant apply where none is given here. A ContextCallbackHandler that was given an endpoint of its own keeps
    sending there.
    """

    def __init__(
        self,
        *,
        tenant_id: str | None = None,
        redact: Choice = None,
        sample: float | None = None,
        sample_by: Literal["user", "thread"] | None = None,
        consent: Callable[[str | None, str | None], bool] | None = None,
        clock: Callable[[], datetime] | None = None,
    ) -> None:
        self._options: dict[str, Any] = {
            "tenant_id": tenant_id,
            "redact": redact,
            "sample": sample,
            "sample_by": sample_by,
            "consent": consent,
            "clock": clock,
        }
        self._before: list[tuple[ContextWrap | None, Callable[..., ContextWrap]]] = []

    def __enter__(self) -> CapturedLog:
        log = CapturedLog()
        make = partial(self._made, log)
        self._before.append(exchange_default(make(), make))
        return log

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        exchange_default(*self._before.pop())

    async def __aenter__(self) -> CapturedLog:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.__exit__(kind, error, trace)

    def _made(self, log: CapturedLog, **said: Any) -> ContextWrap:
        options = {name: said.get(name) if here is None else here for name, here in self._options.items()}
        # No file is made: the folder is only named.
        client = ContextWrap(home=".", keep=log, **options)
        log._clients.append(client)  # noqa: SLF001  its own module
        return client


class fixed_clock:  # noqa: N801  read as a function: `captured(clock=fixed_clock())`
    """A clock for tests: it starts at `start` (aware) and moves on by `step` each time it is asked."""

    def __init__(self, start: datetime = EPOCH, *, step: timedelta = timedelta(seconds=1)) -> None:
        self._next = start
        self._step = step
        self._lock = threading.Lock()

    def __call__(self) -> datetime:
        """The time."""
        with self._lock:
            now, self._next = self._next, self._next + self._step
        return now


def _sum(counts: Iterable[Mapping[str, int]]) -> Mapping[str, int]:
    total: Counter[str] = Counter()
    for one in counts:
        total.update(one)
    return dict(total)


def _conversation(conversation: Conversation) -> CapturedConversation:
    failed = [row for row in conversation.messages if row.type == "event" and row.name == "error"]
    answers = [row for row in conversation.messages if row.type == "message" and row.role == "assistant"]
    facts = {key: text for row in (*answers, *failed) for key, text in row.metadata.items()}
    return CapturedConversation(
        user_id=conversation.user_id,
        thread_id=conversation.id,
        metadata={**facts, **conversation.metadata},
        tags=tuple(filter(None, conversation.metadata.get("tags", "").split(","))),
        messages=conversation.messages,
        error=failed[-1].message if failed else None,
    )
