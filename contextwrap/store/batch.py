"""What a batch of entries does to the conversations it touches: pure, in memory, the same for every engine.

An engine asks a `Batch` what it `Needs` to know, gives it the `Found` rows, applies the entries in order and
writes the rows that are new or changed. Knows no SQL.
"""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from datetime import timedelta
from itertools import accumulate
from typing import TYPE_CHECKING, Final, TypeAlias, cast

from contextwrap.ids import derived_id
from contextwrap.model import Message, Route

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from datetime import datetime

    from contextwrap.model import Conversation, Log, MessageType, Rating, RatingMark, Role
    from contextwrap.store.records import Entry

UPSERT_WINDOW: Final = timedelta(hours=6)
SUMMARY_LENGTH: Final = 500

Key: TypeAlias = tuple[str, str]
"""(tenant_id, id)"""


@dataclass(slots=True, kw_only=True)
class ConversationRow:
    """A conversation as it is kept: what a list shows of it, where its messages lie, and its digest.

    `digest` rolls over role, type and text of every message in order, so whether a request starts with this
    conversation is a look-up of the request's own rolling digests.
    """

    tenant_id: str
    id: str
    user_id: str | None
    metadata: dict[str, str]
    feedback: str | None
    started_at: datetime
    last_at: datetime
    first_question: str
    last_answer: str
    messages: int
    positive: int
    neutral: int
    negative: int
    first_seq: int
    last_seq: int
    digest: str

    def count(self, rating: Rating | None, step: int) -> None:
        """One rating more (`step` 1) or less (-1)."""
        if rating == 1:
            self.positive += step
        elif rating == 0:
            self.neutral += step
        elif rating == -1:
            self.negative += step


