"""What each log call does to the store: every rule of `Store.apply`."""

from __future__ import annotations

from datetime import timedelta

import pytest
from saying import NOON, bot, conversation, entry, everything, rating, say, texts, thread, upsert, user

from contextwrap.model import Message
from contextwrap.store.records import Applied, ConversationQuery, Entry, Totals

HI = (user("hi"), bot("hello"))
HOUR = timedelta(hours=1)


def only(store):
    """The one conversation there is."""
    (found,) = everything(store)
    return found


def test_a_conversation_is_always_new(store):
    """Two equal conversation calls make two conversations."""
    assert say(store, conversation(*HI), conversation(*HI)) == Applied(applied=2)
    assert [texts(found) for found in everything(store)] == [["hi", "hello"]] * 2


def test_every_field_comes_back(store):
    """What was logged is what is answered: types, tools, events, input of any JSON, metadata, feedback, times."""
    rows = (
        user("find it", id="m1", rating=0, metadata={"language": "en"}),
        Message(
            role="assistant",
            type="tool",
            id="m2",
            name="search",
            thought="hm",
            input={"q": [1, None, "ü"]},
            observation="3 hits",
        ),
        Message(role="system", type="event", id="m3", name="clicked", metadata={"where": "top"}),
        bot("here", id="m4", rating=-1, event_timestamp=NOON + HOUR),
    )
    call = thread("t", *rows, feedback="so so", user_id="u", model="m")
    say(store, call)
    found = only(store)
    assert found.messages == entry("k0", call).log.conversation.messages
    assert (found.id, found.user_id, found.metadata, found.feedback) == (
        "t",
        "u",
        {"user_id": "u", "model": "m"},
        "so so",
    )
    assert (found.started_at, found.last_at) == (NOON, NOON + HOUR)


@pytest.mark.parametrize("value", [0, False, "", [], {}, 1.5, "text", {"a": {"b": [True]}}])
def test_a_tools_input_is_any_json(store, value):
    """A falsy input is not an absent one."""
    say(store, conversation(Message(role="assistant", type="tool", name="n", input=value)))
    assert only(store).messages[0].input == value
    assert type(only(store).messages[0].input) is type(value)


def test_a_thread_appends_to_the_one_of_its_id(store):
    """Messages of one thread id make one conversation, in one batch as in several."""
    say(store, thread("t", user("1")), thread("t", bot("2")))
    say(store, thread("t", user("3")), start=2)
    assert texts(only(store)) == ["1", "2", "3"]


def test_messages_keep_the_order_they_were_logged_in(store):
    """A backfilled time changes when a conversation began, not the order of its messages."""
    say(store, thread("t", user("late", event_timestamp=NOON)), thread("t", bot("early", event_timestamp=NOON - HOUR)))
    assert texts(only(store)) == ["late", "early"]
    assert (only(store).started_at, only(store).last_at) == (NOON - HOUR, NOON)


@pytest.mark.parametrize("together", [True, False])
def test_a_message_id_is_added_once_to_a_conversation(store, together):
    """A message whose id the conversation has is not added again, but another conversation may have it too."""
    calls = [
        thread("t", user("1", id="a")),
        thread("t", user("again", id="a"), bot("2", id="b")),
        thread("u", user("1", id="a")),
    ]
    if together:
        say(store, *calls)
    else:
        for number, call in enumerate(calls):
            say(store, call, start=number)
    assert texts(store.conversation("t")) == ["1", "2"]
    assert texts(store.conversation("u")) == ["1"]


def test_an_append_merges_metadata_and_the_first_user_stays(store):
    """New keys win, old ones stay; a thread that knows its user keeps that user."""
    say(store, thread("t", user("1"), a="1", b="1"), thread("t", user("2"), user_id="u", b="2"))
    say(store, thread("t", user("3"), user_id="other", c="3"), start=2)
    assert only(store).metadata == {"a": "1", "b": "2", "c": "3", "user_id": "u"}
    assert store.summaries(ConversationQuery(user_id="u")).total == 1
    assert store.summaries(ConversationQuery(user_id="other")).total == 0


def test_tenants_never_see_each_other(store):
    """The same ids in two tenants are two conversations, for reading, rating, continuing and counting."""
    say(
        store,
        thread("t", *HI, tenant="a"),
        thread("t", user("other"), tenant="b"),
        upsert(*HI, user("more"), tenant="b"),
    )
    assert texts(store.conversation("t", tenant_id="a")) == ["hi", "hello"]
    assert store.conversation("t") is None
    assert say(store, rating("t", 1, tenant="c"), start=3).unmatched == ("k3",)
    assert store.totals(tenant_id="b") == Totals(conversations=2, messages=4, users=0, positive=0, negative=0)
    assert [found.tenant_id for found in store.export(tenant_id="a")] == ["a"]


@pytest.mark.parametrize("together", [True, False])
def test_a_key_is_applied_once(store, together):
    """A repeated key changes nothing, within a batch or later."""
    entries = [entry("k", thread("t", user("1"))), entry("k", thread("t", user("2")))]
    results = [store.apply(entries)] if together else [store.apply([item]) for item in entries]
    assert sum(result.applied for result in results) == 1
    assert sum(result.duplicates for result in results) == 1
    assert texts(only(store)) == ["1"]


@pytest.mark.parametrize("together", [True, False])
def test_an_upsert_continues_what_it_starts_with(store, together):
    """A request that starts with a whole earlier conversation of the same metadata adds its tail to it."""
    calls = [
        conversation(*HI, user_id="u"),
        upsert(*HI, user("more"), user_id="u"),
        upsert(*HI, user("more"), bot("yes"), user_id="u"),
    ]
    if together:
        say(store, *calls)
    else:
        for number, call in enumerate(calls):
            say(store, call, start=number)
    assert texts(only(store)) == ["hi", "hello", "more", "yes"]


