"""The wire model: what goes out comes in again, and what is wrong is named."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextwrap.errors import WireError
from contextwrap.model import (
    MAX_ID,
    Conversation,
    Log,
    Message,
    RatingMark,
    Request,
    Route,
    from_iso,
    from_json,
    to_iso,
    to_json,
)

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)
ODD_IDS = ["a/b?c#d", "größe ✓", "two words", "50%", "a%2Fb", "..", "&x=1;y", "🦜" * 20, "+"]

# A surrogate pair written as two escapes is read as the one character it stands for; that is JSON's own rule.
_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
texts = st.text(alphabet=st.characters(), max_size=30).filter(lambda text: not _PAIR.search(text))
ids = st.none() | st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)
metadata = st.dictionaries(texts, texts, max_size=4)
moments = st.none() | st.integers(0, 7_000_000_000_000).map(lambda ms: EPOCH + timedelta(milliseconds=ms))
plain = st.recursive(
    st.none() | st.booleans() | st.integers() | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
messages = st.builds(
    Message,
    role=st.sampled_from(["user", "assistant", "system"]),
    message=texts,
    id=ids,
    type=st.sampled_from(["message", "tool", "event"]),
    rating=st.sampled_from([None, -1, 0, 1]),
    event_timestamp=moments,
    metadata=metadata,
    name=st.none() | texts,
    thought=st.none() | texts,
    input=plain,
    observation=st.none() | texts,
)
conversations = st.builds(
    Conversation,
    messages=st.lists(messages, min_size=1, max_size=4).map(tuple),
    metadata=metadata,
    id=ids,
    feedback=st.none() | texts,
)


@given(messages)
def test_message_round_trip(message):
    """A message is the same after the wire, whatever its text."""
    assert Message.from_wire(from_json(to_json(message.to_wire()))) == message


@given(conversations)
def test_conversation_round_trip(conversation):
    """A conversation is the same after the wire, whatever its text."""
    assert Conversation.from_wire(from_json(to_json(conversation.to_wire()))) == conversation


@given(conversations, st.sampled_from([Route.CONVERSATION, Route.UPSERT, Route.THREAD]), st.text(max_size=39))
def test_log_request_round_trip(conversation, route, tenant_id):
    """A call is the same after its HTTP request; only threads carry an id."""
    log = Log(route=route, tenant_id=tenant_id, conversation=conversation)
    read = Log.from_request(log.to_request())
    assert read.route is route
    assert read.tenant_id == tenant_id
    assert read.conversation is not None
    assert read.conversation.id == (conversation.id if route is Route.THREAD else None)
    assert read.conversation.messages == conversation.messages
    assert read.conversation.metadata == conversation.metadata


@pytest.mark.parametrize("rated", ODD_IDS)
@pytest.mark.parametrize("tenant_id", ["", "acme", "a&b=c/d", "größe ✓"])
def test_rating_request_round_trip(rated, tenant_id):
    """A rated id may hold any character, and the tenant travels in the query."""
    marks = (RatingMark(rating=1, feedback="nailed it 🦜"), RatingMark(rating=0), RatingMark(rating=-1))
    log = Log(route=Route.RATING, tenant_id=tenant_id, rated=rated, marks=marks)
    request = log.to_request()
    assert request.method == "PATCH"
    assert request.target.isascii()
    assert " " not in request.target
    assert Log.from_request(request) == log


@pytest.mark.parametrize("thread_id", ODD_IDS)
def test_thread_request_keeps_odd_ids(thread_id):
    """A thread's id may hold any character."""
    conversation = Conversation(id=thread_id, messages=(Message(role="user", message="hi"),))
    log = Log(route=Route.THREAD, conversation=conversation)
    assert Log.from_request(log.to_request()) == log


