"""The handler, driven by LangChain itself: one turn a root run, whatever the host does."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from chains import ASKED, PROMPT, TURN, chain, config, turns
from fakemodels import Echo, calling
from langchain_core.language_models import FakeListLLM, GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import RunnableLambda, RunnableParallel, RunnablePassthrough
from langchain_core.tools import tool
from parcels import conversations, lines, sent

from contextwrap import session, track_context, wrap
from contextwrap.recorder import MAX_TOOLS

pytestmark = pytest.mark.usefixtures("recording")


@tool
def clock(zone: str) -> str:
    """The time."""
    if zone == "Mars":
        raise ValueError("no clock there")
    return f"noon in {zone}"


# What is recorded of one run.


def test_a_chain_is_one_turn(handler, home):
    """A chain is recorded once: what the user put in, what came out, and the model's facts."""
    assert chain().invoke(ASKED, config(handler)) == "echo: hi"
    (one,) = conversations(home)
    assert lines(one) == TURN
    facts = dict(one.messages[-1].metadata)
    assert int(facts.pop("latency_ms")) >= 0
    assert facts == {
        "model": "echo-1", "finish_reason": "stop", "input_tokens": "3", "output_tokens": "2", "total_tokens": "5",
        "provider": "echo",
    }  # fmt: skip
    assert one.metadata == {"model": "echo-1"}


def test_tokens_add_up_over_a_turn(handler, home):
    """The tokens of all model runs of a turn are added."""
    both = Echo() | RunnableLambda(lambda message: [HumanMessage(message.text)]) | Echo()
    both.invoke("hi", config(handler))
    assert conversations(home)[0].messages[-1].metadata["total_tokens"] == "10"


def test_a_lambda_is_one_turn(handler, home):
    """A chain without any model is recorded by what goes in and comes out."""
    RunnableLambda(lambda asked: {"answer": asked["question"].upper()}).invoke(ASKED, config(handler))
    assert turns(home) == [[("user", "hi"), ("assistant", "HI")]]


def test_a_bare_model_is_one_turn(handler, home):
    """A chat model alone is recorded with all it was given."""
    Echo().invoke([SystemMessage("be"), HumanMessage("hi")], config(handler))
    assert turns(home) == [[("system", "be"), *TURN]]


def test_a_completion_model_is_one_turn(handler, home):
    """A completion model's prompt and completion are recorded, alone and in a chain."""
    model = FakeListLLM(responses=["fine"])
    model.invoke("how?", config(handler))
    (PromptTemplate.from_template("about {product}?") | model).invoke({"product": "socks"}, config(handler))
    assert turns(home) == [
        [("user", "how?"), ("assistant", "fine")],
        [("user", "about socks?"), ("assistant", "fine")],
    ]


def test_an_input_with_no_known_key_is_what_the_model_was_asked(handler, home):
    """When the input names no question, the prompt as rendered is what was said."""
    prompt = ChatPromptTemplate.from_template("a name for {product}")
    (prompt | Echo()).invoke({"product": "socks"}, config(handler))
    assert turns(home) == [[("user", "a name for socks"), ("assistant", "echo: a name for socks")]]


def test_generate_of_two_prompts_is_two_turns(handler, home):
    """Prompts generated together are recorded apart."""
    Echo().generate([[HumanMessage("a")], [HumanMessage("b")]], callbacks=[handler])
    assert turns(home) == [[("user", one), ("assistant", f"echo: {one}")] for one in "ab"]


def test_a_batch_is_a_turn_each(handler, home):
    """Each input of a batch is a conversation of its own."""
    chain().batch([{"question": str(number)} for number in range(10)], config(handler))
    assert sorted(turns(home)) == sorted(
        [("user", str(number)), ("assistant", f"echo: {number}")] for number in range(10)
    )


async def test_an_abatch_is_a_turn_each(handler, home):
    """Each input of an async batch is a conversation of its own, of a chain and of a bare model."""
    await chain().abatch([{"question": str(number)} for number in range(10)], config(handler))
    await Echo().abatch([str(number) for number in range(10)], config(handler))
    expected = sorted([("user", str(number)), ("assistant", f"echo: {number}")] for number in range(10))
    assert sorted(turns(home)[:10]) == expected
    assert sorted(turns(home)[10:]) == expected


