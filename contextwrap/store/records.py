"""The `Store` protocol with its typed queries and answers; every engine gives the same answers to them.

All times are aware, in UTC. A conversation is known by (tenant_id, id); tenants never see each other.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from datetime import date, datetime

    from contextwrap.model import Log, Message, Rating
    from contextwrap.store.periods import Period

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One sealed log call (`Log.sealed`) under its idempotency key: a key is applied once, for ever."""

    key: str
    log: Log


@dataclass(frozen=True, slots=True, kw_only=True)
class Applied:
    """What became of a batch of entries: each is applied, a duplicate, or unmatched (a rating of nothing known)."""

    applied: int = 0
    duplicates: int = 0
    unmatched: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationQuery:
    """Which conversations, newest activity first.

    `start`/`end` bound the last message's time (start inclusive, end exclusive; None is open); `user_id` is
    exact; `rating` keeps conversations with at least one message so rated. Pages count from 1.
    """

    tenant_id: str = ""
    start: datetime | None = None
    end: datetime | None = None
    user_id: str | None = None
    rating: Rating | None = None
    page: int = 1
    per_page: int = 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """One row of the conversation list; `first_question` and `last_answer` are cut to 500 characters."""

    id: str
    user_id: str | None
    first_question: str
    last_answer: str
    messages: int
    positive: int
    negative: int
    started_at: datetime
    last_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredConversation:
    """A whole conversation: messages in the order they were logged, each with its id and time."""

    id: str
    tenant_id: str
    metadata: Mapping[str, str]
    messages: tuple[Message, ...]
    started_at: datetime
    last_at: datetime
    feedback: str | None = None

    @property
    def user_id(self) -> str | None:
        """Who the conversation is with."""
        return self.metadata.get("user_id")


@dataclass(frozen=True, slots=True, kw_only=True)
class Page(Generic[T]):
    """A page of a list and where it stands in the whole."""

    items: tuple[T, ...]
    total: int
    page: int
    per_page: int

    @property
    def page_count(self) -> int:
        """How many pages there are; at least one."""
        return max(1, -(-self.total // self.per_page))

    @property
    def previous_page(self) -> int | None:
        """The page before this one, or None on the first."""
        return self.page - 1 if self.page > 1 else None

    @property
    def next_page(self) -> int | None:
        """The page after this one, or None on the last."""
        return self.page + 1 if self.page < self.page_count else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Totals:
    """How much a tenant has: the numbers a summary starts with."""

    conversations: int
    messages: int
    users: int
    positive: int
    negative: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesQuery:
    """What happened from `start` (inclusive) to `end` (exclusive), by period."""

    start: datetime
    end: datetime
    period: Period = "day"
    tenant_id: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One period, from the day on which it `begins`, and as much of it as was asked for.

    `conversations` are those that began in it, `rated` the messages of that time that have a rating, and `rating` is
    the mean of those, from -1 to 1; None of none.
    """

    begins: date
    conversations: int = 0
    rated: int = 0
    rating: float | None = None


class Store(Protocol):
    """Where conversations are kept. `apply` is called by one thread at a time; reads may come from many."""

    def apply(self, entries: Sequence[Entry]) -> Applied:
        """Write a batch in one transaction, in order; an entry whose key was applied before changes nothing.

        CONVERSATION makes a new conversation. THREAD appends to the one of its id, or makes it. UPSERT appends
        the new tail to an earlier conversation of the same metadata, at most 6 hours old, that the request
        starts with (>= 2 messages); else it makes a new one. A message whose id the conversation already has
        is not added again. RATING marks the message of that id, or the newest answers of the thread of that id.
        """
        ...

    def summaries(self, query: ConversationQuery) -> Page[Summary]:
        """One page of the conversation list."""
        ...

    def conversations(self, query: ConversationQuery) -> Page[StoredConversation]:
        """One page of whole conversations, in the order of `summaries`."""
        ...

    def conversation(self, conversation_id: str, *, tenant_id: str = "") -> StoredConversation | None:
        """The whole conversation, or None."""
        ...

    def rateable(self, keys: Collection[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those (tenant_id, id) that name a message, or a conversation that has an answer to rate."""
        ...

    def totals(self, *, tenant_id: str = "") -> Totals:
        """How much the tenant has."""
        ...

    def series(self, query: SeriesQuery) -> tuple[Bucket, ...]:
        """Each period that the query touches, empty ones too, oldest first."""
        ...

    def export(self, *, tenant_id: str | None = None) -> Iterator[StoredConversation]:
        """Every conversation of the tenant (None: of all), oldest first, in constant memory."""
        ...

    def checkpoint(self) -> None:
        """Do the engine's housekeeping now, so that no later call has to wait for it."""
        ...

    def close(self) -> None:
        """Close; a second close does nothing."""
        ...
