"""What is beyond the API's bounds is cut and counted here, never refused there."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from parcels import conversations, sent

import contextwrap
from contextwrap.bounds import MAX_BYTES, bounded, bounded_id, bounded_text, parts, within
from contextwrap.model import (
    MAX_ID,
    MAX_MESSAGES,
    MAX_METADATA_KEYS,
    MAX_METADATA_VALUE,
    MAX_TEXT,
    Conversation,
    Log,
    Message,
    Request,
    Route,
    to_json,
)
from contextwrap.server.limits import MAX_BODY, check_depth, check_size


def deep(levels):
    value = "x"
    for _ in range(levels):
        value = [value]
    return value


def cut(conversation):
    """The bounded conversation and what was cut."""
    lost = []
    return bounded(conversation, lost=lost.append), lost


def accept(conversation):
    """As the server does: size, depth, form."""
    request = Log(route=Route.THREAD, conversation=conversation).to_request()
    assert len(request.body) <= MAX_BODY
    check_depth(request.body)
    check_size(Log.from_request(Request(method=request.method, target=request.target, body=request.body)))


def row(**fields):
    return Message(role="assistant", **{"message": "hi", **fields})


SMILE = "\N{GRINNING FACE}"
ODD = {
    "long thread id": Conversation(id="t" * (MAX_ID + 1), messages=(row(),)),
    "empty thread id": Conversation(id="", messages=(row(),)),
    "half a character": Conversation(id="\ud800", messages=(row(),)),
    "long message id": Conversation(id="t", messages=(row(id="m" * (MAX_ID + 1)),)),
    "many keys": Conversation(id="t", messages=(row(),), metadata={str(n): "x" for n in range(100)}),
    "long value": Conversation(id="t", messages=(row(),), metadata={"k": "x" * (MAX_METADATA_VALUE + 1)}),
    "long text": Conversation(id="t", messages=(row(message="x" * (MAX_TEXT + 1)),)),
    "long observation": Conversation(id="t", messages=(row(type="tool", observation="x" * (MAX_TEXT + 1)),)),
    "long input": Conversation(id="t", messages=(row(type="tool", input={"k": "x" * (MAX_TEXT + 1)}),)),
    "deep input": Conversation(id="t", messages=(row(type="tool", input=deep(100)),)),
    "very deep input": Conversation(id="t", messages=(row(type="tool", input=deep(700)),)),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_what_is_beyond_is_cut_and_said_once(odd):
    """Each kind of excess is cut to what the server takes, and told once."""
    inside, lost = cut(odd)
    assert len(lost) == 1
    accept(inside)
    assert cut(inside) == (inside, [])


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_what_is_beyond_is_never_taken_for_within(odd):
    """The quick look lets nothing pass that would have to be cut."""
    assert not within(odd)


texts = st.text(max_size=50) | st.sampled_from([SMILE, "\0", "\ud800", "x"]).flatmap(
    lambda one: st.integers(0, 400_000).map(one.__mul__)
)
names = st.none() | st.text(max_size=8) | st.integers(MAX_ID - 1, MAX_ID + 1).map("i".__mul__)
notes = st.dictionaries(st.text(max_size=8), texts, max_size=3) | st.integers(63, 65).map(
    lambda count: {str(number): "x" for number in range(count)}
)
anything = st.builds(
    Conversation,
    id=names,
    metadata=notes,
    feedback=st.none() | texts,
    messages=st.lists(
        st.builds(row, id=names, message=texts, observation=st.none() | texts, name=st.none() | texts, metadata=notes),
        min_size=1,
        max_size=3,
    ).map(tuple),
)


@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(anything)
def test_what_is_within_at_a_quick_look_is_within(conversation):
    """What the quick look lets pass has nothing to cut, and is no larger than one call."""
    as_it_is = cut(conversation) == (conversation, []) and len(to_json(conversation.to_wire())) <= MAX_BYTES
    assert as_it_is or not within(conversation)


def test_the_usual_is_within():
    """A turn as it usually is passes at a quick look, and so does a long document in it."""
    answer = row(id="0" * 32, metadata={"model": "m", "latency_ms": "12"})
    asked = Message(role="user", message="größe ✓ " * 10_000, id="1" * 32)
    assert within(Conversation(id="t", metadata={"user_id": "ada"}, messages=(asked, answer)))


def test_what_is_within_is_left_alone():
    """A conversation within bounds is itself."""
    fine = Conversation(
        id="t" * MAX_ID,
        metadata={str(n): "x" * MAX_METADATA_VALUE for n in range(MAX_METADATA_KEYS)},
        messages=(row(message="x" * MAX_TEXT), row(type="tool", input={"deep": deep(40)})),
    )
    assert cut(fine) == (fine, [])


def test_the_user_is_kept_of_many_keys():
    """Whose conversation it is survives the cut."""
    many = {str(n): "x" for n in range(100)} | {"user_id": "ada"}
    assert cut(Conversation(messages=(row(),), metadata=many))[0].user_id == "ada"


def test_a_long_id_is_the_same_every_time():
    """Turns and ratings of a thread with too long a name still find each other."""
    long = "t" * 1000
    assert cut(Conversation(id=long, messages=(row(),)))[0].id == bounded_id(long, lost=[].append)
    assert bounded_id(long, lost=[].append) != bounded_id(long + "x", lost=[].append)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_parts_are_the_whole(sizes):
    """In however many calls: all messages, in order, each call within bounds."""
    whole = Conversation(id="t", messages=tuple(row(message="x" * size * 250_000) for size in sizes))
    inside, _ = cut(whole)
    batches = list(parts(inside, lost=[].append))
    assert tuple(message for batch in batches for message in batch.messages) == inside.messages
    assert all(len(to_json(batch.to_wire())) <= MAX_BODY for batch in batches)


def test_many_messages_are_several_calls(home):
    """A turn of more messages than a call may bring arrives in several, in one lane."""
    client = contextwrap.configure(home=home)
    kept = client.record(Conversation(id="t", messages=tuple(row(message=str(n)) for n in range(MAX_MESSAGES * 2 + 1))))
    assert [len(one.messages) for one in conversations(home)] == [MAX_MESSAGES, MAX_MESSAGES, 1]
    assert len(kept.messages) == MAX_MESSAGES * 2 + 1
    assert [one.message for one in kept.messages] == [str(n) for n in range(MAX_MESSAGES * 2 + 1)]
    assert client.stats().recorded == 1
    assert client.stats().lost == {}


def test_cuts_are_counted(home, monkeypatch):
    """What was cut is in stats(), by reason, and what is left is recorded."""
    monkeypatch.delenv("CONTEXTWRAP_RAISE")
    client = contextwrap.configure(home=home)
    client.record(ODD["long thread id"])
    client.rate(1, thread="t" * (MAX_ID + 1))
    assert client.stats().lost == {f"replaced: an id that is no text of 1 to {MAX_ID} characters": 3}
    turn, rating = sent(home)
    assert rating.rated == turn.conversation.id


LARGE = {
    "escapes": Conversation(id="t", messages=(row(message="\0" * MAX_TEXT),)),
    "wide": Conversation(id="t", messages=(row(message=SMILE * MAX_TEXT, observation=SMILE * MAX_TEXT),)),
    "all escaped": Conversation(id="t", messages=(row(message="\ud800" + SMILE * (MAX_TEXT - 1)),)),
    "a name": Conversation(id="t", messages=(row(type="tool", name="n" * 6_000_000),)),
    "a key": Conversation(id="t", messages=(row(),), metadata={"k" * 6_000_000: "x", "user_id": "ada"}),
    "feedback": Conversation(id="t", messages=(row(),), feedback=SMILE * MAX_TEXT),
    "every field": Conversation(
        id="t",
        messages=(
            row(type="tool", message=SMILE * MAX_TEXT, thought=SMILE * MAX_TEXT, input={"k": SMILE * (MAX_TEXT - 10)}),
        ),
        metadata={str(number): SMILE * MAX_METADATA_VALUE for number in range(MAX_METADATA_KEYS)},
    ),
}


@pytest.mark.parametrize("large", LARGE.values(), ids=LARGE)
def test_what_no_call_could_carry_is_cut_and_said_once(large):
    """The server counts bytes too: whatever is large, what is left passes it, in one call."""
    inside, lost = cut(large)
    (only,) = parts(inside, lost=lost.append)
    assert lost == [f"cut: a message larger than {MAX_BYTES} bytes"]
    accept(only)
    assert only.user_id == large.user_id
    assert list(parts(only, lost=lost.append)) == [only]


MANY = {
    "inputs": row(type="tool", input={"k": "x" * 20_000}),
    "metadata": row(metadata={str(number): "x" * MAX_METADATA_VALUE for number in range(MAX_METADATA_KEYS)}),
    "escapes": row(message="\0" * 10_000),
    "half characters": row(message="\ud800" + SMILE * 10_000),
    "names": row(type="tool", name="n" * 20_000),
}


@pytest.mark.parametrize("one", MANY.values(), ids=MANY)
def test_what_is_only_much_is_several_calls(one):
    """Whatever makes a conversation large, its messages arrive whole, in as many calls as that takes."""
    whole = Conversation(id="t", metadata={"user_id": "ada"}, messages=(one,) * 300)
    lost = []
    batches = list(parts(whole, lost=lost.append))
    assert tuple(message for batch in batches for message in batch.messages) == whole.messages
    assert {(batch.id, batch.user_id) for batch in batches} == {("t", "ada")}
    assert len(batches) > 1
    assert lost == []
    for batch in batches:
        accept(batch)


@given(st.text(max_size=200), st.integers(1, 40_000))
def test_a_text_is_what_a_call_can_carry(text, times):
    """Of any text the beginning is kept that a server takes; what fits is left alone."""
    lost = []
    kept = bounded_text(text * times, lost=lost.append)
    assert (text * times).startswith(kept)
    assert len(kept) <= MAX_TEXT
    assert len(to_json(kept)) <= MAX_BYTES
    assert lost == ([] if kept == text * times else [f"cut: text longer than {MAX_TEXT} characters"])