# Streams.


def test_a_stream_is_one_turn(handler, home):
    """A stream read to its end is recorded with the input that only its end tells."""
    assert "".join(chain().stream(ASKED, config(handler))) == "echo: hi"
    assert "".join(str(one.text) for one in Echo().stream("hi", config(handler))) == "echo: hi"
    assert turns(home) == [TURN, TURN]
    assert not any("interrupted" in one.messages[-1].metadata for one in conversations(home))


async def test_an_async_stream_is_one_turn(handler, home):
    """An async stream read to its end is recorded like any other."""
    assert [part async for part in chain().astream(ASKED, config(handler))]
    assert [part async for part in Echo().astream("hi", config(handler))]
    assert turns(home) == [TURN, TURN]


@pytest.mark.parametrize("make", [chain, Echo], ids=["chain", "model"])
def test_an_abandoned_stream_keeps_what_was_streamed(handler, home, make):
    """A stream broken off is its own conversation, with the text so far, marked as interrupted."""
    asked = {"question": "one two three four"} if make is chain else "one two three four"
    for _ in make().stream(asked, config(handler)):
        break
    gc.collect()
    make().invoke(ASKED if make is chain else "hi", config(handler))
    broken, whole = conversations(home)
    assert broken.messages[0].message == "one two three four"
    assert broken.messages[-1].metadata["interrupted"] == "true"
    said = broken.messages[-1].message
    assert said
    assert "echo: one two three four".startswith(said)
    assert lines(whole) == TURN
    assert broken.id != whole.id


@pytest.mark.parametrize("make", [chain, Echo], ids=["chain", "model"])
async def test_an_abandoned_async_stream_keeps_what_was_streamed(handler, home, make):
    """An async stream broken off is recorded like a sync one."""
    asked = {"question": "one two three four"} if make is chain else "one two three four"
    stream = make().astream(asked, config(handler))
    await anext(stream)
    await stream.aclose()
    await make().ainvoke(ASKED if make is chain else "hi", config(handler))
    broken, whole = conversations(home)
    assert broken.messages[0].message == "one two three four"
    assert broken.messages[-1].metadata["interrupted"] == "true"
    said = broken.messages[-1].message
    assert said
    assert "echo: one two three four".startswith(said)
    assert lines(whole) == TURN


def test_an_interrupted_second_model_keeps_its_own_text(handler, home):
    """Of a chain that asks twice, the text so far is that of the model that was speaking."""
    second = RunnableLambda(lambda message: [HumanMessage(f"again {message.text}")]) | Echo()
    for _ in (Echo() | second).stream("hi", config(handler)):
        break
    gc.collect()
    assert "echo: again echo: hi".startswith(conversations(home)[0].messages[-1].message)


# What goes wrong.


def test_a_failed_chain_is_an_error_and_the_next_is_clean(handler, home):
    """A failure is recorded with what was asked, and nothing of it is in the next turn."""
    failing = chain(failures=["boom"])
    with pytest.raises(RuntimeError, match="boom"):
        failing.invoke(ASKED, config(handler))
    failing.invoke({"question": "more"}, config(handler))
    first, second = conversations(home)
    assert lines(first) == [("user", "hi"), ("event", "RuntimeError: boom")]
    assert first.messages[-1].metadata == {"error": "RuntimeError"}
    assert lines(second) == [("user", "more"), ("assistant", "echo: more")]


async def test_a_failed_model_is_an_error(handler, home):
    """A model that fails alone is recorded, sync and async."""
    model = Echo(failures=["b", "a"])
    with pytest.raises(RuntimeError):
        model.invoke("hi", config(handler))
    with pytest.raises(RuntimeError):
        await model.ainvoke("hi", config(handler))
    assert turns(home) == [
        [("user", "hi"), ("event", "RuntimeError: a")],
        [("user", "hi"), ("event", "RuntimeError: b")],
    ]


