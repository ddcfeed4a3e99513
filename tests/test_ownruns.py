"""Runnables of the host's own making, which tell LangChain nothing of their runs, are recorded once wrapped."""

from __future__ import annotations

import copy
import gc
import pickle

import pytest
from chains import ASKED, TURN, turns
from fakemodels import Echo
from langchain_core.runnables import Runnable
from parcels import conversations

from contextwrap import session, wrap

pytestmark = pytest.mark.usefixtures("recording")


class Plain(Runnable):
    """Asks nobody; has all four ways of its own."""

    def invoke(self, input, config=None, **kwargs):
        return f"echo: {input['question']}"

    async def ainvoke(self, input, config=None, **kwargs):
        return self.invoke(input)

    def stream(self, input, config=None, **kwargs):
        yield from self.invoke(input).partition(" ")

    async def astream(self, input, config=None, **kwargs):
        for word in self.invoke(input).partition(" "):
            yield word


class Asking(Runnable):
    """Asks two models, and hands the config on to neither."""

    def invoke(self, input, config=None, **kwargs):
        Echo().invoke("rewrite")
        return Echo().invoke(input["question"]).text


class Telling(Runnable):
    """Tells its run as LangChain's own do."""

    def invoke(self, input, config=None, **kwargs):
        return self._call_with_config(lambda asked: f"echo: {asked['question']}", input, config)


class Failing(Runnable):
    def invoke(self, input, config=None, **kwargs):
        raise RuntimeError("boom")


def by_class(kind):
    """An instance of a wrapped subclass."""
    return wrap(type(kind.__name__, (kind,), {}))()


def by_instance(kind):
    """A wrapped instance."""
    return wrap(kind())


each_form = pytest.mark.parametrize("wrapped", [by_instance, by_class])


@each_form
@pytest.mark.parametrize("kind", [Plain, Asking, Telling])
async def test_each_call_of_any_kind_is_one_turn(home, wrapped, kind):
    """However it is called, its input and its output are one turn, whatever runs inside."""
    bot = wrapped(kind)
    assert bot.invoke(ASKED) == "echo: hi"
    assert await bot.ainvoke(ASKED) == "echo: hi"
    assert "".join(bot.stream(ASKED)) == "echo: hi"
    assert "".join([part async for part in bot.astream(ASKED)]) == "echo: hi"
    assert bot.batch([ASKED]) == ["echo: hi"]
    assert await bot.abatch([ASKED]) == ["echo: hi"]
    assert turns(home) == [TURN] * 6


@each_form
def test_whose_it_is(home, wrapped):
    """Session, config and metadata say whose the turn is, as of any other Runnable."""
    bot = wrapped(Plain)
    with session(user_id="ada", thread_id="t"):
        bot.invoke(ASKED)
    bot.invoke(ASKED, {"metadata": {"user_id": "bob", "plan": "pro"}, "tags": ["x"]})
    first, second = conversations(home)
    assert (first.user_id, first.id) == ("ada", "t")
    assert dict(second.metadata) == {"user_id": "bob", "plan": "pro", "tags": "x"}


@each_form
def test_in_a_chain_it_is_part_of_the_turn(home, wrapped):
    """Below another run it is no turn of its own."""
    (wrapped(Plain) | str.upper).invoke(ASKED)
    assert turns(home) == [[("user", "hi"), ("assistant", "ECHO: HI")]]


@each_form
def test_its_failure_is_recorded_and_raised(home, wrapped):
    """What it raises comes out, and is the turn's error."""
    with pytest.raises(RuntimeError, match="boom"):
        wrapped(Failing).invoke(ASKED)
    assert turns(home) == [[("user", "hi"), ("event", "RuntimeError: boom")]]


@each_form
async def test_an_abandoned_stream_keeps_what_was_streamed(home, wrapped):
    """A stream broken off is an interrupted turn with the text so far; one never read is none."""
    stream, astream, _unread = wrapped(Plain).stream(ASKED), wrapped(Plain).astream(ASKED), wrapped(Plain).stream(ASKED)
    next(stream)
    stream.close()
    await anext(astream)
    await astream.aclose()
    gc.collect()
    assert turns(home) == [[("user", "hi"), ("assistant", "echo:")]] * 2
    assert [one.messages[-1].metadata["interrupted"] for one in conversations(home)] == ["true", "true"]


def test_it_is_copied_and_pickled(home):
    """Copies and pickles of a wrapped one are wrapped."""
    bot = wrap(Plain())
    for one in (copy.copy(bot), copy.deepcopy(bot), pickle.loads(pickle.dumps(bot))):
        one.invoke(ASKED)
    assert turns(home) == [TURN] * 3
