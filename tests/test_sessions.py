"""session(): who is speaking, for everything inside and nothing outside."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest
from fakemodels import Echo
from langchain_core.runnables import RunnableLambda
from parcels import conversations, ratings, threads

from contextwrap.client import configure
from contextwrap.identity import current_scope
from contextwrap.sessions import rate, session


@pytest.fixture
def client(home):
    """The default client."""
    return configure(home=home)


def test_an_inner_session_inherits_what_it_does_not_say(client):
    """A nested session takes user, thread, metadata and tags of the outer one, and adds its own."""
    with session(user_id="u", thread_id="t", metadata={"a": 1, "b": 1}, tags=["x"]):
        with session(metadata={"b": 2, "n": None}, tags=["y", "x"]):
            inner = current_scope().identity
            assert (inner.user_id, inner.thread_id) == ("u", "t")
            assert inner.metadata == {"a": "1", "b": "2"}
            assert inner.tags == ("x", "y")
        with session(user_id="other", thread_id=7):
            assert (current_scope().identity.user_id, current_scope().identity.thread_id) == ("other", "7")
        assert current_scope().identity.metadata == {"a": "1", "b": "1"}
    assert current_scope() is None


def test_a_session_without_a_thread_is_a_thread(client, home):
    """All inside one session is one thread; two sessions are two."""
    for _ in range(2):
        with session(user_id="u") as here:
            Echo().invoke("one")
            Echo().invoke("two")
            assert here.thread_id
            assert here.user_id == "u"
    found = threads(home)
    assert len(found) == 2
    for said in found.values():
        assert [text for who, text in said if who == "user"] == ["one", "two"]


def test_an_empty_thread_id_is_none(client):
    """An empty thread id says nothing: the session is a thread of its own."""
    with session(thread_id="") as here:
        assert len(here.thread_id) == 32


async def test_async_with(client, home):
    """`async with` is the same scope."""
    async with session(user_id="u", thread_id="t"):
        await Echo().ainvoke("hi")
    assert current_scope() is None
    (one,) = conversations(home)
    assert (one.id, one.user_id) == ("t", "u")


async def test_tasks_keep_their_session(client, home):
    """Tasks begun inside a session are in it; those beside it are in their own."""

    async def work(number):
        async with session(user_id=f"u{number}"):
            await asyncio.gather(Echo(pause=0.001).ainvoke(f"a{number}"), Echo().ainvoke(f"b{number}"))

    await asyncio.gather(*(work(number) for number in range(20)))
    found = conversations(home)
    assert len(found) == 40
    for one in found:
        assert one.messages[0].message[1:] == one.user_id[1:]


def test_a_bare_thread_is_outside(client, home):
    """A thread of the host's own making sees no session, and what runs there is not recorded."""
    seen = []

    def work():
        seen.append(current_scope())
        Echo().invoke("nobody's")

    with session(user_id="u"):
        worker = threading.Thread(target=work)
        worker.start()
        worker.join()
        copied = threading.Thread(target=contextvars.copy_context().run, args=(lambda: Echo().invoke("u's"),))
        copied.start()
        copied.join()
    assert seen == [None]
    assert [one.messages[0].message for one in conversations(home)] == ["u's"]


def test_rate_marks_the_last_answer(client, home):
    """A rating in a session goes to the newest answer, with the thread it belongs to."""
    with session(thread_id="t") as here:
        Echo().invoke("one")
        Echo().invoke("two")
        assert here.rate(1, feedback="nailed it")
        assert rate(-1)
    assert here.rate(0)
    answer = conversations(home)[-1].messages[-1]
    assert answer.message == "echo: two"
    assert [log.rated for log in ratings(home)] == [answer.id] * 3
    assert [log.marks[0].rating for log in ratings(home)] == [1, -1, 0]
    assert ratings(home)[0].marks[0].feedback == "nailed it"


def test_an_early_rating_reaches_the_next_answer(client, home):
    """A rating that comes before there is an answer waits for it."""
    with session() as here:
        assert here.rate(1, feedback="early")
        assert ratings(home) == []
        Echo().invoke("hi")
        Echo().invoke("again")
    (log,) = ratings(home)
    assert log.rated == conversations(home)[0].messages[-1].id
    assert log.marks[0].feedback == "early"


def test_an_inner_session_of_the_thread_shares_its_turn(client, home):
    """An answer recorded in an inner session of the same thread is rated from the outer one."""
    with session(thread_id="t") as outer:
        with session(tags=["inner"]):
            Echo().invoke("hi")
        assert outer.rate(1)
    assert ratings(home)[0].rated == conversations(home)[0].messages[-1].id


@pytest.mark.parametrize("rating", [5, True, None, "good"])
def test_nonsense_is_never_kept_for_later(client, home, rating):
    """A rating that is none is refused, also before there is an answer."""
    with session() as here:
        assert here.rate(rating) is False
        Echo().invoke("hi")
    assert ratings(home) == []
    assert client.stats().lost == {"rate: a rating is -1, 0 or +1": 1}


def test_rate_outside_a_session_needs_a_target(client, home):
    """Outside a session a rating has to name the message or the thread."""
    assert rate(1) is False
    assert rate(1, thread="t")
    assert rate(1, message="m")
    assert [log.rated for log in ratings(home)] == ["t", "m"]


def test_leaving_elsewhere_is_harmless(client):
    """A session left in another Context than it was entered in ends without an error."""
    here = session(user_id="u")
    contextvars.copy_context().run(here.enter)
    here.leave()
    assert current_scope() is None


def test_errors_pass_through(client):
    """What is raised inside comes out as it is, and the session has ended."""
    with pytest.raises(KeyError, match="mine"), session():
        raise KeyError("mine")
    assert current_scope() is None


def test_what_langchain_runs_inside_is_recorded_unwrapped(client, home):
    """Inside a session nothing needs wrapping; outside, nothing is recorded."""
    chain = RunnableLambda(lambda text: text.upper())
    chain.invoke("outside")
    with session(user_id="u", metadata={"page": "/help"}, tags=["a", "b"]):
        chain.invoke("inside")
    (one,) = conversations(home)
    assert one.metadata == {"user_id": "u", "page": "/help", "tags": "a,b"}
    assert [message.message for message in one.messages] == ["inside", "INSIDE"]