def test_a_retried_model_is_one_turn_with_its_attempts(handler, home):
    """Retries inside a chain are one turn that says how many attempts it took."""
    model = Echo(failures=["b", "a"]).with_retry(wait_exponential_jitter=False)
    (PROMPT | model).invoke(ASKED, config(handler))
    (one,) = conversations(home)
    assert lines(one) == TURN
    assert one.messages[-1].metadata["attempts"] == "3"


def test_a_fallback_is_one_turn(handler, home):
    """A chain that falls back is recorded once, with the answer that came."""
    safe = chain(failures=["boom"]).with_fallbacks([chain()])
    assert safe.invoke(ASKED, config(handler)) == "echo: hi"
    assert turns(home) == [TURN]


async def test_an_async_fallback_is_one_turn(handler, home):
    """The same for ainvoke, whose children LangChain gives no parent either."""
    safe = chain(failures=["boom"]).with_fallbacks([chain()])
    await safe.ainvoke(ASKED, config(handler))
    assert turns(home) == [TURN]


async def test_a_cancelled_model_call_is_interrupted(handler, home):
    """A model call that is cancelled ends no run for LangChain; it is recorded when the task that made it ends."""

    async def handle_request():
        await asyncio.wait_for(Echo(pause=30).ainvoke("hi", config(handler)), 0.05)

    with pytest.raises(TimeoutError):
        await asyncio.create_task(handle_request())
    await asyncio.sleep(0)
    (one,) = conversations(home)
    assert lines(one) == [("user", "hi"), ("assistant", "")]
    assert one.messages[-1].metadata["interrupted"] == "true"


async def test_a_cancelled_chain_is_interrupted(handler, home):
    """A chain that is cancelled is recorded as interrupted, once."""
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(chain(pause=30).ainvoke(ASKED, config(handler)), 0.05)
    await asyncio.sleep(0)
    (one,) = conversations(home)
    assert lines(one) == [("user", "hi"), ("assistant", "")]
    assert one.messages[-1].metadata["interrupted"] == "true"


async def test_a_failed_branch_ends_the_turn(handler, home):
    """Branches that go on after their chain has failed begin no conversation of their own."""
    slow = RunnableLambda(lambda _: "x") | Echo(pause=0.05)
    with pytest.raises(RuntimeError, match="boom"):
        await RunnableParallel(bad=Echo(failures=["boom"]), slow=slow).ainvoke("hi", config(handler))
    await asyncio.sleep(0.2)
    assert [("event", "RuntimeError: boom") in one for one in turns(home)] == [True]


def test_arrays_as_input_are_no_trouble(handler, home):
    """An input that does not like to be compared is recorded like any other."""

    class Array(dict):
        def __eq__(self, other):
            raise ValueError("ambiguous")

        __hash__ = None

    RunnableLambda(lambda _: "fine").invoke(Array(input=Array()), config(handler))
    assert turns(home) == [[("assistant", "fine")]]


def test_a_run_without_any_text_is_no_conversation(handler, home):
    """A run that neither was told nor says anything is not recorded: a conversation has messages."""
    RunnableLambda(lambda _: None).invoke({"x": 1}, config(handler))
    assert sent(home) == []


# Nesting, and the ways of bringing the handler.


def test_nested_chains_are_one_turn(handler, home):
    """Chains inside chains are one turn: the outermost input, the outermost output."""
    inner = chain()
    outer = RunnablePassthrough() | RunnableLambda(inner.invoke) | RunnableLambda(str.upper)
    assert outer.invoke(ASKED, config(handler)) == "ECHO: HI"
    assert turns(home) == [[("user", "hi"), ("assistant", "ECHO: HI")]]


def test_every_way_at_once_is_still_one_turn(handler, home):
    """Handler on model, chain and call, wrap around both, inside a tracked function in a session: one turn."""
    model = wrap(Echo(callbacks=[handler]))
    bot = wrap((PROMPT | model | StrOutputParser()).with_config(callbacks=[handler]))

    @track_context(user_id="{user}")
    def answer(user):
        return bot.invoke(ASKED, config(handler))

    with session(thread_id="t"):
        assert answer("u1") == "echo: hi"
    (one,) = conversations(home)
    assert lines(one) == TURN
    assert (one.id, one.user_id) == ("t", "u1")


