"""Rows H01, H02, H05, H07, H08, H19, H24, H25: what one user said is in no conversation but that user's."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from arrivals import configured, facts
from chains import config
from fakemodels import Echo
from fakeserver import Answer, FakeServer
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from parcels import lines

from contextwrap import session, wrap

PROMPT = ChatPromptTemplate.from_template("{question}")


def _turn(said):
    return [("user", said), ("assistant", f"echo: {said}")]


def _own(number):
    return {f"u{number}": [_turn(f"q{number}")]}


def _all(count):
    return {user: turns for number in range(count) for user, turns in _own(number).items()}


@pytest.mark.parametrize("how", ["handler", "wrap", "session"])
def test_h01_twenty_threads_and_one_handler_are_twenty_conversations(arrived, handler, how):
    """Each of 20 threads at once is a conversation with exactly its own user's words."""
    plain = PROMPT | Echo(pause=0.01) | StrOutputParser()
    wrapped = wrap(plain)
    together = threading.Barrier(20)

    def run(number):
        asked, user = {"question": f"q{number}"}, f"u{number}"
        together.wait(10)
        if how == "handler":
            plain.invoke(asked, config(handler, user_id=user))
        elif how == "wrap":
            wrapped.invoke(asked, {"metadata": {"user_id": user}})
        else:
            with session(user_id=user):
                plain.invoke(asked)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(run, range(20)))
    assert arrived.by_user() == _all(20)


@pytest.mark.parametrize("how", ["handler", "wrap", "session"])
async def test_h02_ten_concurrent_ainvokes_are_ten_conversations(arrived, handler, how):
    """Ten tasks at once are ten conversations of two messages each."""
    plain = PROMPT | Echo(pause=0.01) | StrOutputParser()
    wrapped = wrap(plain)

    async def run(number):
        asked, user = {"question": f"q{number}"}, f"u{number}"
        if how == "handler":
            await plain.ainvoke(asked, config(handler, user_id=user))
        elif how == "wrap":
            await wrapped.ainvoke(asked, {"metadata": {"user_id": user}})
        else:
            async with session(user_id=user):
                await plain.ainvoke(asked)

    await asyncio.gather(*map(run, range(10)))
    assert arrived.by_user() == _all(10)


@pytest.mark.parametrize("where", ["model", "lambda", "parser"])
def test_h05_a_failed_chain_is_logged_with_its_error(arrived, handler, where):
    """Wherever a chain fails, its error is recorded, and the next call is a conversation of its own."""

    def fail(_):
        raise ValueError("boom")

    broken = {
        "model": PROMPT | Echo(failures=["boom"]),
        "lambda": PROMPT | RunnableLambda(fail) | Echo(),
        "parser": PROMPT | Echo() | StrOutputParser() | fail,
    }[where]
    kind = "RuntimeError" if where == "model" else "ValueError"
    with pytest.raises(Exception, match="boom"):
        broken.invoke({"question": "first"}, config(handler))
    (PROMPT | Echo()).invoke({"question": "next"}, config(handler))
    failed, after = arrived.conversations()
    assert lines(failed) == [("user", "first"), ("event", f"{kind}: boom")]
    assert (failed.messages[-1].name, failed.messages[-1].metadata) == ("error", {"error": kind})
    assert lines(after) == _turn("next")
    assert failed.id != after.id


@pytest.mark.parametrize("how", ["chain", "model"])
async def test_h05_a_failed_async_call_is_logged_with_its_error(arrived, how):
    """A chain or model that fails asynchronously is recorded like a sync one."""
    model = Echo(failures=["boom"])
    with pytest.raises(RuntimeError, match="boom"):
        await wrap(PROMPT | model if how == "chain" else model).ainvoke("hi")
    assert arrived.turns() == [[("user", "hi"), ("event", "RuntimeError: boom")]]


