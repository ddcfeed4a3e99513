"""Streams belong to the session they were asked for in, wherever they are read."""

from __future__ import annotations

import asyncio
import gc
import threading
import types

import pytest
from chains import ASKED, TURN, chain, turns
from fakemodels import Echo
from langchain_core.runnables import RunnableGenerator
from langgraph.graph import END, START, MessagesState, StateGraph
from parcels import conversations

from contextwrap import session, wrap
from contextwrap.identity import current_scope

pytestmark = pytest.mark.usefixtures("recording")


def graph():
    """A graph of one node that asks a model."""
    builder = StateGraph(MessagesState)
    builder.add_node("node", lambda state: {"messages": [Echo().invoke(state["messages"])]})
    builder.add_edge(START, "node")
    builder.add_edge("node", END)
    return builder.compile()


MAKERS = {
    "chain": (chain, ASKED),
    "wrapped chain": (lambda: wrap(chain()), ASKED),
    "model": (Echo, "hi"),
    "wrapped model": (lambda: wrap(Echo()), "hi"),
    "graph": (graph, {"messages": [("user", "hi")]}),
    "retried": (lambda: chain().with_retry(), ASKED),
}
each_maker = pytest.mark.parametrize(("make", "asked"), MAKERS.values(), ids=MAKERS)


def identities(home):
    return [(one.user_id, one.id) for one in conversations(home)]


@each_maker
def test_a_stream_read_after_its_session(home, make, asked):
    """A stream made inside and read when the session is over is the session's, and the reader's context is its own."""
    with session(user_id="ada", thread_id="t"):
        stream = make().stream(asked)
    assert isinstance(stream, types.GeneratorType)
    for _ in stream:
        assert current_scope() is None
    assert identities(home) == [("ada", "t")]
    assert turns(home) == [TURN]


@each_maker
async def test_an_async_stream_read_after_its_session(home, make, asked):
    """The same for async streams, and for the events of one."""
    async with session(user_id="ada", thread_id="t"):
        stream = make().astream(asked)
        events = make().astream_events(asked, version="v2")
    assert isinstance(stream, types.AsyncGeneratorType)
    async for _ in stream:
        assert current_scope() is None
    async for _ in events:
        assert current_scope() is None
    assert {one.user_id for one in conversations(home)} == {"ada"}
    assert turns(home)[0] == TURN


def test_a_stream_read_in_another_thread(home):
    """A stream made in a session and read in a bare thread is the session's."""
    with session(user_id="ada"):
        stream = Echo().stream("hi")
        reader = threading.Thread(target=lambda: list(stream))
        reader.start()
        reader.join()
    assert [one.user_id for one in conversations(home)] == ["ada"]


async def test_streams_of_two_users_read_in_turn(home):
    """Streams of several users, read alternately by one task, stay apart."""
    streams = {}
    for user in ("ada", "bob", "cy"):
        async with session(user_id=user):
            streams[user] = Echo().astream(f"i am {user}")
    for _ in range(3):
        for stream in streams.values():
            await anext(stream)
    for stream in streams.values():
        assert [part async for part in stream]
    assert {one.user_id: one.messages[0].message for one in conversations(home)} == {
        user: f"i am {user}" for user in streams
    }


async def test_an_abandoned_stream_is_closed_with_its_reader(home):
    """Breaking off closes LangChain's own stream at once, as without a session."""
    with session(user_id="ada"):
        stream = Echo().stream("one two three")
        astream = Echo().astream("one two three")
    next(stream)
    stream.close()
    await anext(astream)
    await astream.aclose()
    await asyncio.sleep(0)
    gc.collect()
    assert [one.messages[-1].metadata["interrupted"] for one in conversations(home)] == ["true", "true"]
    assert [one.user_id for one in conversations(home)] == ["ada", "ada"]


def test_what_is_thrown_in_is_the_streams_own():
    """throw() and send() reach LangChain's generator, and its return value comes out."""
    seen = []

    def numbers(_):
        try:
            yield 1
        except ValueError as error:
            seen.append(error)
            yield 2

    with session():
        stream = RunnableGenerator(numbers).stream("x")
    bare = RunnableGenerator(numbers).stream("x")
    assert next(stream) == next(bare) == 1
    error = ValueError("in")
    outcomes = []
    for one in (stream, bare):
        try:
            outcomes.append(one.throw(error))
        except (ValueError, StopIteration) as raised:
            outcomes.append(type(raised))
    assert outcomes[0] == outcomes[1]


def test_an_unread_stream_is_nothing(home):
    """A stream that nobody reads runs nothing and records nothing."""
    with session():
        Echo().stream("hi")
    gc.collect()
    assert turns(home) == []


def test_an_empty_stream_ends(home):
    """A stream without any item ends as it would."""

    def nothing(_):
        yield from ()

    with session():
        stream = RunnableGenerator(nothing).stream("x")
    assert list(stream) == []