@pytest.mark.parametrize("bring", ["twice in config", "with_config and config", "model and config"])
def test_a_handler_brought_twice_records_once(handler, home, bring):
    """LangChain does not take doubles out of a list of handlers; the handler does."""
    if bring == "twice in config":
        chain().invoke(ASKED, {"callbacks": [handler, handler]})
    elif bring == "with_config and config":
        chain().with_config(callbacks=[handler]).invoke(ASKED, config(handler))
    else:
        (PROMPT | Echo(callbacks=[handler])).invoke(ASKED, config(handler))
    assert turns(home) == [TURN]


def test_tools_are_rows_of_their_turn(handler, home):
    """A tool called in a turn is a row with name, input and observation, between question and answer."""
    RunnableLambda(lambda asked: clock.invoke({"zone": "UTC"}) + "!").invoke(ASKED, config(handler))
    (one,) = conversations(home)
    assert lines(one) == [("user", "hi"), ("tool", "noon in UTC"), ("assistant", "noon in UTC!")]
    assert (one.messages[1].name, one.messages[1].input) == ("clock", {"zone": "UTC"})


def test_a_failed_tool_is_a_row_too(handler, home):
    """A tool that fails leaves its error as its observation."""
    asks = RunnableLambda(lambda _: clock.invoke({"zone": "Mars"})).with_fallbacks([RunnableLambda(lambda _: "sorry")])
    asks.invoke(ASKED, config(handler))
    (one,) = conversations(home)
    assert lines(one) == [("user", "hi"), ("tool", "ValueError: no clock there"), ("assistant", "sorry")]
    assert one.messages[1].metadata == {"error": "true"}


def test_a_bare_tool_is_nobodys_conversation(handler, home):
    """A tool that no chain called is not recorded."""
    clock.invoke({"zone": "UTC"}, config(handler))
    assert sent(home) == []


def test_an_agents_loop_is_one_turn(handler, home):
    """Model, tool, model in one chain: one turn with the tool's row and the last answer."""
    model = GenericFakeChatModel(messages=iter([calling(zone="UTC"), AIMessage("It is noon.")]))

    def loop(asked):
        said = [HumanMessage(asked["question"])]
        said.append(model.invoke(said))
        said.append(clock.invoke(said[-1].tool_calls[0]))
        return {"messages": [*said, model.invoke(said)]}

    RunnableLambda(loop).invoke(ASKED, config(handler))
    assert turns(home) == [[("user", "hi"), ("tool", "noon in UTC"), ("assistant", "It is noon.")]]


def test_a_tool_call_for_an_answer_is_a_tool_row(handler, home):
    """An answer that is a tool call is recorded as one, never as an empty answer; the next turn adds the rest."""
    model = GenericFakeChatModel(messages=iter([calling(zone="UTC"), AIMessage("It is noon.")]))
    with session(thread_id="t"):
        said = [HumanMessage("time?")]
        said.append(model.invoke(said))
        said.append(ToolMessage("noon", name="clock", tool_call_id="c1"))
        model.invoke(said)
    first, second = conversations(home)
    assert lines(first) == [("user", "time?"), ("tool", "")]
    assert (first.messages[-1].name, first.messages[-1].input) == ("clock", {"zone": "UTC"})
    assert lines(second) == [("tool", "noon"), ("assistant", "It is noon.")]


# Who and where.


def test_who_comes_from_the_nearest_who_says_it(handler, home):
    """Session over run metadata over configurable; tags are carried."""
    chain().invoke(ASKED, config(handler, user_id="m", thread_id="tm"))
    chain().invoke(ASKED, {"callbacks": [handler], "tags": ["a"], "configurable": {"user_id": "c", "session_id": "tc"}})
    with session(user_id="s", thread_id="ts", tags=["b"]):
        chain().invoke(ASKED, config(handler, user_id="m", thread_id="tm"))
    found = {one.id: one for one in conversations(home)}
    assert found["tm"].user_id == "m"
    assert found["ts"].user_id == "s"
    assert found["ts"].metadata["tags"] == "b"
    configurable = next(one for key, one in found.items() if key not in {"tm", "ts"})
    assert configurable.metadata["tags"] == "a"