def test_h07_a_failed_turn_is_not_in_the_next_users(arrived, handler):
    """What a user asked in vain stays that user's, with a handler on the model alone."""
    model = Echo(failures=["boom"], callbacks=[handler])
    with pytest.raises(RuntimeError):
        model.invoke("mine", {"metadata": {"user_id": "ada"}})
    model.invoke("yours", {"metadata": {"user_id": "bob"}})
    assert arrived.by_user() == {
        "ada": [[("user", "mine"), ("event", "RuntimeError: boom")]],
        "bob": [_turn("yours")],
    }


@pytest.mark.parametrize(
    "trouble", [Answer(status=503, headers={"Retry-After": "0"}), Answer(status=500), Answer(reset=True)]
)
def test_h08_a_failed_post_is_sent_again_alone(home, trouble):
    """A record that could not be delivered is tried again as it was; the next user's is another request."""
    with FakeServer(trouble) as server:
        arrived = configured(server, home)
        bot = wrap(PROMPT | Echo())
        bot.invoke({"question": "mine"}, {"metadata": {"user_id": "ada"}})
        server.wait_for(1)
        bot.invoke({"question": "yours"}, {"metadata": {"user_id": "bob"}})
        arrived.logs()
        first = server.asked[0]
        again = [asked for asked in server.asked[1:] if asked.key == first.key]
        (other,) = (asked for asked in server.asked if asked.key != first.key)
        assert [asked.body for asked in again] == [first.body]
        assert [asked.log.conversation.user_id for asked in (first, other)] == ["ada", "bob"]
        assert [lines(asked.log.conversation) for asked in (first, other)] == [_turn("mine"), _turn("yours")]


def test_h19_prompts_generated_together_are_two_conversations(arrived, handler):
    """generate([[a], [b]]) is a conversation for each of its prompts."""
    Echo(callbacks=[handler]).generate([[HumanMessage("a")], [HumanMessage("b")]])
    one, two = arrived.conversations()
    assert [lines(one), lines(two)] == [_turn("a"), _turn("b")]
    assert one.id != two.id


async def test_h19_prompts_agenerated_together_are_two_conversations(arrived, handler):
    """agenerate([[a], [b]]) is a conversation for each of its prompts."""
    await Echo(callbacks=[handler]).agenerate([[HumanMessage("a")], [HumanMessage("b")]])
    assert sorted(arrived.turns()) == [_turn("a"), _turn("b")]


# A stream that nobody reads to its end.

LONG = "one two three four five six"


def _stream_of(make):
    return (PROMPT | Echo() | StrOutputParser(), {"question": LONG}) if make == "chain" else (Echo(), LONG)


def _check_abandoned(arrived):
    # An async chain is told of its end by the loop, in a later round.
    broken, whole = sorted(arrived.conversations(), key=lambda one: one.user_id)
    user, answer = broken.messages
    assert (user.role, user.message) == ("user", LONG)
    assert answer.message in {f"echo: {LONG}"[:size] for size in range(1, len(LONG))}
    assert answer.metadata["interrupted"] == "true"
    assert [broken.user_id, whole.user_id] == ["ada", "bob"]
    assert lines(whole) == _turn("next")
    assert "interrupted" not in whole.messages[-1].metadata


@pytest.mark.parametrize("end", ["close", "forget"])
@pytest.mark.parametrize("make", ["model", "chain"])
def test_h24_an_abandoned_stream_is_its_own_conversation(arrived, make, end):
    """Part of an answer is kept as such, under its own user, whether the stream was closed or just dropped."""
    runnable, asked = _stream_of(make)
    stream = wrap(runnable).stream(asked, {"metadata": {"user_id": "ada"}})
    next(stream)
    if end == "close":
        stream.close()
    del stream
    gc.collect()
    wrap(Echo()).invoke("next", {"metadata": {"user_id": "bob"}})
    _check_abandoned(arrived)


