"""in_session and instrument: what reaches bare threads, and what a whole process records."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
from chains import ASKED, TURN, chain, turns
from fakemodels import Echo
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables import RunnableLambda
from parcels import conversations

import contextwrap
from contextwrap import in_session, instrument, session, uninstrument, wrap
from contextwrap.identity import current_scope
from contextwrap.recorder import hook

pytestmark = pytest.mark.usefixtures("recording")


@pytest.fixture(autouse=True)
def taken_back():
    """Whatever a test instruments is taken back."""
    start, submit = threading.Thread.start, ThreadPoolExecutor.submit
    yield
    uninstrument()
    assert threading.Thread.start is start
    assert ThreadPoolExecutor.submit is submit


def in_thread(function):
    """Run it in a bare thread."""
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


def in_pool(function):
    """Run it in a bare pool."""
    with ThreadPoolExecutor(1) as pool:
        pool.submit(function).result()


def users(home):
    return [one.user_id for one in conversations(home)]


def test_an_unwrapped_run_is_nobodys_business(home):
    """What is neither wrapped nor in a session is not recorded, though other things in the process are."""
    wrap(Echo())
    chain().invoke(ASKED)
    assert turns(home) == []


async def test_instrument_records_the_whole_process(home):
    """After instrument() every root run is recorded, in bare threads too; after uninstrument() none is."""
    instrument()
    chain().invoke(ASKED)
    await chain().ainvoke(ASKED)
    await asyncio.to_thread(chain().invoke, ASKED)
    in_thread(lambda: chain().invoke(ASKED))
    assert turns(home) == [TURN] * 4
    uninstrument()
    chain().invoke(ASKED)
    assert turns(home) == [TURN] * 4


@pytest.mark.parametrize("elsewhere", [in_thread, in_pool])
def test_in_session_carries_the_session(home, elsewhere):
    """A function that goes to another thread through in_session speaks for the session it was sent from."""
    with session(user_id="ada", thread_id="t"):
        elsewhere(in_session(lambda: Echo().invoke("hi")))
        elsewhere(lambda: wrap(Echo()).invoke("hi"))
    assert users(home) == ["ada", None]
    assert conversations(home)[0].id == "t"


@pytest.mark.parametrize("elsewhere", [in_thread, in_pool])
def test_instrumented_threads_carry_the_session(home, elsewhere):
    """With threads=True it needs no helper, and leaves nothing behind in the thread."""
    instrument(threads=True)
    instrument(threads=True)
    with session(user_id="ada"):
        elsewhere(lambda: Echo().invoke("hi"))
    elsewhere(lambda: Echo().invoke("hi"))
    assert users(home) == ["ada", None]


def test_a_pools_thread_forgets_whom_it_worked_for(home):
    """One thread that works for two users in turn, and then for nobody, mixes none of them up."""
    instrument(threads=True)
    with ThreadPoolExecutor(1) as pool:
        for user in ("ada", "bob"):
            with session(user_id=user):
                pool.submit(Echo().invoke, "hi").result()
        assert pool.submit(current_scope).result() is None
    assert users(home) == ["ada", "bob"]


@pytest.mark.parametrize("elsewhere", [in_thread, in_pool])
def test_a_run_in_a_bare_thread_belongs_to_the_run_that_started_it(home, elsewhere):
    """A model called in a thread of a wrapped chain's own is part of the chain's turn."""

    def ask(asked):
        answers = []
        elsewhere(in_session(lambda: answers.append(Echo().invoke(asked["question"]).text)))
        return answers[0]

    wrap(RunnableLambda(ask)).invoke(ASKED)
    assert turns(home) == [TURN]


def test_nothing_else_of_the_host_goes_along():
    """Only the session is carried: the host's own ContextVars stay as Python has them."""
    var = contextvars.ContextVar("var", default="default")
    var.set("mine")
    instrument(threads=True)
    seen = []
    with session():
        in_pool(in_session(lambda: seen.append(var.get())))
        in_thread(lambda: seen.append(var.get()))
    assert seen == ["default", "default"]


def test_outside_of_a_session_functions_are_left_alone():
    """Without a session or a run there is nothing to carry, and the function is itself."""
    assert in_session(print) is print


def test_carried_functions_behave_like_themselves():
    """Name, arguments, result and exception are the function's own."""

    def divide(a, *, by):
        return a / by

    with session():
        carried = in_session(divide)
        assert carried.__name__ == "divide"
        assert carried(6, by=3) == 2
        with pytest.raises(ZeroDivisionError):
            carried(1, by=0)
        with pytest.raises(TypeError, match="submit"):
            ThreadPoolExecutor(1).submit()


def test_threads_are_freed():
    """A carried thread that is over is not kept by a cycle."""
    instrument(threads=True)
    gc.disable()
    try:
        with session():
            thread = threading.Thread(target=lambda: None)
            thread.start()
        thread.join()
        gone = weakref.ref(thread)
        del thread
        assert gone() is None
    finally:
        gc.enable()


def test_a_disabled_process_does_not_listen(home, monkeypatch):
    """With recording switched off LangChain is not even asked to tell us."""
    # Another test's handler may have had a client of its own.
    monkeypatch.setattr(hook, "apart", False)
    contextwrap.configure(home=home, disabled=True)
    seen = []

    def look(asked, config):
        seen.extend(config["callbacks"].handlers)
        return asked

    RunnableLambda(look).invoke(ASKED, {"callbacks": [BaseCallbackHandler()]})
    with session():
        RunnableLambda(look).invoke(ASKED, {"callbacks": [BaseCallbackHandler()]})
    assert [type(one) for one in seen] == [BaseCallbackHandler] * 2
