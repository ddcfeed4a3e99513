"""A tracked call: its session, its errors, its task, its result."""

from __future__ import annotations

import asyncio
import inspect
from concurrent.futures import ThreadPoolExecutor

import pytest
from fakemodels import Echo
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableLambda
from parcels import conversations

from contextwrap import session, track_context
from contextwrap.identity import current_scope

pytestmark = pytest.mark.usefixtures("recording")


def me():
    """The user of the scope this runs in."""
    scope = current_scope()
    return None if scope is None else scope.identity.user_id


def plain(user):
    """Whose it is."""
    return me()


async def coroutine(user):
    """Whose it is."""
    await asyncio.sleep(0)
    return me()


def generator(user):
    """Whose it is."""
    yield me()


async def async_generator(user):
    """Whose it is."""
    await asyncio.sleep(0)
    yield me()


KINDS = [plain, coroutine, generator, async_generator]


async def result_of(call, *args, **kwargs):
    """What a function of any kind gives: its value, or the first it yields."""
    result = call(*args, **kwargs)
    if inspect.isasyncgen(result):
        (one,) = [one async for one in result]
        return one
    if inspect.isgenerator(result):
        return next(iter(list(result)))
    return await result if inspect.isawaitable(result) else result


def test_each_call_is_a_thread_of_its_own(home):
    """Two calls are two threads, unless the decorator says which; an inner tracked call is of the outer's thread."""

    @track_context
    def inner():
        Echo().invoke("inner")

    @track_context(thread_id="{thread}")
    def outer(thread=None):
        Echo().invoke("outer")
        inner()

    outer()
    outer("t")
    first, second, third, fourth = conversations(home)
    assert first.id == second.id
    assert third.id == fourth.id == "t"
    assert first.id != "t"


def test_tracked_inside_a_session_adds_to_it(home):
    """A tracked function inside a session inherits what it does not say."""

    @track_context(metadata={"page": "{page}"}, tags=["x"])
    def answer(page):
        return Echo().invoke("hi")

    with session(user_id="u", thread_id="t", tags=["y"]):
        answer("/help")
    (one,) = conversations(home)
    assert (one.id, one.user_id, one.metadata["page"], one.metadata["tags"]) == ("t", "u", "/help", "y,x")


@pytest.mark.parametrize("make", [plain, coroutine, generator, async_generator])
async def test_exceptions_pass_through(recording, make):
    """What the function raises is raised, the very same object, and the session has ended."""
    mine = KeyError("mine")

    def fails(user):
        raise mine

    async def later(user):
        raise mine

    def yields(user):
        raise mine
        yield

    async def yields_later(user):
        raise mine
        yield

    function = dict(zip(KINDS, [fails, later, yields, yields_later], strict=True))[make]
    with pytest.raises(KeyError) as raised:
        await result_of(track_context(user_id="{user}")(function), "u")
    assert raised.value is mine
    assert current_scope() is None
    assert recording.stats().lost == {}


@pytest.mark.parametrize("function", KINDS)
def test_a_wrong_call_fails_at_once(function, recording):
    """A call that does not fit raises the function's own TypeError when it is made, not when it is awaited or read."""
    tracked = track_context(user_id="{user}")(function)
    with pytest.raises(TypeError) as expected:
        function()
    with pytest.raises(TypeError) as raised:
        tracked()
    assert str(raised.value) == str(expected.value)
    assert recording.stats().lost == {}


async def test_what_is_never_awaited_is_warned_of_once(recwarn):
    """A coroutine that nobody awaits is warned of as before: once, by its name."""
    track_context(coroutine)("u")
    (warning,) = recwarn.list
    assert str(warning.message) == "coroutine 'coroutine' was never awaited"


async def test_the_task_is_the_callers():
    """A tracked coroutine runs in the task that awaits it, and is cancelled with it."""
    reached = asyncio.Event()

    @track_context
    async def answer():
        assert asyncio.current_task() is task
        reached.set()
        await asyncio.Event().wait()

    task = asyncio.create_task(answer())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await track_context(asyncio.Event().wait)()


async def test_calls_at_once_keep_their_users():
    """Concurrent calls are sessions of their own, also in the threads and batches that they begin."""

    @track_context(user_id="{user}")
    async def answer(user):
        await asyncio.sleep(0.001)
        batch = RunnableLambda(lambda _: me()).batch([1, 2])
        return {me(), await asyncio.to_thread(me), *batch, await asyncio.create_task(coroutine(user))}

    users = [f"u{number}" for number in range(30)]
    assert await asyncio.gather(*map(answer, users)) == [{user} for user in users]

    tracked = track_context(user_id="{user}")(plain)
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(tracked, users)) == users


@pytest.mark.parametrize("result", [AIMessage("hi"), object(), b"x", {"a": 1}, 5, [1], None, ("a", 1)])
async def test_results_are_unchanged(result):
    """What the function returns is returned, the very same object."""

    async def later():
        return result

    assert track_context(lambda: result)() is result
    assert await track_context(later)() is result


def test_a_lookup_that_fails_costs_its_value_only(recording, home, monkeypatch):
    """A value that cannot be found is left out and counted, and the call goes on."""
    monkeypatch.delenv("CONTEXTWRAP_RAISE")

    @track_context(user_id=lambda _: 1 / 0, thread_id="t", tags=["a", "{question.x}"], metadata={"k": "{question[1]}"})
    def answer(question):
        return "no"

    assert answer("?") == "no"
    assert recording.stats().lost["track_context: ZeroDivisionError"] == 1
    assert sum(recording.stats().lost.values()) == 3
    (one,) = conversations(home)
    assert (one.user_id, one.metadata["tags"], "k" in one.metadata) == (None, "a", False)
