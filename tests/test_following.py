"""What a tracked call returns belongs to it until it has been read, and is read as if nobody were there."""

from __future__ import annotations

import asyncio
import copy
import gc
import inspect
import pickle
from contextvars import ContextVar

import pytest
from chains import ASKED, chain
from langchain_core.messages import AIMessageChunk
from parcels import conversations, lines

from contextwrap import track_context
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


def said():
    """A sync chain's stream."""
    return chain().stream(ASKED)


def asaid():
    """An async chain's stream."""
    return chain().astream(ASKED)


def gives_stream(user):
    return said()


def gives_async_stream(user):
    return asaid()


async def awaits_async_stream(user):
    return asaid()


def yields(user):
    yield from said()


async def yields_async(user):
    async for part in asaid():
        yield part


def gives_map(user):
    return map(str, said())


def gives_lazy_map(user):
    return map(chain().invoke, [ASKED])


class Reader:
    """An async iterator that is no generator, with more to it."""

    name = "reader"

    def __init__(self):
        self.stream = None

    def __aiter__(self):
        return self

    async def __anext__(self):
        self.stream = self.stream or asaid()
        return await anext(self.stream)


def gives_reader(user):
    return Reader()


def gives_coroutine(user):
    return chain().ainvoke(ASKED)


def gives_task(user):
    return asyncio.ensure_future(chain().ainvoke(ASKED))


async def read(result):
    """All of it, as text."""
    if inspect.isawaitable(result):
        result = await result
    if isinstance(result, str):
        return result
    if hasattr(type(result), "__anext__"):
        return "".join([part async for part in result])
    return "".join(result)


WAYS = [
    gives_stream, gives_async_stream, awaits_async_stream, yields, yields_async, gives_map, gives_lazy_map,
    gives_reader, gives_coroutine, gives_task,
]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
async def test_what_runs_while_it_is_read_belongs_to_the_call(home, way):
    """A stream or awaitable, given or made, is one turn of the call's user; outside nobody is anybody."""
    result = track_context(user_id="{user}")(way)("u")
    assert current_scope() is None
    assert await read(result) == "echo: hi"
    assert current_scope() is None
    assert turns(home) == [TURN]


def test_iterators_keep_what_they_can():
    """A returned iterator is one of its type, with its attributes; copied and pickled it is the iterator alone."""
    reader = track_context(gives_reader)("u")
    assert isinstance(reader, Reader)
    assert reader.name == "reader"
    numbers = track_context(lambda: iter([1, 2, 3]))()
    assert next(numbers) == 1
    assert list(pickle.loads(pickle.dumps(numbers))) == [2, 3]
    assert list(copy.copy(numbers)) == [2, 3]
    assert list(copy.deepcopy(numbers)) == [2, 3]
    assert list(numbers) == [2, 3]


def test_files_are_left_alone(tmp_path):
    """An open file is an iterator that nobody means to be followed."""
    path = tmp_path / "lines"
    path.write_text("a\nb\n")
    with path.open() as file:
        assert track_context(lambda: file)() is file


class Chunks:
    """An iterator of a host's own."""

    def __init__(self, parts):
        self.parts = iter(parts)

    def __iter__(self):
        return self

    def __next__(self):
        return next(self.parts)


async def _each(parts):
    for part in parts:
        yield part


@pytest.mark.parametrize("make", [lambda parts: (part for part in parts), _each, Chunks])
@pytest.mark.parametrize(
    "parts", [["good ", "day"], [AIMessageChunk("good "), AIMessageChunk("day")], ["good day é".encode()[:-3], b" day"]]
)
async def test_what_a_stream_says_is_the_answer(home, make, parts):
    """Without LangChain inside, the chunks that were read are the answer."""
    parts = parts if isinstance(parts[-1], str | AIMessageChunk) else [b"good", b" day"]
    stream = track_context(user_id="u")(lambda question: make(parts))("hi")
    if hasattr(stream, "__anext__"):
        assert [part async for part in stream] == parts
    else:
        assert list(stream) == parts
    assert turns(home) == [("u", [("user", "hi"), ("assistant", "good day")])]