@pytest.mark.parametrize(
    ("wire", "place"),
    [
        ("no object", "conversation must be an object"),
        ({}, "conversation.messages must be a list with at least one message"),
        ({"messages": []}, "conversation.messages must be a list with at least one message"),
        ({"messages": ["hi"]}, "conversation.messages[0] must be an object"),
        ({"messages": [{"message": "hi"}]}, "conversation.messages[0].role must be one of user, assistant, system"),
        ({"messages": [{"role": "owl", "message": "hi"}]}, "conversation.messages[0].role must be one of"),
        ({"messages": [{"role": ["user"], "message": "hi"}]}, "conversation.messages[0].role must be one of"),
        ({"messages": [{"role": "user"}]}, "conversation.messages[0].message must be a string"),
        ({"messages": [{"role": "user", "message": 5}]}, "conversation.messages[0].message must be a string"),
        ({"messages": [{"role": "user", "message": "a"}, {"role": "user", "message": "b", "id": ""}]},
         "conversation.messages[1].id must have 1 to 256 characters"),
        ({"messages": [{"role": "user", "message": "a", "id": "x" * (MAX_ID + 1)}]}, "messages[0].id must have 1 to"),
        ({"messages": [{"role": "user", "message": "a", "id": 7}]}, "conversation.messages[0].id must be a string"),
        ({"messages": [{"role": "user", "message": "a", "type": "song"}]}, "messages[0].type must be one of message"),
        ({"messages": [{"role": "user", "message": "a", "rating": 2}]}, "messages[0].rating must be -1, 0 or 1"),
        ({"messages": [{"role": "user", "message": "a", "rating": True}]}, "messages[0].rating must be -1, 0 or 1"),
        ({"messages": [{"role": "user", "message": "a", "rating": []}]}, "messages[0].rating must be -1, 0 or 1"),
        ({"messages": [{"role": "user", "message": "a", "event_timestamp": 5}]}, "event_timestamp must be an ISO 8601"),
        ({"messages": [{"role": "user", "message": "a", "event_timestamp": "soon"}]},
         "conversation.messages[0].event_timestamp is not an ISO 8601 time: 'soon'"),
        ({"messages": [{"role": "user", "message": "a", "metadata": []}]}, "messages[0].metadata must be an object"),
        ({"messages": [{"role": "user", "message": "a", "observation": 1}]}, "[0].observation must be a string"),
        ({"messages": [{"role": "user", "message": "a"}], "id": ""}, "conversation.id must have 1 to 256 characters"),
        ({"messages": [{"role": "user", "message": "a"}], "feedback": 1}, "conversation.feedback must be a string"),
        ({"messages": [{"role": "user", "message": "a"}], "metadata": {str(n): "" for n in range(65)}},
         "conversation.metadata has more than 64 keys"),
        ({"messages": [{"role": "user", "message": "a"}], "metadata": {"k": "x" * 4097}},
         "conversation.metadata['k'] is longer than 4096 characters"),
    ],
)  # fmt: skip
def test_wire_error_names_the_place(wire, place):
    """What is not of the API's form is refused with the place and what is wrong there."""
    with pytest.raises(WireError, match=re.escape(place)):
        Conversation.from_wire(wire)


@pytest.mark.parametrize(
    ("method", "target", "body", "reason"),
    [
        ("GET", "/api/v1/log/conversation", b"{}", "GET /api/v1/log/conversation is not a log route"),
        ("POST", "/api/v1/elsewhere", b"{}", "POST /api/v1/elsewhere is not a log route"),
        ("POST", "/api/v1/log/conversation", b"{", "the body is not JSON"),
        ("POST", "/api/v1/log/conversation", b"\xff\xfe", "the body is not JSON"),
        ("POST", "/api/v1/log/conversation", b"[" * 100_000, "the body is not JSON"),
        ("POST", "/api/v1/log/conversation", b"[]", "body must be an object"),
        ("POST", "/api/v1/log/conversation", b"{}", "conversation must be an object"),
        ("POST", "/api/v1/log/conversation?tenant_id=" + "x" * 40, b"{}", "tenant_id must be shorter than 40"),
        ("PATCH", "/api/v1/log/conversation/thread/t", b"{}", 'the body must be a list like [{"rating": 1}]'),
        ("PATCH", "/api/v1/log/conversation/thread/t", b"[1]", "body[0] must be an object"),
        ("PATCH", "/api/v1/log/conversation/thread/t", b'[{"rating":1},{"rating":9}]', "body[1].rating must be"),
    ],
)
def test_request_error_names_the_reason(method, target, body, reason):
    """A request that is no log call is refused with what is wrong with it."""
    with pytest.raises(WireError, match=re.escape(reason)):
        Log.from_request(Request(method=method, target=target, body=body))