@pytest.mark.parametrize("make", ["model", "chain"])
async def test_h24_an_abandoned_async_stream_is_its_own_conversation(arrived, make):
    """Likewise for an async stream."""
    runnable, asked = _stream_of(make)
    stream = wrap(runnable).astream(asked, {"metadata": {"user_id": "ada"}})
    await anext(stream)
    await stream.aclose()
    await wrap(Echo()).ainvoke("next", {"metadata": {"user_id": "bob"}})
    _check_abandoned(arrived)


@pytest.mark.parametrize("make", ["model", "chain"])
async def test_h24_a_cancelled_call_is_its_own_conversation(arrived, make):
    """A call that was cancelled is recorded with what was asked, as interrupted."""
    pausing = Echo(pause=30)
    runnable = wrap(PROMPT | pausing | StrOutputParser() if make == "chain" else pausing)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(runnable.ainvoke("mine", {"metadata": {"user_id": "ada"}}), 0.05)
    await wrap(Echo()).ainvoke("next", {"metadata": {"user_id": "bob"}})
    broken, whole = arrived.conversations()
    assert lines(broken) == [("user", "mine"), ("assistant", "")]
    assert facts(broken.messages[-1]) == {"interrupted": "true"}
    assert [broken.user_id, whole.user_id] == ["ada", "bob"]
    assert lines(whole) == _turn("next")


@pytest.mark.parametrize("make", ["model", "chain"])
async def test_h24_a_cancelled_stream_keeps_what_was_streamed(arrived, make):
    """A task that is cancelled while it reads a stream leaves the text so far, as interrupted."""
    model, begun = Echo(pause=0.01), asyncio.Event()
    runnable = wrap(PROMPT | model | StrOutputParser() if make == "chain" else model)

    async def read():
        async for _ in runnable.astream(LONG, {"metadata": {"user_id": "ada"}}):
            begun.set()

    reading = asyncio.create_task(read())
    await begun.wait()
    reading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading
    await wrap(Echo()).ainvoke("next", {"metadata": {"user_id": "bob"}})
    _check_abandoned(arrived)


# One conversation, however often it was tried.

TRIED = {
    "chain of a wrapped model": lambda model: PROMPT | wrap(model).with_retry(wait_exponential_jitter=False),
    "wrapped model": lambda model: wrap(model).with_retry(wait_exponential_jitter=False),
    "wrapped retry": lambda model: wrap(model.with_retry(wait_exponential_jitter=False)),
    "wrapped chain": lambda model: wrap(PROMPT | model.with_retry(wait_exponential_jitter=False)),
    "retry of a wrapped chain": lambda model: wrap(PROMPT | model).with_retry(wait_exponential_jitter=False),
}


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
@pytest.mark.parametrize("shape", TRIED)
def test_h25_retries_are_one_conversation(arrived, shape, way):
    """The prompt stands once, with the answer that came at last, and how many attempts it took."""
    runnable = TRIED[shape](Echo(failures=["b", "a"]))
    asyncio.run(runnable.ainvoke("hi")) if way == "ainvoke" else runnable.invoke("hi")
    conversation = arrived.only()
    assert lines(conversation) == _turn("hi")
    assert facts(conversation.messages[-1])["attempts"] == "3"


def test_h25_retries_in_vain_are_one_conversation(arrived):
    """When no attempt succeeds the conversation ends with the last error, and says how many there were."""
    with pytest.raises(RuntimeError, match="a"):
        wrap(Echo(failures=["a", "b"])).with_retry(wait_exponential_jitter=False, stop_after_attempt=2).invoke("hi")
    conversation = arrived.only()
    assert lines(conversation) == [("user", "hi"), ("event", "RuntimeError: a")]
    assert conversation.messages[-1].metadata == {"error": "RuntimeError", "attempts": "2"}


@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_h25_one_attempt_is_not_counted(arrived, way):
    """What worked at once says nothing of attempts."""
    model = wrap(Echo())
    asyncio.run(model.ainvoke("hi")) if way == "ainvoke" else model.invoke("hi")
    assert "attempts" not in arrived.only().messages[-1].metadata
