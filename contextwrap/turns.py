"""One turn, from its parts to the client: what is new of what was said, what happened between, the answer.

Both a finished root run and a tracked function without any end here. Knows identities and threads, nothing of
LangChain's events.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

from contextwrap.client import ContextWrap, default_client
from contextwrap.heard import Heard
from contextwrap.ids import new_id, new_ids
from contextwrap.model import Conversation, Message
from contextwrap.redaction import bare

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime

    from contextwrap.identity import Scope


@dataclass(frozen=True, slots=True, kw_only=True)
class Spoken:
    """What one turn consists of: `heard` may repeat the thread's history, `between` are tools and events.

    The id of `answer` is not in it yet: it is the one that its turn has promised. `source` is LangChain's id of it,
    when it comes from a state that also holds the answers of before: a graph that goes on without a word of the
    user's shows the last of them again.
    """

    heard: tuple[Message, ...] = ()
    between: tuple[Message, ...] = ()
    answer: Message | None = None
    source: str | None = None


def log_turn(
    spoken: Spoken, scope: Scope, *, begun_at: datetime | None = None, clients: Iterable[ContextWrap] = ()
) -> None:
    """Hand the turn to `clients` (default: the default client); a turn without any message is none."""
    identity = scope.identity
    if identity.capture == "off":
        return
    answer = spoken.answer
    answer_id = None if answer is None else scope.turn.answer_takes()
    thread = identity.thread or new_id()
    for client in clients or (default_client(),):
        now = client.now()
        between = _sealed(spoken.between, now)
        last = () if answer is None else (answer.sealed(own_id=answer_id, at=now),)
        news = spoken.heard
        if identity.thread:
            # What another client was told, this one has not heard.
            memory = _heard.get(client) or _heard.setdefault(client, Heard())
            if spoken.source and not memory.first_time(thread, spoken.source):
                last = ()
            news = memory.news(thread, news, (*between, *last))
        messages = (*_sealed(news, begun_at or now), *between, *last)
        if not messages:
            continue
        conversation = Conversation(id=thread, metadata=_metadata(scope, last), messages=messages)
        if identity.capture == "metadata":
            conversation = bare(conversation)
        if client.record(conversation) is not None and last:
            _remember_answer(client, scope, thread, last[0])


def _sealed(messages: Sequence[Message], at: datetime) -> list[Message]:
    if not messages:
        return []
    return [message.sealed(own_id=own, at=at) for message, own in zip(messages, new_ids(len(messages)), strict=True)]


def forget_threads() -> None:
    """Forget what every thread has heard: in a child of fork it is the parent's."""
    _heard.clear()


def _remember_answer(client: ContextWrap, scope: Scope, thread: str, answer: Message) -> None:
    assert answer.id is not None
    for rating, feedback in scope.turn.answered(answer.id, thread):
        client.rate(rating, message=answer.id, thread=thread, feedback=feedback)


def _metadata(scope: Scope, answers: tuple[Message, ...]) -> dict[str, str]:
    identity = scope.identity
    metadata = dict(identity.metadata)
    if identity.user_id is not None:
        metadata["user_id"] = identity.user_id
    if identity.tags:
        metadata["tags"] = ",".join(identity.tags)
    for answer in answers:
        if "model" in answer.metadata:
            metadata.setdefault("model", answer.metadata["model"])
    return metadata


_heard: WeakKeyDictionary[ContextWrap, Heard] = WeakKeyDictionary()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=forget_threads)
