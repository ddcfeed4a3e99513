"""A tracked call without LangChain is itself the turn: its texts in, its result out."""

from __future__ import annotations

import asyncio
import inspect

import pytest
from fakemodels import Echo
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.runnables import RunnableLambda
from parcels import conversations, lines, ratings, sent
from pydantic import BaseModel

from contextwrap import session, track_context, wrap
from contextwrap.identity import current_scope

pytestmark = pytest.mark.usefixtures("recording")


def me():
    """The user of the scope this runs in."""
    scope = current_scope()
    return None if scope is None else scope.identity.user_id


class Ask(BaseModel):
    user: str
    question: str


HELLO = [("user", "hello"), ("assistant", "good day")]


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (lambda text: "good day", ["hello"]),
        (lambda anything: "good day", ["hello"]),
        (lambda self, number, anything: AIMessage("good day"), [object(), 5, "hello"]),
        (lambda asked: {"answer": "good day"}, [{"question": "hello", "k": 3}]),
        (lambda asked: {"anything": "good day"}, [Ask(user="u", question="hello")]),
        (lambda messages, user: "good day", [[{"role": "user", "content": "hello"}], "u"]),
        (lambda question, locale: "good day", ["hello", "en"]),
        (lambda asked: Ask(user="u", question="good day"), [HumanMessage("hello")]),
        (lambda *args: "good day", ["hello"]),
        (lambda **kwargs: "good day", {"message": "hello", "locale": "en"}),
        (lambda anything, labels: "good day", ["hello", ["a", "b"]]),
        (lambda data, anything: "good day", [b"binary", "hello"]),
    ],
)
async def test_a_call_without_langchain_is_the_conversation(home, function, given):
    """Text arguments in, result out: one turn, with the session's user, and how long it took."""

    async def later(*args, **kwargs):
        return function(*args, **kwargs)

    later.__signature__ = inspect.signature(function)
    args, kwargs = ((), given) if isinstance(given, dict) else (given, {})
    with session(user_id="u1"):
        track_context(function)(*args, **kwargs)
        await track_context(later)(*args, **kwargs)
    first, second = conversations(home)
    assert lines(first)[:1] == HELLO[:1]
    assert lines(first)[-1][1] in {"good day", '{"user":"u","question":"good day"}'}
    assert lines(first)[-1] == lines(second)[-1]
    assert first.user_id == "u1"
    assert int(first.messages[-1].metadata["latency_ms"]) >= 0


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (5, "5"),
        ([1, 2], "[1, 2]"),
        (b"x", None),
        (object(), None),
        (None, None),
        ({"a": 1, "b": 2}, '{"a": 1, "b": 2}'),
    ],
)
def test_the_answer_is_what_the_result_says(home, result, text):
    """Text, messages and what JSON can carry are an answer; bytes, opaque objects and None are none."""
    track_context(lambda question: result)("hello")
    (one,) = conversations(home)
    assert lines(one)[1:] == ([] if text is None else [("assistant", text)])


def test_who_it_is_is_nothing_said(home):
    """An argument that is the user, the thread or metadata as it stands is not what the user said."""

    @track_context(user_id="{user}", thread_id="{chat}", metadata={"page": "{page}"})
    def answer(user, chat, page, anything):
        return "good day"

    answer("u", "t", "/help", "hello")
    (one,) = conversations(home)
    assert (one.id, one.user_id, lines(one)) == ("t", "u", HELLO)


def test_what_was_asked_is_kept_as_it_was(home):
    """A list of messages to which the function adds its answer was asked without it."""

    @track_context
    def answer(messages):
        messages.append({"role": "assistant", "content": "good day"})
        return "good day"

    answer([{"role": "user", "content": "hello"}])
    assert [lines(one) for one in conversations(home)] == [HELLO]


def test_neither_asked_nor_answered_is_nothing(home):
    """A call without text in and out leaves no record, even if it fails."""
    track_context(lambda number: None)(5)
    with pytest.raises(ZeroDivisionError):
        track_context(lambda: 1 / 0)()
    assert sent(home) == []


def test_a_failed_call_is_an_error_row(home):
    """A question and what went wrong, where the function raises instead of answering."""
    with pytest.raises(ZeroDivisionError):
        track_context(lambda question: 1 / 0)("hello")
    (one,) = conversations(home)
    assert lines(one) == [("user", "hello"), ("event", "ZeroDivisionError: division by zero")]


async def test_a_cancelled_call_is_interrupted(home):
    """A cancelled call is no failure: its answer is empty and marked as interrupted."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(track_context(lambda question: asyncio.Event().wait())("hello"), 0.01)
    (one,) = conversations(home)
    assert lines(one) == [("user", "hello"), ("assistant", "")]
    assert one.messages[-1].metadata["interrupted"] == "true"


@pytest.mark.parametrize(
    "inside",
    [
        lambda: Echo().invoke("hello"),
        lambda: wrap(Echo()).invoke("hello"),
        lambda: session.current().add_message("user", "hello"),
        lambda: track_context(lambda question: "hi")("hello"),
        lambda: "".join(chunk.text for chunk in Echo().stream("hello")),
    ],
)
def test_a_call_with_something_recorded_inside_is_no_turn_of_its_own(home, inside):
    """Where LangChain, another tracked call or an added message is recorded inside, that is all there is."""

    @track_context
    def answer(question):
        inside()
        return "never recorded"

    answer("asked")
    (one,) = conversations(home)
    assert ("user", "hello") in lines(one)
    assert "never recorded" not in str(lines(one))


def test_a_tracked_step_of_a_recorded_chain_is_part_of_it(home):
    """A tracked function that a wrapped chain calls is no conversation beside the chain's."""
    step = track_context(lambda question: "good day")
    assert wrap(RunnableLambda(lambda asked: step(asked))).invoke("hello") == "good day"
    assert [lines(one) for one in conversations(home)] == [HELLO]
    assert RunnableLambda(lambda asked: step(asked)).invoke("hello") == "good day"
    assert [lines(one) for one in conversations(home)] == [HELLO, HELLO]


def test_its_answer_can_be_rated(home):
    """A rating inside the call is its answer's; the thread hears each message once."""

    @track_context(thread_id="t")
    def answer(question):
        session.current().rate(1, feedback="nailed it")
        return "good day"

    answer("hello")
    (rating,) = ratings(home)
    (one,) = conversations(home)
    assert rating.rated == one.messages[-1].id


@pytest.mark.parametrize(("capture", "expected"), [("off", []), ("metadata", [[("user", ""), ("assistant", "")]])])
def test_capture_is_the_sessions(home, capture, expected):
    """What the decorator says of keeping holds for the call as for all inside."""
    track_context(capture=capture)(lambda question: "good day")("hello")
    with session(capture=capture):
        track_context(lambda question: "good day")("hello")
    assert [lines(one) for one in conversations(home)] == expected * 2