def test_an_equal_upsert_adds_nothing(store):
    """The whole request may be the earlier conversation."""
    say(store, upsert(*HI), upsert(*HI))
    assert texts(only(store)) == ["hi", "hello"]


@pytest.mark.parametrize(
    "later",
    [
        upsert(*HI, user("more"), user_id="other"),
        upsert(user("hi"), bot("hullo"), user("more"), user_id="u"),
        upsert(user("hi"), user("hello"), user("more"), user_id="u"),
        upsert(user("hi"), user_id="u"),
    ],
    ids=["metadata", "text", "role", "shorter"],
)
def test_an_upsert_that_does_not_continue_is_new(store, later):
    """Other metadata, text or role, or only a part of the earlier conversation, make a new one."""
    say(store, conversation(*HI, user_id="u"), later)
    assert len(everything(store)) == 2


def test_one_message_is_too_little_to_continue(store):
    """An earlier conversation of a single message is not continued."""
    say(store, conversation(user("hi")), upsert(*HI))
    assert len(everything(store)) == 2


@pytest.mark.parametrize(("after", "conversations"), [(6 * HOUR, 1), (6 * HOUR + timedelta(seconds=1), 2), (-HOUR, 2)])
def test_an_upsert_continues_at_most_six_hours_later(store, after, conversations):
    """The request's own time counts, from the earlier conversation's start; the future is not earlier."""
    say(store, conversation(*HI))
    say(store, upsert(*HI, user("more")), at=NOON + after, start=1)
    assert len(everything(store)) == conversations


def test_an_upsert_takes_the_longest(store):
    """Of two conversations it starts with, the longer one grows."""
    say(store, conversation(*HI), conversation(*HI, user("more")), upsert(*HI, user("more"), bot("yes")))
    assert sorted(map(texts, everything(store)), key=len) == [["hi", "hello"], ["hi", "hello", "more", "yes"]]


def test_a_thread_that_has_grown_is_continued_as_it_is_now(store):
    """What an upsert has to start with is all of the conversation, however it came to be."""
    say(
        store,
        thread("t", *HI),
        thread("t", user("more")),
        upsert(*HI, user("other")),
        upsert(*HI, user("more"), bot("yes")),
    )
    assert texts(store.conversation("t")) == ["hi", "hello", "more", "yes"]
    assert len(everything(store)) == 2


@pytest.mark.parametrize("together", [True, False])
def test_rating_a_message_marks_it_and_keeps_what_was_said(store, together):
    """The mark and the feedback are the message's; a later mark takes the earlier one's place, feedback stays."""
    calls = [thread("t", user("q", id="q"), bot("a", id="a")), rating("a", 1, feedback="great"), rating("a", -1)]
    if together:
        say(store, *calls)
    else:
        for number, call in enumerate(calls):
            say(store, call, start=number)
    answer = only(store).messages[1]
    assert (answer.rating, answer.metadata) == (-1, {"feedback": "great"})
    assert store.totals() == Totals(conversations=1, messages=2, users=0, positive=0, negative=1)


@pytest.mark.parametrize("together", [True, False])
def test_rating_a_thread_marks_its_newest_answers(store, together):
    """Marks go newest first to assistant messages; tools and events are no answers, marks without one are spare."""
    tool = Message(role="assistant", type="tool", name="n")
    calls = [thread("t", user("1"), bot("2"), tool, bot("3")), thread("t", user("4"), bot("5")), rating("t", 1, -1)]
    if together:
        say(store, *calls)
    else:
        for number, call in enumerate(calls):
            say(store, call, start=number)
    assert [message.rating for message in only(store).messages] == [None, None, None, -1, None, 1]
    say(store, rating("t", 0, 0, 0, 0, 0), start=9)
    assert [message.rating for message in only(store).messages] == [None, 0, None, 0, None, 0]


def test_a_message_id_goes_before_a_thread_id(store):
    """An id that names both rates the message."""
    say(store, thread("x", bot("a"), bot("b")), thread("y", bot("c", id="x")), rating("x", 1))
    assert [message.rating for message in store.conversation("x").messages] == [None, None]
    assert store.conversation("y").messages[0].rating == 1


def test_a_rating_of_nothing_known_may_come_again(store):
    """It is reported by its key and not remembered, so the same key works once there is something to rate."""
    early = entry("r", rating("a", 1))
    assert store.apply([early]) == Applied(unmatched=("r",))
    assert store.apply([entry("m", thread("t", bot("x", id="a"))), early]) == Applied(applied=2)
    assert only(store).messages[0].rating == 1


def test_a_rating_does_not_see_what_comes_after_it(store):
    """Order within a batch counts."""
    assert say(store, rating("a", 1), thread("t", bot("x", id="a"))).unmatched == ("k0",)


def test_a_failing_batch_leaves_nothing(store):
    """A batch is one transaction: what cannot be stored takes the rest of it back."""
    unsealed = Entry(key="bad", log=conversation(user("x")))
    with pytest.raises(ValueError, match="sealed"):
        store.apply([entry("good", conversation(*HI)), unsealed])
    assert everything(store) == []
    assert store.apply([entry("good", conversation(*HI))]) == Applied(applied=1)


def test_a_batch_of_nothing_is_fine(store):
    """An empty batch is applied."""
    assert store.apply([]) == Applied()
