"""Tracked generators and coroutines are read as before, step by step, and each step is their user's."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import threading
import types
import warnings
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from parcels import conversations, lines

from contextwrap import session, track_context
from contextwrap.identity import current_scope

pytestmark = pytest.mark.usefixtures("recording")


def me():
    """The user of the scope this runs in."""
    scope = current_scope()
    return None if scope is None else scope.identity.user_id


def turns(home):
    """The user and the lines of each turn."""
    return [(one.user_id, lines(one)) for one in conversations(home)]


TURN = ("u", [("user", "hi"), ("assistant", "echo: hi")])


# The protocol


class Stop(Exception):  # noqa: N818  it stops nothing of Python's
    """Thrown in."""


def stubborn(log):
    """A generator that answers what is sent and thrown in, and whose end depends on it."""
    sent = None
    for number in itertools.count():
        try:
            sent = yield number, sent
            log.append(("sent", sent))
            if sent == "return":
                return "returned"
            if sent == "raise":
                raise Stop("own")  # noqa: TRY301  it is what is caught below
            if sent == "stop":
                raise StopIteration("own")  # noqa: PLR1708  a mistake that is made
        except Stop as error:
            log.append(("caught", str(error)))
            if str(error) == "own" or number > 3:
                raise
        except GeneratorExit:
            log.append(("closed", number))
            if number == 1:
                yield "ignored"
            if number == 2:
                return "closed"
            raise
        finally:
            log.append(("finally", number))
    return None


async def async_stubborn(log):
    """The same as an async generator, with real waits."""
    sent = None
    for number in itertools.count():
        try:
            sent = yield number, sent
            await asyncio.sleep(0)
            log.append(("sent", sent))
            if sent == "return":
                return
            if sent == "raise":
                raise Stop("own")  # noqa: TRY301  it is what is caught below
            if sent == "stop":
                raise StopAsyncIteration("own")
        except Stop as error:
            log.append(("caught", str(error)))
            if str(error) == "own" or number > 3:
                raise
        except GeneratorExit:
            log.append(("closed", number))
            if number == 1:
                yield "ignored"
            if number == 2:
                return
            raise
        finally:
            await asyncio.sleep(0)
            log.append(("finally", number))


THROWN = [Stop("given"), Stop("own"), KeyError("k"), GeneratorExit(), StopIteration(1)]
MOVES = st.lists(
    st.one_of(
        st.tuples(st.just("send"), st.sampled_from([None, "x", "return", "raise", "stop"])),
        st.tuples(st.just("throw"), st.sampled_from(THROWN)),
        st.tuples(st.just("close"), st.none()),
    ),
    max_size=8,
)  # fmt: skip


def seen(error):
    """An error as its reader sees it."""
    cause = error.__cause__
    return (type(error), str(error), getattr(error, "value", None), cause and (type(cause), str(cause)))


def played(stream, moves):
    """What a reader of a generator sees when it makes these moves."""
    saw = []
    for name, value in moves:
        move = getattr(stream, name)
        try:
            saw.append(move() if name == "close" else move(value))
        except BaseException as error:  # noqa: BLE001  whatever it is, the reader sees it
            saw.append(seen(error))
    return [*saw, inspect.getgeneratorstate(stream)]


async def async_played(stream, moves):
    """The same for an async generator."""
    saw = []
    for name, value in moves:
        move = getattr(stream, f"a{name}")
        try:
            saw.append(await (move() if name == "close" else move(value)))
        except BaseException as error:  # noqa: BLE001  whatever it is, the reader sees it
            saw.append(seen(error))
    return saw


@settings(max_examples=500)
@given(moves=MOVES)
def test_a_generator_is_read_as_before(moves):
    """Whatever is sent, thrown in and closed in whatever order, reader and generator see what they saw before."""
    bare_log, tracked_log = [], []
    with warnings.catch_warnings(action="ignore"):
        bare, tracked = stubborn(bare_log), track_context(stubborn)(tracked_log)
        assert played(tracked, moves) == played(bare, moves)
        assert tracked_log == bare_log
        _exhaust(bare, tracked)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # what ignores GeneratorExit
@settings(max_examples=300)
@given(moves=MOVES)
def test_an_async_generator_is_read_as_before(moves):
    """The same for async generators."""
    bare_log, tracked_log = [], []

    async def both():
        bare, tracked = async_stubborn(bare_log), track_context(async_stubborn)(tracked_log)
        assert await async_played(tracked, moves) == await async_played(bare, moves)
        assert tracked_log == bare_log
        for stream in (bare, tracked):
            for _ in range(3):
                await async_played(stream, [("close", None)])

    asyncio.run(both())


def _exhaust(*streams):
    """Close what may ignore it once."""
    for stream in streams:
        played(stream, [("close", None)] * 3)


async def test_they_are_real_generators():
    """What comes out is a generator by type, with its name; a coroutine is a coroutine."""

    async def answer():
        return 1

    def words():
        yield 1

    async def async_words():
        yield 1

    for function, kind in ((words, types.GeneratorType), (async_words, types.AsyncGeneratorType)):
        stream = track_context(function)()
        assert type(stream) is kind
        assert (stream.__name__, stream.__qualname__) == (function.__name__, function.__qualname__)
        assert not inspect.isawaitable(stream)
    later = track_context(answer)()
    assert type(later) is types.CoroutineType
    assert (later.__name__, later.__qualname__) == (answer.__name__, answer.__qualname__)
    assert await later == 1
    assert await track_context(lambda: answer())() == 1


def test_a_generator_delegates_and_is_delegated_to():
    """`yield from` passes values and the return value through tracked generators."""

    @track_context
    def inner():
        return (yield (yield 1))

    @track_context
    def outer():
        return (yield from inner())

    stream = outer()
    assert [next(stream), stream.send(2)] == [1, 2]
    with pytest.raises(StopIteration) as end:
        stream.send(3)
    assert end.value.value == 3


async def test_tracked_context_managers_and_their_errors():
    """Context managers made of tracked generators catch, pass on and clean up as before."""
    log = []

    @contextmanager
    @track_context(user_id="u")
    def scope():
        try:
            yield me()
        except KeyError:
            log.append("caught")
        finally:
            log.append("left")

    @asynccontextmanager
    @track_context(user_id="u")
    async def async_scope():
        try:
            yield me()
        except KeyError:
            log.append("caught")
        finally:
            await asyncio.sleep(0)
            log.append("left")

    with scope() as user:
        assert (user, me()) == ("u", None)
        raise KeyError
    async with async_scope() as user:
        assert (user, me()) == ("u", None)
        raise KeyError
    with pytest.raises(ValueError, match="mine"), scope():
        raise ValueError("mine")
    assert log == ["caught", "left"] * 2 + ["left"]


@types.coroutine
def pause():
    """Give the event loop a turn, by the old protocol."""
    return (yield)


async def test_old_coroutines_stay_awaitable():
    """What @types.coroutine makes is awaited as before."""
    await track_context(pause)()
    assert inspect.isawaitable(track_context(pause)())


# Whose it is


def test_interleaved_generators_keep_their_users():
    """Five generators read in turns are five users', and between the steps nobody is anybody."""

    @track_context(user_id="{user}")
    def answer(user):
        for _ in range(4):
            with session(tags=["inner"]):
                yield me()
                yield me()

    users = [f"u{number}" for number in range(5)]
    streams = [answer(user) for user in users]
    for _ in range(8):
        for user, stream in zip(users, streams, strict=True):
            assert next(stream) == user
            assert current_scope() is None
    _exhaust(*streams)