@dataclass(slots=True, kw_only=True)
class MessageRow:
    """A message as it is kept; `seq` grows with every message logged, `input` is JSON."""

    tenant_id: str
    conversation_id: str
    seq: int
    id: str
    role: str
    type: str
    message: str
    rating: Rating | None
    event_timestamp: datetime
    metadata: dict[str, str]
    name: str | None = None
    thought: str | None = None
    input: str | None = None
    observation: str | None = None

    def to_message(self) -> Message:
        """The message in the row."""
        return Message(
            role=cast("Role", self.role),
            message=self.message,
            id=self.id,
            type=cast("MessageType", self.type),
            rating=self.rating,
            event_timestamp=self.event_timestamp,
            metadata=self.metadata,
            name=self.name,
            thought=self.thought,
            input=None if self.input is None else json.loads(self.input),
            observation=self.observation,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What has to be looked up before the batch can be applied; a rated id is a message's or a conversation's."""

    conversations: frozenset[Key]
    digests: frozenset[Key]
    messages: frozenset[Key]
    rated: frozenset[Key]
    answers: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What is kept of what a batch needs.

    `conversations`: those named, rated, holding a rated message, or of a wanted digest. `present`:
    (tenant_id, conversation_id, message id) of the wanted messages. `rated`: the newest message of each rated
    id. `answers`: the newest `Needs.answers` answers of each rated conversation, oldest first.
    """

    conversations: Iterable[ConversationRow]
    present: Iterable[tuple[str, str, str]]
    rated: Iterable[MessageRow]
    answers: Iterable[MessageRow]


@dataclass(slots=True)
class Changes:
    """What an engine has to write: rows made and rows changed, by whether they were kept before."""

    new_conversations: dict[Key, ConversationRow] = field(default_factory=dict)
    changed_conversations: dict[Key, ConversationRow] = field(default_factory=dict)
    new_messages: list[MessageRow] = field(default_factory=list)
    changed_messages: dict[int, MessageRow] = field(default_factory=dict)


class Batch:
    """The conversations a batch of entries touches, changed entry by entry."""

    def __init__(self, entries: Sequence[Entry], *, next_seq: int) -> None:
        """`entries` in storable form (`storable`); `next_seq` is the seq of the next message to be logged."""
        self.entries = entries
        self.next_seq = self._first_seq = next_seq
        self.changes = Changes()
        self._conversations: dict[Key, ConversationRow] = {}
        self._by_digest: dict[Key, list[ConversationRow]] = {}
        self._present: set[tuple[str, str, str]] = set()
        self._messages: dict[Key, MessageRow] = {}
        self._answers: dict[Key, list[MessageRow]] = {}

    def needs(self) -> Needs:
        """What the entries name."""
        conversations: set[Key] = set()
        digests: set[Key] = set()
        messages: set[Key] = set()
        rated: set[Key] = set()
        answers = 0
        for entry in self.entries:
            log = entry.log
            if log.conversation is None:
                rated.add((log.tenant_id, log.rated))
                answers = max(answers, len(log.marks))
                continue
            conversations.add((log.tenant_id, log.conversation.id or ""))
            messages.update((log.tenant_id, message.id or "") for message in log.conversation.messages)
            if log.route is Route.UPSERT:
                digests.update((log.tenant_id, digest) for digest in _prefixes(log.conversation))
        return Needs(
            conversations=frozenset(conversations),
            digests=frozenset(digests),
            messages=frozenset(messages),
            rated=frozenset(rated),
            answers=answers,
        )

    def learn(self, found: Found) -> None:
        """Take in what is kept already."""
        for conversation in found.conversations:
            self._conversations[conversation.tenant_id, conversation.id] = conversation
            self._note_digest(conversation)
        self._present.update(found.present)
        for row in found.rated:
            self._messages[row.tenant_id, row.id] = row
        for row in found.answers:
            # A row reached by two ways is one object, or the second change would undo the first.
            known = self._messages.get((row.tenant_id, row.id))
            same = known if known is not None and known.seq == row.seq else row
            self._answers.setdefault((row.tenant_id, row.conversation_id), []).append(same)

    def apply(self, entry: Entry) -> bool:
        """Do what the entry says; False when it rates a thing unknown."""
        log = entry.log
        if log.conversation is None:
            return self._rate(log)
        tenant, conversation = log.tenant_id, log.conversation
        if log.route is Route.THREAD:
            self._append(self._conversations.get((tenant, conversation.id or "")), tenant, conversation)
            return True
        if (tenant, conversation.id or "") in self._conversations:
            conversation = replace(conversation, id=derived_id(entry.key, "conversation"))
        earlier, size = self._earlier(tenant, conversation) if log.route is Route.UPSERT else (None, 0)
        self._append(earlier, tenant, replace(conversation, messages=conversation.messages[size:]))
        return True

    def _earlier(self, tenant: str, conversation: Conversation) -> tuple[ConversationRow | None, int]:
        """The longest conversation an upsert continues, and how many of its messages are that conversation."""
        at = max(_moment(message) for message in conversation.messages)
        for size, digest in reversed(list(enumerate(_prefixes(conversation), start=2))):
            rows = [
                row
                for row in self._by_digest.get((tenant, digest), ())
                if row.digest == digest
                and row.metadata == conversation.metadata
                and timedelta(0) <= at - row.started_at <= UPSERT_WINDOW
            ]
            if rows:
                return max(rows, key=lambda row: row.first_seq), size
        return None, 0

    def _append(self, row: ConversationRow | None, tenant: str, conversation: Conversation) -> None:
        key = tenant, (conversation.id or "") if row is None else row.id
        if row is None:
            first = _moment(conversation.messages[0])
            row = ConversationRow(
                tenant_id=tenant,
                id=key[1],
                user_id=None,
                metadata={},
                feedback=None,
                started_at=first,
                last_at=first,
                first_question="",
                last_answer="",
                messages=0,
                positive=0,
                neutral=0,
                negative=0,
                first_seq=self.next_seq,
                last_seq=self.next_seq,
                digest="",
            )
            self._conversations[key] = self.changes.new_conversations[key] = row
        else:
            self._changed(row)
        user = {} if row.user_id is None else {"user_id": row.user_id}
        row.metadata = {**row.metadata, **conversation.metadata, **user}
        row.user_id = row.metadata.get("user_id")
        row.feedback = row.feedback if conversation.feedback is None else conversation.feedback
        for message in conversation.messages:
            self._add(row, message)
        self._note_digest(row)

    def _add(self, conversation: ConversationRow, message: Message) -> None:
        place = conversation.tenant_id, conversation.id, message.id or ""
        if place in self._present:
            return
        self._present.add(place)
        row = MessageRow(
            tenant_id=conversation.tenant_id,
            conversation_id=conversation.id,
            seq=self.next_seq,
            id=place[2],
            role=message.role,
            type=message.type,
            message=message.message,
            rating=message.rating,
            event_timestamp=_moment(message),
            metadata=dict(message.metadata),
            name=message.name,
            thought=message.thought,
            input=None if message.input is None else dumped(message.input),
            observation=message.observation,
        )
        self.next_seq += 1
        self.changes.new_messages.append(row)
        self._messages[row.tenant_id, row.id] = row
        conversation.messages += 1
        conversation.last_seq = row.seq
        conversation.started_at = min(conversation.started_at, row.event_timestamp)
        conversation.last_at = max(conversation.last_at, row.event_timestamp)
        conversation.digest = _rolled(conversation.digest, message)
        conversation.count(row.rating, 1)
        if row.type == "message" and row.role == "user":
            conversation.first_question = conversation.first_question or row.message[:SUMMARY_LENGTH]
        if row.type == "message" and row.role == "assistant":
            conversation.last_answer = row.message[:SUMMARY_LENGTH]
            self._answers.setdefault((conversation.tenant_id, conversation.id), []).append(row)

    def _rate(self, log: Log) -> bool:
        key = log.tenant_id, log.rated
        one = self._messages.get(key)
        rows = self._answers.get(key, [])[::-1] if one is None else [one]
        for row, mark in zip(rows, log.marks, strict=False):
            self._mark(row, mark)
        return bool(rows)

    def _mark(self, row: MessageRow, mark: RatingMark) -> None:
        conversation = self._conversations[row.tenant_id, row.conversation_id]
        self._changed(conversation)
        conversation.count(row.rating, -1)
        conversation.count(mark.rating, 1)
        row.rating = mark.rating
        if mark.feedback is not None:
            row.metadata = {**row.metadata, "feedback": mark.feedback}
        if row.seq < self._first_seq:
            self.changes.changed_messages[row.seq] = row

    def _changed(self, row: ConversationRow) -> None:
        key = row.tenant_id, row.id
        if key not in self.changes.new_conversations:
            self.changes.changed_conversations[key] = row

    def _note_digest(self, row: ConversationRow) -> None:
        self._by_digest.setdefault((row.tenant_id, row.digest), []).append(row)


def storable(log: Log) -> Log:
    """The call with U+FFFD for lone surrogates, which UTF-8 cannot hold (`input` is mended where it is kept)."""
    if mend(text := "\n".join(_texts(log))) == text:
        return log
    conversation = log.conversation
    return replace(
        log,
        tenant_id=mend(log.tenant_id),
        rated=mend(log.rated),
        marks=tuple(replace(mark, feedback=_mend(mark.feedback)) for mark in log.marks),
        conversation=None if conversation is None else _storable(conversation),
    )


def _texts(log: Log) -> Iterator[str]:
    """All that `storable` would mend."""
    yield from filter(None, (log.tenant_id, log.rated, *(mark.feedback for mark in log.marks)))
    if (conversation := log.conversation) is not None:
        yield from filter(None, (conversation.id, conversation.feedback))
        for metadata in (conversation.metadata, *(message.metadata for message in conversation.messages)):
            yield from metadata
            yield from metadata.values()
        for one in conversation.messages:
            yield from filter(None, (one.id, one.message, one.name, one.thought, one.observation))


def mend(text: str) -> str:
    """The text with U+FFFD for lone surrogates."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def dumped(value: object) -> str:
    """The value as JSON text that reads back equal; what is not JSON becomes its text."""
    return mend(_encode(value))


# json.dumps makes an encoder for every call that is not of its own defaults.
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


def _storable(conversation: Conversation) -> Conversation:
    return replace(
        conversation,
        id=_mend(conversation.id),
        feedback=_mend(conversation.feedback),
        metadata=_mended(conversation.metadata),
        messages=tuple(
            replace(
                message,
                id=_mend(message.id),
                message=mend(message.message),
                metadata=_mended(message.metadata),
                name=_mend(message.name),
                thought=_mend(message.thought),
                observation=_mend(message.observation),
            )
            for message in conversation.messages
        ),
    )


def _mend(text: str | None) -> str | None:
    return None if text is None else mend(text)


def _mended(metadata: Mapping[str, str]) -> dict[str, str]:
    return {mend(key): mend(text) for key, text in metadata.items()}


def _moment(message: Message) -> datetime:
    if message.event_timestamp is None:
        raise ValueError("only a sealed log call can be kept")
    return message.event_timestamp


def _rolled(digest: str, message: Message) -> str:
    text = f"{digest}\x1f{message.type}\x1f{message.role}\x1f{message.message}"
    return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()


def _prefixes(conversation: Conversation) -> list[str]:
    """The digests of the first two messages, the first three, … and all."""
    digests = list(accumulate(conversation.messages, _rolled, initial=""))
    return digests[2:]
