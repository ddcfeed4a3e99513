"""What the pages show: one frozen context a page, made from the store's answers alone.

Pure: no request, no store, no clock. Everything in a context is text to be escaped by the template.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from contextwrap.server import humane
from contextwrap.server.filters import Filters
from contextwrap.server.prose import pretty, prose

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from contextwrap.model import Message, Rating
    from contextwrap.server.filters import Chip
    from contextwrap.server.humane import Moment
    from contextwrap.server.prose import Prose
    from contextwrap.store.records import Page, StoredConversation, Summary

_TITLE: Final = 120
_NEIGHBOURS: Final = 1
_MODELS: Final = 3
_SAID_ELSEWHERE: Final = {"feedback", "error", "interrupted"}
_NO: Final = {"", "0", "false", "none", "no"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One conversation of the list."""

    url: str
    question: str
    answer: str
    user: str | None
    user_url: str
    messages: str
    positive: int
    negative: int
    last: Moment


@dataclass(frozen=True, slots=True, kw_only=True)
class PageLink:
    """A number in the pager; without a URL it is a gap."""

    label: str
    url: str | None
    current: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationsPage:
    """The list: its rows, or why there are none ("empty": nothing recorded yet; "unmatched": the filters)."""

    title: str
    total: str
    shown: str
    filters: Filters
    chips: tuple[Chip, ...]
    rows: tuple[Row, ...]
    pager: tuple[PageLink, ...]
    previous: str | None
    next: str | None

    @property
    def state(self) -> str:
        """Which of the three faces the page has."""
        if self.rows:
            return "rows"
        return "unmatched" if self.chips else "empty"


@dataclass(frozen=True, slots=True, kw_only=True)
class Badge:
    """A state worth a coloured word."""

    text: str
    tone: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One row of a transcript; `kind` is user, assistant, system, tool or event."""

    anchor: str
    kind: str
    speaker: str
    day: str | None
    time: Moment | None
    text: Prose
    rating: Rating | None
    feedback: Prose | None
    badges: tuple[Badge, ...]
    summary: str
    metadata: tuple[tuple[str, str], ...]
    thought: Prose | None
    input: Prose | None
    observation: Prose | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ConversationPage:
    """A transcript and what is known about the conversation as a whole."""

    title: str
    id: str
    back: str
    user: str | None
    user_url: str
    messages: str
    badges: tuple[Badge, ...]
    started: Moment
    last: Moment
    lasted: str
    models: tuple[str, ...]
    tokens: str | None
    positive: int
    negative: int
    feedback: Prose | None
    metadata: tuple[tuple[str, str], ...]
    turns: tuple[Turn, ...]


def conversations_page(found: Page[Summary], *, filters: Filters, now: datetime) -> ConversationsPage:
    """The list as `filters` found it."""
    here = filters.query(page=found.page)
    first = (found.page - 1) * found.per_page + 1
    return ConversationsPage(
        title="Conversations",
        total=humane.number(found.total),
        shown=f"{first:,}–{first + len(found.items) - 1:,} of {found.total:,}",  # noqa: RUF001  a range's dash
        filters=filters,
        chips=filters.chips(),
        rows=tuple(_row(summary, filters=filters, here=here, now=now) for summary in found.items),
        pager=tuple(_pager(found, filters)),
        previous=_page_url(filters, found.previous_page),
        next=_page_url(filters, found.next_page),
    )


def conversation_page(conversation: StoredConversation, *, back: str) -> ConversationPage:
    """The transcript; `back` is the query string of the list it was opened from."""
    messages = conversation.messages
    turns = tuple(_turns(messages))
    question = next((item.message for item in messages if item.role == "user" and item.message.strip()), "")
    feedback = conversation.feedback
    return ConversationPage(
        title=_title(question) or "Conversation",
        id=conversation.id,
        back=list_url(back),
        user=conversation.user_id or None,
        user_url=list_url(Filters(user=conversation.user_id or None).query()),
        messages=humane.number(len(messages)),
        badges=tuple(dict.fromkeys((*_badges(conversation.metadata), *_badges_of(turns)))),
        started=humane.full(conversation.started_at),
        last=humane.full(conversation.last_at),
        lasted=humane.lasted(conversation.last_at - conversation.started_at),
        models=_models(conversation),
        tokens=_all_tokens(messages),
        positive=sum(message.rating == 1 for message in messages),
        negative=sum(message.rating == -1 for message in messages),
        feedback=prose(feedback) if feedback else None,
        metadata=tuple(sorted((key, value) for key, value in conversation.metadata.items() if key != "user_id")),
        turns=turns,
    )


def list_url(query: str = "") -> str:
    """Where the list is, with a query string as `Filters.query` gives it."""
    return f"/conversations{query}"


def conversation_url(conversation_id: str, *, back: str = "") -> str:
    """Where a transcript is, whatever characters its id has; `back` is the list's query string."""
    return f"/conversations/{quote(conversation_id, safe='')}{back}"