def test_a_log_call_needs_its_conversation():
    """A call of a log route without a conversation cannot be made."""
    with pytest.raises(WireError, match="needs a conversation"):
        Log(route=Route.UPSERT).to_request()


def test_roles_default_for_rows_that_nobody_said():
    """A tool row without a role is the assistant's, an event the system's; case does not matter."""
    assert Message.from_wire({"type": "tool", "name": "clock"}).role == "assistant"
    assert Message.from_wire({"type": "EVENT", "name": "login"}).role == "system"
    assert Message.from_wire({"role": "User", "message": "hi"}).role == "user"


def test_metadata_values_become_text():
    """A metadata value that is no text is kept as its JSON, and null is as good as absent."""
    read = Conversation.from_wire(
        {"messages": [{"role": "user", "message": "a"}], "metadata": {"n": 1, "l": [1], "x": None, "user_id": "u"}}
    )
    assert read.metadata == {"n": "1", "l": "[1]", "user_id": "u"}
    assert read.user_id == "u"


def test_sealed_is_the_same_for_the_same_key():
    """Sealing fills in what is missing, the same for one key, and keeps what was given."""
    given_id = Message(role="user", message="mine", id="my-id", event_timestamp=NOON - timedelta(days=1))
    conversation = Conversation(messages=(given_id, Message(role="assistant", message="yours")))
    log = Log(route=Route.THREAD, conversation=conversation)
    once, again, other = (log.sealed(key=key, at=NOON) for key in ("k1", "k1", "k2"))
    assert once == again
    assert once.sealed(key="k2", at=NOON + timedelta(hours=1)) == once
    assert once.conversation is not None
    assert other.conversation is not None
    first, second = once.conversation.messages
    assert first == given_id
    assert second.id
    assert second.event_timestamp == NOON
    assert once.conversation.id
    assert {once.conversation.id, second.id}.isdisjoint({other.conversation.id, other.conversation.messages[1].id})
    assert log.conversation == conversation


@given(messages)
def test_a_sealed_message_differs_in_what_it_did_not_have(message):
    """Sealing a message adds an id and a time where there was none, and changes nothing else."""
    expected = replace(message, id=message.id or "own", event_timestamp=message.event_timestamp or NOON)
    assert message.sealed(own_id="own", at=NOON) == expected


def test_sealed_leaves_a_rating_as_it_is():
    """A rating has nothing to fill in."""
    log = Log(route=Route.RATING, rated="t", marks=(RatingMark(rating=1),))
    assert log.sealed(key="k", at=NOON) is log


def test_times_are_utc_with_milliseconds():
    """Times go out as context-python writes them and come in from any zone; without one they are UTC."""
    assert to_iso(datetime(2025, 3, 1, 14, tzinfo=timezone(timedelta(hours=2)))) == "2025-03-01T12:00:00.000Z"
    for text in ("2025-03-01T12:00:00Z", "2025-03-01T14:00:00+02:00", "2025-03-01T12:00:00"):
        assert from_iso(text, where="t") == NOON
    with pytest.raises(WireError, match="t is not an ISO 8601 time"):
        from_iso("0001-01-01T00:00:00+23:00", where="t")


def test_json_carries_any_value():
    """What JSON has no word for goes as its text, and lone surrogates stay escaped."""
    assert json.loads(to_json({"when": NOON, "text": "ü"})) == {"when": str(NOON), "text": "ü"}
    assert to_json("\ud800") == b'"\\ud800"'