async def test_interleaved_async_generators_keep_their_users():
    """The same for async generators, read in turns by several tasks."""

    @track_context(user_id="{user}")
    async def answer(user):
        for _ in range(8):
            with session(tags=["inner"]):
                await asyncio.sleep(0)
                yield me(), asyncio.current_task()
                assert await asyncio.to_thread(me) == user

    users = [f"u{number}" for number in range(5)]
    streams = {user: answer(user) for user in users}

    async def step(user):
        assert await anext(streams[user]) == (user, asyncio.current_task())
        assert current_scope() is None

    for _ in range(8):
        await asyncio.gather(*(asyncio.create_task(step(user)) for user in users))
    for stream in streams.values():
        await stream.aclose()


def test_a_generator_goes_on_in_other_threads():
    """Each step may be made by another thread; variables set and reset across steps are never in another Context."""
    variable = ContextVar("variable", default=0)

    @track_context(user_id="u")
    def answer():
        with session(thread_id="t"):
            token = variable.set(1)
            yield me(), variable.get()
            yield me(), variable.get()
            variable.reset(token)
        yield me(), variable.get()

    stream, saw = answer(), []
    for _ in range(3):
        thread = threading.Thread(target=lambda: saw.append(next(stream)))
        thread.start()
        thread.join()
    assert saw == [("u", 1), ("u", 1), ("u", 0)]
    assert variable.get() == 0
    stream.close()


async def test_a_cancelled_step_is_the_generators_to_take():
    """A reader that is cancelled or out of time interrupts the generator where it waits, without any other task."""
    log = []

    @track_context
    async def answer():
        try:
            yield 1
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            log.append(asyncio.current_task())
            raise

    stream = answer()
    assert await anext(stream) == 1
    tasks = asyncio.all_tasks()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await anext(stream)
    assert log == [asyncio.current_task()]
    assert asyncio.all_tasks() == tasks