def test_letters_across_chunks_and_binary_chunks(home):
    """A letter may be cut in two; bytes that are no text are no answer."""
    whole = "grüß dich".encode()
    list(track_context(lambda question: iter([whole[:3], whole[3:]]))("hi"))
    list(track_context(lambda question: iter([b"\xff\xfe\x00", b"abc"]))("hi"))
    list(track_context(lambda question: iter([1, None]))("hi"))
    first, second, third = (lines(one) for one in conversations(home))
    assert first == [("user", "hi"), ("assistant", "grüß dich")]
    assert second == third == [("user", "hi")]


def test_a_generators_return_value_is_the_answer_of_one_that_says_nothing(home):
    """A generator that yields no text answers with what it returns."""

    @track_context
    def answer(question):
        yield 1
        return "good day"

    list(answer("hi"))
    assert lines(conversations(home)[0]) == [("user", "hi"), ("assistant", "good day")]


@pytest.mark.parametrize("leave", ["close", "drop", "throw"])
@pytest.mark.parametrize("make", [lambda: (part for part in ["good ", "day"]), lambda: Chunks(["good ", "day"])])
def test_an_abandoned_stream_is_interrupted(home, leave, make):
    """What was read before the reader went away is the answer, marked as interrupted."""
    stream = track_context(lambda question: make())("hi")
    next(stream)
    if leave == "close" and hasattr(stream, "close"):
        stream.close()
    elif leave == "throw" and hasattr(stream, "throw"):
        with pytest.raises(GeneratorExit):
            stream.throw(GeneratorExit())
    del stream
    gc.collect()
    (one,) = conversations(home)
    assert lines(one) == [("user", "hi"), ("assistant", "good ")]
    assert one.messages[-1].metadata["interrupted"] == "true"


@pytest.mark.parametrize("leave", ["close", "drop", "end"])
def test_an_abandoned_async_stream_is_interrupted(home, leave, capfd):
    """The same for an async generator that is closed, dropped, or left open when the loop ends; nothing complains."""
    kept = []

    async def read_one():
        stream = track_context(lambda question: _each(["good ", "day"]))("hi")
        await anext(stream)
        if leave == "close":
            await stream.aclose()
        elif leave == "end":
            kept.append(stream)

    asyncio.run(read_one())
    gc.collect()
    (one,) = conversations(home)
    assert lines(one) == [("user", "hi"), ("assistant", "good ")]
    assert one.messages[-1].metadata["interrupted"] == "true"
    assert capfd.readouterr().err == ""


def test_a_stream_that_fails_is_an_error_row(home):
    """A stream that raises while it is read is a failed call; the error is the reader's."""

    @track_context
    def answer(question):
        yield "good "
        raise KeyError("mine")

    with pytest.raises(KeyError):
        list(answer("hi"))
    assert lines(conversations(home)[0])[0] == ("user", "hi")
    assert lines(conversations(home)[0])[-1] == ("event", "KeyError: 'mine'")


async def test_a_future_is_the_same_future(home):
    """A returned Task or Future is itself; its result is the answer, and its error stays unretrieved."""
    future = asyncio.get_running_loop().create_future()
    assert track_context(lambda question: future)("hi") is future
    future.set_result("good day")
    await future
    lost = asyncio.get_running_loop().create_future()
    track_context(lambda question: lost)("hi")
    lost.set_exception(KeyError("mine"))
    await asyncio.sleep(0)
    assert lost._log_traceback
    with pytest.raises(KeyError):
        await lost
    cancelled = asyncio.get_running_loop().create_future()
    track_context(lambda question: cancelled)("hi")
    cancelled.cancel()
    await asyncio.sleep(0)
    assert [lines(one)[-1] for one in conversations(home)] == [
        ("assistant", "good day"),
        ("event", "KeyError: 'mine'"),
        ("assistant", ""),
    ]


def test_a_stream_begun_before_stays_in_its_readers_context(home):
    """What has begun already, with variables set in the reader's Context, can reset them there."""
    variable = ContextVar("variable", default=0)

    def begun():
        token = variable.set(1)
        yield "dropped"
        yield me()
        variable.reset(token)

    stream = begun()
    next(stream)
    assert list(track_context(user_id="u")(lambda: stream)()) == ["u"]
    assert variable.get() == 0
