"""session(): who is speaking, for everything inside and nothing outside."""

from __future__ import annotations

import asyncio
import contextvars
import threading

import pytest
from fakemodels import Echo
from langchain_core.runnables import RunnableLambda
from parcels import conversations, lines, ratings, threads

from contextwrap.client import configure
from contextwrap.errors import ConfigurationError
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


# What is kept, and what LangChain does not know of.


@pytest.mark.parametrize("inner", ["content", "metadata", "off"])
@pytest.mark.parametrize("outer", ["content", "metadata", "off"])
def test_the_scope_that_captures_less_decides(client, home, outer, inner):
    """Inside a session that keeps less, nothing can be kept that it would not."""
    with session(capture=outer, user_id="ada"), session(capture=inner):
        assert Echo().invoke("my secret").text == "echo: my secret"
    kept = [lines(one) for one in conversations(home)]
    strictest = max(outer, inner, key=["content", "metadata", "off"].index)
    assert (
        kept
        == {
            "content": [[("user", "my secret"), ("assistant", "echo: my secret")]],
            "metadata": [[("user", ""), ("assistant", "")]],
            "off": [],
        }[strictest]
    )
    if strictest == "metadata":
        (one,) = conversations(home)
        assert one.user_id == "ada"
        assert one.messages[-1].metadata["total_tokens"] == "5"


def test_an_unknown_capture_is_refused():
    """A misspelt capture is an error where it is written."""
    with pytest.raises(ConfigurationError, match="capture is one of content, metadata, off"):
        session(capture="everything")


def test_the_current_session_is_found_from_anywhere(client, home):
    """session.current() is the innermost one, to rate and to add to; outside there is none."""

    def deep_inside():
        return session.current().rate(1)

    assert session.current() is None
    with session(user_id="ada", thread_id="t") as here:
        Echo().invoke("hi")
        assert (session.current().user_id, session.current().thread_id) == (here.user_id, "t")
        assert deep_inside()
    assert session.current() is None
    assert [log.rated for log in ratings(home)] == [conversations(home)[0].messages[-1].id]


def test_messages_of_ones_own(client, home):
    """add_message records what LangChain does not know; an assistant's is the answer that can be rated."""
    with session(thread_id="t") as here:
        asked = here.add_message("user", "hi")
        again = here.add_message("user", "hi")
        answer = here.add_message("assistant", "hello")
        here.rate(-1)
        assert here.answer_id == answer
        assert here.add_message("robot", "beep") is None
    rows = [row for one in conversations(home) for row in one.messages]
    assert [(row.id, row.role, row.message) for row in rows] == [
        (asked, "user", "hi"), (again, "user", "hi"), (answer, "assistant", "hello"),
    ]  # fmt: skip
    assert [log.rated for log in ratings(home)] == [answer]
    assert client.stats().lost == {"add_message: a role is one of user, assistant, system": 1}


def test_added_messages_are_known_to_the_thread(client, home):
    """A history that repeats what was added, or that an event happened in, adds only what is new."""
    with session(thread_id="t") as here:
        here.add_message("user", "one")
        here.add_message("assistant", "first")
        here.event("handed over", {"to": "support", "priority": 2, "none": None})
        Echo().invoke([("user", "one"), ("ai", "first"), ("user", "two")])
    assert threads(home) == {
        "t": [("user", "one"), ("assistant", "first"), ("event", ""), ("user", "two"), ("assistant", "echo: two")]
    }
    event = conversations(home)[2].messages[0]
    assert (event.name, dict(event.metadata)) == ("handed over", {"to": "support", "priority": "2"})


def test_an_answers_id_is_known_before_the_answer(client, home):
    """answer_id promises the id that the next answer then has, so that it can be told before it is there."""
    with session() as here:
        promised = here.answer_id
        assert here.answer_id == promised
        Echo().invoke("hi")
        assert here.answer_id == promised
        Echo().invoke("more")
        assert here.answer_id != promised
    assert conversations(home)[0].messages[-1].id == promised


def test_a_session_entered_again_is_the_same_conversation(client, home):
    """One session object used for several blocks is one thread."""
    here = session(user_id="ada")
    for question in ("one", "two"):
        with here:
            Echo().invoke(question)
    assert len(threads(home)) == 1


async def test_a_session_shared_by_tasks_leaves_each_as_it_was(client, home):
    """Tasks that enter the same session object at once all leave it, and none holds it afterwards."""
    here = session(user_id="ada")

    async def ask(number):
        async with here:
            await asyncio.sleep(0.01 * (number % 3))
            await Echo().ainvoke(str(number))
        return current_scope()

    assert await asyncio.gather(*map(ask, range(9))) == [None] * 9
    assert {one.user_id for one in conversations(home)} == {"ada"}


def test_a_user_given_as_one_tag_is_one_tag(client, home):
    """A string is a tag, not its letters."""
    with session(tags="vip"):
        Echo().invoke("hi")
    assert conversations(home)[0].metadata["tags"] == "vip"


def test_an_inner_threads_answer_is_the_outer_sessions_last(client, home):
    """What a session inside answers, in a thread of its own, can be rated from outside, before and after."""
    with session(thread_id="outer") as outer:
        outer.rate(1)
        with session(thread_id="inner"):
            Echo().invoke("hi")
        outer.rate(-1, feedback="no")
    answer = conversations(home)[0].messages[-1].id
    assert conversations(home)[0].id == "inner"
    assert [(log.rated, log.marks[0].rating) for log in ratings(home)] == [(answer, 1), (answer, -1)]
