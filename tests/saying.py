"""Short ways to say log calls, as the tests of store and pipeline need them."""

from __future__ import annotations

from datetime import UTC, datetime

from contextwrap.model import Conversation, Log, Message, RatingMark, Route
from contextwrap.store.records import Entry

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


def user(text, **more):
    """What a user says."""
    return Message(role="user", message=text, **more)


def bot(text, **more):
    """What the assistant answers."""
    return Message(role="assistant", message=text, **more)


def log(route, *messages, id=None, tenant="", feedback=None, **metadata):
    """A log call of `route`."""
    conversation = Conversation(messages=messages, id=id, metadata=metadata, feedback=feedback)
    return Log(route=route, tenant_id=tenant, conversation=conversation)


def thread(id, *messages, **more):
    """An append to the thread `id`."""
    return log(Route.THREAD, *messages, id=id, **more)


def conversation(*messages, **more):
    """A new conversation."""
    return log(Route.CONVERSATION, *messages, **more)


def upsert(*messages, **more):
    """A conversation that may continue an earlier one."""
    return log(Route.UPSERT, *messages, **more)


def rating(rated, *marks, tenant="", feedback=None):
    """A rating of a message or a thread."""
    return Log(
        route=Route.RATING,
        tenant_id=tenant,
        rated=rated,
        marks=tuple(RatingMark(rating=mark, feedback=feedback) for mark in marks),
    )


def entry(key, call, *, at=NOON):
    """The sealed entry of a call."""
    return Entry(key=key, log=call.sealed(key=key, at=at))


def say(store, *calls, at=NOON, start=0):
    """Apply the calls in one batch under the keys k0, k1, …"""
    return store.apply([entry(f"k{number}", call, at=at) for number, call in enumerate(calls, start=start)])


def texts(stored):
    """What was said, in order."""
    return [message.message for message in stored.messages]


def everything(store):
    """All that the store answers, in a form two stores can be compared by."""
    return list(store.export())
