"""What the store answers: lists, pages, filters, totals, export, and text of every kind."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saying import NOON, bot, conversation, entry, everything, rating, say, texts, thread, user

from contextwrap.store.records import ConversationQuery, Summary

DAY = timedelta(days=1)


def ids(page):
    """The ids on a page."""
    return [item.id for item in page.items]


def test_a_summary_says_what_a_list_needs(store):
    """First question, newest answer, how many messages and marks, who and when."""
    say(
        store,
        thread("t", user("q1"), bot("a1", rating=1), user_id="u"),
        thread("t", user("q2"), bot("x" * 600, rating=-1), bot("", rating=0, type="tool")),
    )
    assert store.summaries(ConversationQuery()).items == (
        Summary(
            id="t",
            user_id="u",
            first_question="q1",
            last_answer="x" * 500,
            messages=5,
            positive=1,
            negative=1,
            started_at=NOON,
            last_at=NOON,
        ),
    )


def test_pages_are_newest_first_and_never_repeat_or_lose_a_row(store):
    """Conversations of the same moment are ordered by id, so pages fit together; a page past the end is empty."""
    for number in range(7):
        say(store, thread(f"t{number}", user("x")), at=NOON + (number // 4) * DAY, start=number)
    pages = [store.summaries(ConversationQuery(page=page, per_page=3)) for page in (1, 2, 3, 4)]
    assert [ids(page) for page in pages] == [["t4", "t5", "t6"], ["t0", "t1", "t2"], ["t3"], []]
    assert {(page.total, page.page_count) for page in pages} == {(7, 3)}
    assert (pages[0].previous_page, pages[0].next_page, pages[2].next_page) == (None, 2, None)


def test_whole_conversations_come_in_the_order_of_the_list(store):
    """`conversations` is `summaries` with the messages."""
    for number in range(5):
        say(store, thread(f"t{number}", user(f"q{number}"), bot("a")), at=NOON + number * DAY, start=number)
    query = ConversationQuery(page=1, per_page=3)
    page = store.conversations(query)
    assert (ids(page), page.total) == (ids(store.summaries(query)), 5)
    assert [texts(found)[0] for found in page.items] == ["q4", "q3", "q2"]


def test_filters_bound_the_list(store):
    """Times bound the last message, start inclusive and end exclusive; user and rating are exact."""
    for number, mark in enumerate((1, 0, -1, None)):
        say(
            store,
            thread(f"t{number}", bot("a", rating=mark), user_id=f"u{number % 2}"),
            at=NOON + number * DAY,
            start=number,
        )
    assert ids(store.summaries(ConversationQuery(start=NOON + DAY, end=NOON + 3 * DAY))) == ["t2", "t1"]
    assert ids(store.summaries(ConversationQuery(user_id="u1"))) == ["t3", "t1"]
    assert [ids(store.summaries(ConversationQuery(rating=mark))) for mark in (1, 0, -1)] == [["t0"], ["t1"], ["t2"]]
    assert ids(store.summaries(ConversationQuery(user_id="' OR 1=1 --"))) == []


def test_a_filter_follows_a_new_mark(store):
    """A mark that takes another's place moves the conversation in the list of marks."""
    say(store, thread("t", bot("a", id="m", rating=1)), rating("m", -1))
    assert store.summaries(ConversationQuery(rating=1)).total == 0
    assert store.summaries(ConversationQuery(rating=-1)).total == 1


def test_what_can_be_rated_is_known(store):
    """Messages, and conversations with an answer, of the tenant can be rated, nothing else."""
    say(store, thread("t", bot("a", id="m"), tenant="x"))
    say(store, thread("asked", user("anybody?"), tenant="x"))
    names = ("t", "m", "n", "asked", "")
    assert store.rateable([(tenant, name) for tenant in ("x", "") for name in names]) == {("x", "t"), ("x", "m")}
    assert store.rateable([]) == set()


def test_export_gives_everything_oldest_first(store):
    """More than one chunk of conversations comes once each, in the order they began, ties by id."""
    calls = [thread(f"t{number:04}", user("x")) for number in range(1203)]
    say(store, *calls)
    say(store, thread("first", user("x")), at=NOON - DAY, start=2000)
    assert [found.id for found in store.export()] == ["first", *(call.conversation.id for call in calls)]


def test_an_export_shows_one_moment(store):
    """What is written while an export runs is not in it, and nothing is lost or repeated."""
    say(store, *(thread(f"t{number:04}", user("x")) for number in range(1100)))
    export = store.export()
    got = [next(export).id]
    say(store, thread("t1099", bot("late")), thread("zz", user("new")), at=NOON + DAY, start=2000)
    store.checkpoint()
    rest = list(export)
    assert got + [found.id for found in rest] == [f"t{number:04}" for number in range(1100)]
    assert texts(rest[-1]) == ["x"]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=40))
def test_any_text_comes_back(store, text):
    """Every text without lone surrogates round-trips, in every place text can be."""
    number = store.totals().conversations
    call = thread(
        f"t{number}{text}", bot(text, id=f"m{text}", thought=text, input={text: [text]}), user_id=text, k=text
    )
    store.apply([entry(f"{number}{text}", call)])
    found = store.conversation(f"t{number}{text}")
    (message,) = found.messages
    assert (message.message, message.thought, message.id, message.input) == (text, text, f"m{text}", {text: [text]})
    assert found.metadata == {"user_id": text, "k": text}


@pytest.mark.parametrize(
    "text",
    ["a\x00b", "שלום \u202e x", "👩🏽‍🚀" * 50_000, "x" * 3_000_000, "'; DROP TABLE messages; --", "\\u0000\ufffe"],
)
def test_hostile_text_is_only_text(store, text):
    """NUL, directions, megabytes and SQL are stored as they are."""
    say(store, conversation(user(text), bot("ok")))
    assert texts(everything(store)[0]) == [text, "ok"]


def test_lone_surrogates_become_replacement_characters(store):
    """What UTF-8 cannot hold is replaced wherever it stands, and found again under the name it was given."""
    bad = "a\ud800b\udfff"
    say(
        store,
        thread(bad, bot(bad, id=bad, name=bad, input=[bad], metadata={bad: bad}), tenant=bad, feedback=bad, k=bad),
    )
    say(store, rating(bad, 1, tenant=bad, feedback=bad), thread(bad, bot("again", id=bad), tenant=bad), start=1)
    found = store.conversation(bad, tenant_id=bad)
    good = "a\ufffdb\ufffd"
    (message,) = found.messages
    assert (found.id, found.feedback, found.metadata) == (good, good, {"k": good})
    assert (message.id, message.message, message.name, message.input) == (good, good, good, [good])
    assert (message.rating, message.metadata) == (1, {good: good, "feedback": good})
    worse = "a\udfffb\ud800"
    assert store.rateable([(bad, bad), (worse, worse), (bad, "other")]) == {(bad, bad), (worse, worse)}


def test_many_threads_read_while_one_writes(store):
    """Readers see whole batches: two messages are always added together."""
    say(store, thread("t", user("0"), bot("0")))
    odd, done = [], threading.Event()

    def read():
        while not done.is_set():
            found, listed = store.conversation("t"), store.summaries(ConversationQuery()).items[0]
            odd.extend(count for count in (len(found.messages), listed.messages) if count % 2)

    readers = [threading.Thread(target=read) for _ in range(4)]
    for reader in readers:
        reader.start()
    for number in range(1, 30):
        say(store, thread("t", user("q"), bot("a")), start=number)
    done.set()
    for reader in readers:
        reader.join()
    assert odd == []
    assert store.totals().messages == 60