def test_who_may_come_from_the_models_headers(handler, home):
    """A model's own headers say who it is when nobody else does."""
    headed = Echo().bind(extra_headers={"user_id": 123})
    headed.invoke("hi", config(handler))
    (PROMPT | headed).invoke(ASKED, config(handler))
    headed.invoke("hi", config(handler, user_id="said"))
    assert [one.user_id for one in conversations(home)] == ["123", "123", "said"]


def test_a_wrapped_chain_sees_its_configurable(home):
    """What is wrapped takes user and thread from `configurable`."""
    wrap(chain()).invoke(ASKED, {"configurable": {"user_id": "c", "thread_id": "tc"}})
    (one,) = conversations(home)
    assert (one.id, one.user_id) == ("tc", "c")


# Many at once.


def test_threads_do_not_mix(handler, home):
    """Twenty threads with a session each are twenty conversations, each with its own user's words only."""
    bot = chain(pause=0.002)
    start = threading.Barrier(20)

    def work(number):
        start.wait()
        with session(user_id=f"u{number}"):
            for turn in range(3):
                bot.invoke({"question": f"{number}/{turn}"}, config(handler))

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(work, range(20)))
    found = conversations(home)
    assert len(found) == 60
    for one in found:
        number = one.user_id.removeprefix("u")
        question, answer = one.messages
        assert question.message.startswith(f"{number}/")
        assert answer.message == f"echo: {question.message}"
    assert len({one.id for one in found}) == 20


async def test_tasks_do_not_mix(handler, home):
    """Fifty concurrent ainvokes are fifty conversations of two messages each."""
    bot = chain(pause=0.002)
    await asyncio.gather(*(bot.ainvoke({"question": str(number)}, config(handler)) for number in range(50)))
    assert sorted(turns(home)) == sorted(
        [("user", str(number)), ("assistant", f"echo: {number}")] for number in range(50)
    )


def test_many_runs_leave_nothing_behind(handler, recording):
    """State is kept for runs that are open, and for nothing else."""
    bot = chain()
    for number in range(300):
        bot.invoke({"question": str(number)}, config(handler))
    assert (handler.runs.roots, handler.runs.of) == ({}, {})
    assert recording.stats().recorded == 300


async def test_inline_handlers_take_no_executor(handler, home):
    """A busy default executor does not hold up a chat model that is recorded."""
    release = threading.Event()
    loop = asyncio.get_running_loop()
    busy = [loop.run_in_executor(None, release.wait, 5) for _ in range(64)]
    await asyncio.wait_for(Echo().ainvoke("hi", config(handler)), 2)
    release.set()
    await asyncio.gather(*busy)
    assert turns(home) == [TURN]


async def test_a_cancelled_model_call_does_not_wait_for_its_task(handler, home):
    """A task that goes on after a time-out has the cancelled call recorded all the same, before its next turn."""
    # Not pytest.raises: whoever keeps the exception keeps the call's frames, and with them the run.
    with suppress(TimeoutError):
        async with asyncio.timeout(0.05):
            await Echo(pause=30).ainvoke("slow", config(handler))
    # The last frames go with the cancelled task itself, some turns of the loop later.
    for _ in range(5):
        gc.collect()
        await asyncio.sleep(0)
    assert turns(home) == [[("user", "slow"), ("assistant", "")]]
    await Echo().ainvoke("hi", config(handler))
    assert turns(home)[1:] == [TURN]


def test_a_turn_without_end_does_not_grow(handler, recording, home, monkeypatch):
    """Of a turn with very many tool calls the last are kept, and the cut is counted."""
    monkeypatch.delenv("CONTEXTWRAP_RAISE")

    def loop(asked):
        for number in range(MAX_TOOLS + 2):
            clock.invoke({"zone": str(number)})
        return "done"

    RunnableLambda(loop).invoke(ASKED, config(handler))
    (one,) = conversations(home)
    assert [row.observation for row in one.messages[1:3]] == ["noon in 2", "noon in 3"]
    assert len(one.messages) == MAX_TOOLS + 2
    assert recording.stats().lost == {f"cut: more than {MAX_TOOLS} tool calls in one turn": 2}
