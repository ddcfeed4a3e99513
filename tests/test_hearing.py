"""One ear a run: which of our handlers hears what, and that none of it is told twice or lost between two of them."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from chains import ASKED, PROMPT, TURN, chain, config, turns
from fakemodels import Echo
from langchain_core.callbacks import CallbackManager
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda
from langchain_core.tools import tool
from parcels import conversations, lines

import contextwrap
from contextwrap import ContextCallbackHandler, session, wrap
from contextwrap.recorder import Recorder, listener
from contextwrap.runs import OPEN_SECONDS

pytestmark = pytest.mark.usefixtures("recording")


class Shelf(BaseRetriever):
    def _get_relevant_documents(self, query, *, run_manager):
        return [Document(page_content=f"about {query}")]


@tool
def clock(zone: str) -> str:
    """The time."""
    return f"noon in {zone}"


def ears(found):
    """A step that notes which of our handlers hear it."""

    def note(given, config):
        found.append([one for one in config["callbacks"].handlers if isinstance(one, Recorder)])
        return given

    return RunnableLambda(note)


@pytest.mark.parametrize("how", ["wrap", "handler", "config"])
async def test_what_carries_the_handler_is_heard_by_it_alone(handler, home, how):
    """Where the handler goes down a chain the listener does not, in sync and async calls: each event is told once."""
    found = []
    bot = ears(found) | chain()
    bot = {"wrap": wrap(bot), "handler": bot, "config": bot.with_config(callbacks=[handler])}[how]
    given = config(handler) if how == "handler" else None
    bot.invoke(ASKED, given)
    await bot.ainvoke(ASKED, given)
    assert found == [[handler], [handler]]
    assert turns(home) == [TURN, TURN]


def test_a_session_is_heard_by_the_listener_alone(handler, home):
    """Without a handler it is the listener that hears all."""
    found = []
    with session():
        (ears(found) | chain()).invoke(ASKED)
    assert found == [[listener]]
    assert turns(home) == [TURN]


def test_below_a_handler_that_stays_above_the_listener_hears(handler, home):
    """A handler for one run only leaves what runs below to the listener; it is one turn, tools and all."""
    found = []
    asks = ears(found) | RunnableLambda(lambda _: clock.invoke({"zone": "UTC"}))
    asks.invoke(ASKED, {"callbacks": CallbackManager([handler])})
    assert found == [[listener]]
    assert turns(home) == [[("user", "hi"), ("tool", "noon in UTC"), ("assistant", "noon in UTC")]]


async def test_a_wrapped_part_of_a_chain_records_the_whole(handler, home):
    """The listener hears the chain from its start, and the part's own handler makes it a turn."""
    bot = RunnableLambda(lambda asked: {"question": asked["question"].upper()}) | PROMPT | wrap(Echo())
    bot.invoke(ASKED)
    await bot.ainvoke(ASKED)
    assert turns(home) == [[("user", "hi"), ("assistant", "echo: HI")]] * 2
    assert Recorder.runs.of == {}


def test_what_is_wrapped_below_anothers_handler_is_also_ours(handler, home, tmp_path):
    """A handler with a client of its own hears for the default one as well, when something inside is wrapped."""
    other = ContextCallbackHandler(home=tmp_path / "other")
    rag = wrap(Shelf()) | RunnableLambda(lambda found: found[0].page_content)
    rag.invoke("socks", {"callbacks": [other]})
    (PROMPT | wrap(Echo())).invoke(ASKED, {"callbacks": [other]})
    with session():
        chain().invoke(ASKED, {"callbacks": [other]})
    expected = [[("user", "socks"), ("assistant", "about socks")], TURN, TURN]
    assert turns(home) == turns(tmp_path / "other") == expected
    other.client.shutdown()


def test_a_step_says_whose_the_turn_is(handler, home):
    """What a step in the middle names as user, thread, metadata or tag is the turn's, whoever hears it."""
    named = RunnableLambda(lambda asked: asked).with_config(
        metadata={"user_id": "ada", "thread_id": "t", "plan": "pro"}, tags=["beta"]
    )
    wrap(named | chain()).invoke(ASKED)
    wrap(RunnableLambda(named.invoke) | chain()).invoke(ASKED, {"tags": ["all"]})
    first, second = conversations(home)
    assert first.metadata == {"user_id": "ada", "plan": "pro", "tags": "beta", "model": "echo-1"}
    assert second.metadata == {"user_id": "ada", "plan": "pro", "tags": "all,beta", "model": "echo-1"}
    assert {first.id, second.id} == {"t"}


async def test_a_run_that_never_ended_is_recorded_when_it_is_overdue(handler, home):
    """The next root closes what is open for too long, and is a turn of its own."""
    task = asyncio.create_task(Echo(pause=30).ainvoke("slow", config(handler)))
    await asyncio.sleep(0.05)
    assert len(Recorder.runs.roots) == 1
    chain().invoke(ASKED, config(handler))
    assert turns(home) == [TURN]
    for root in Recorder.runs.roots.values():
        root.started -= OPEN_SECONDS
    chain().invoke(ASKED, config(handler))
    assert sorted(turns(home)) == sorted([TURN, TURN, [("user", "slow"), ("assistant", "")]])
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(turns(home)) == 3


def test_a_question_has_the_time_it_was_asked_and_an_answer_that_of_its_end(home):
    """The clock is looked at when a turn begins and when it ends."""
    noon = datetime(2025, 1, 1, 12, tzinfo=UTC)
    looks = iter(range(1000))
    contextwrap.configure(home=home, clock=lambda: noon + timedelta(seconds=next(looks)))
    wrap(chain()).invoke(ASKED)
    (one,) = conversations(home)
    asked, answered = one.messages
    assert asked.event_timestamp is not None
    assert answered.event_timestamp is not None
    assert noon <= asked.event_timestamp < answered.event_timestamp
    assert asked.id != answered.id
    assert lines(one) == TURN


def test_a_failure_of_ours_is_counted_under_the_event_it_struck(handler, recording, monkeypatch):
    """An event that we cannot read is the host's all the same, and stats say which."""
    monkeypatch.delenv("CONTEXTWRAP_RAISE")
    monkeypatch.setattr("contextwrap.transcript.said", lambda _: 1 / 0)
    assert chain().invoke(ASKED, config(handler)) == "echo: hi"
    assert recording.stats().lost == {"on_chain_start: ZeroDivisionError": 1}


def test_an_answer_that_is_added_takes_the_promised_id(home):
    """An assistant's words added by hand are the answer that the session has promised, and so rated."""
    with session(thread_id="t") as here:
        promised = here.answer_id
        assert here.add_message("assistant", "by hand") == promised
    (one,) = conversations(home)
    assert one.messages[0].id == promised