def _row(summary: Summary, *, filters: Filters, here: str, now: datetime) -> Row:
    user = summary.user_id or None
    return Row(
        url=conversation_url(summary.id, back=here),
        question=summary.first_question.strip(),
        answer=summary.last_answer.strip(),
        user=user,
        user_url=list_url(replace(filters, user=user).query()),
        messages=humane.number(summary.messages),
        positive=summary.positive,
        negative=summary.negative,
        last=humane.relative(summary.last_at, now=now),
    )


def _page_url(filters: Filters, page: int | None) -> str | None:
    return None if page is None else list_url(filters.query(page=page))


def _pager(found: Page[Summary], filters: Filters) -> Iterator[PageLink]:
    """First, last and the neighbours of the current page, with gaps between; nothing for a single page."""
    if found.page_count == 1:
        return
    near = range(found.page - _NEIGHBOURS, found.page + _NEIGHBOURS + 1)
    before = 0
    for number in sorted({1, found.page_count, *near} & {*range(1, found.page_count + 1)}):
        if number - before == 2:  # noqa: PLR2004  a gap of one is no shorter than its number
            yield PageLink(label=humane.number(number - 1), url=_page_url(filters, number - 1))
        elif number - before > 2:  # noqa: PLR2004
            yield PageLink(label="…", url=None)
        yield PageLink(label=humane.number(number), url=_page_url(filters, number), current=number == found.page)
        before = number


def _turns(messages: Sequence[Message]) -> Iterator[Turn]:
    today = None
    for index, message in enumerate(messages):
        moment = message.event_timestamp
        day = today if moment is None else humane.day(moment)
        yield _turn(message, index=index, day=None if day == today else day)
        today = day


def _turn(message: Message, *, index: int, day: str | None) -> Turn:
    kind = message.role if message.type == "message" else message.type
    feedback = message.metadata.get("feedback")
    return Turn(
        anchor=_anchor(message.id, index),
        kind=kind,
        speaker=message.name or {"tool": "Tool", "event": "Event"}.get(kind) or kind.capitalize(),
        day=day,
        time=None if message.event_timestamp is None else humane.clock(message.event_timestamp),
        text=prose(message.message),
        rating=message.rating,
        feedback=prose(feedback) if feedback else None,
        badges=tuple(_badges(message.metadata)),
        summary=_summary(message.metadata),
        metadata=tuple(sorted((key, value) for key, value in message.metadata.items() if key not in _SAID_ELSEWHERE)),
        thought=prose(message.thought) if message.thought else None,
        input=None if message.input is None else prose(pretty(message.input), links=False),
        observation=prose(message.observation, links=False) if message.observation else None,
    )


def _anchor(message_id: str | None, index: int) -> str:
    """The row's id in the page: HTML allows every character but white space."""
    return f"row-{index}" if not message_id or any(map(str.isspace, message_id)) else f"m-{message_id}"


def _badges(metadata: Mapping[str, str]) -> Iterator[Badge]:
    error = metadata.get("error", "")
    if error.lower() not in _NO:
        yield Badge(text="Error" if error.lower() == "true" else _title(error, 60), tone="bad")
    if metadata.get("interrupted", "").lower() not in _NO:
        yield Badge(text="Interrupted", tone="warn")


def _badges_of(turns: Iterable[Turn]) -> Iterator[Badge]:
    # An agent lives with a failed tool: that is said in the tool's own row and nowhere else.
    return (badge for turn in turns if turn.kind != "tool" for badge in turn.badges)


def _summary(metadata: Mapping[str, str]) -> str:
    """What an answer cost in a line: model, tokens, latency, attempts."""
    tokens, latency, attempts = _tokens(metadata), _count(metadata, "latency_ms"), _count(metadata, "attempts")
    parts = [
        metadata.get("model", "")[:_TITLE],
        "" if tokens is None else humane.counted(tokens, "token"),
        "" if latency is None else humane.milliseconds(latency),
        "" if attempts is None else humane.counted(attempts, "attempt"),
    ]
    return " · ".join(filter(None, parts)) or "Details"


def _models(conversation: StoredConversation) -> tuple[str, ...]:
    said = [conversation.metadata.get("model"), *(item.metadata.get("model") for item in conversation.messages)]
    return tuple(dict.fromkeys(filter(None, said)))[:_MODELS]


def _all_tokens(messages: Iterable[Message]) -> str | None:
    known = [tokens for message in messages if (tokens := _tokens(message.metadata)) is not None]
    return humane.number(sum(known)) if known else None


def _tokens(metadata: Mapping[str, str]) -> int | None:
    total = _count(metadata, "total_tokens")
    if total is not None:
        return total
    parts = [_count(metadata, "input_tokens"), _count(metadata, "output_tokens")]
    known = [part for part in parts if part is not None]
    return sum(known) if known else None


def _count(metadata: Mapping[str, str], key: str) -> int | None:
    """The whole number under `key`; None when it is none, or no plausible one."""
    text = metadata.get(key, "")
    return int(text) if text.isascii() and text.isdigit() and len(text) <= 12 else None  # noqa: PLR2004


def _title(text: str, length: int = _TITLE) -> str:
    """The text's beginning on one line."""
    line = " ".join(text[: 4 * length].split())
    return line if len(line) <= length else f"{line[: length - 1].rstrip()}…"
