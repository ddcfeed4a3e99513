"""Rows H03, H04, H14, H15, H18: whatever a chain is built of, it is one conversation; input and output are its own."""

from __future__ import annotations

import asyncio

import pytest
from arrivals import WAYS, ask
from fakemodels import Echo
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListLLM
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import PromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.tools import tool
from shapes import ASKED, PROMPT, SHAPES, TURN

from contextwrap import session, track_context, wrap


@tool
def clock(zone: str) -> str:
    """The time."""
    return f"noon in {zone}"


SHAPED = [pytest.param(*shape, id=name) for name, shape in SHAPES.items()]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("make", "turn"), SHAPED)
def test_h03_every_wrapped_chain_is_logged_once(arrived, make, turn, way):
    """A wrapped chain of any shape, asked in any way, is one conversation: the user's input, the final output."""
    ask(wrap(make(Echo())), ASKED, way)
    assert arrived.turns() == [turn]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("make", "turn"), SHAPED)
def test_h03_every_chain_of_a_wrapped_model_is_logged_once(arrived, make, turn, way):
    """So is a chain in which nothing but the model is wrapped."""
    ask(make(wrap(Echo())), ASKED, way)
    assert arrived.turns() == [turn]


@pytest.mark.parametrize("means", ["handler in the call", "handler in the config", "session", "track_context"])
@pytest.mark.parametrize(("make", "turn"), SHAPED)
def test_h03_every_means_logs_once(arrived, handler, make, turn, means):
    """So is one that the handler, a session or the decorator brings in."""
    runnable = make(Echo())
    if means == "handler in the call":
        ask(runnable, ASKED, config={"callbacks": [handler]})
    elif means == "handler in the config":
        ask(runnable.with_config(callbacks=[handler]), ASKED)
    elif means == "session":
        with session():
            ask(runnable, ASKED)
    else:
        track_context(ask)(runnable, ASKED)
    assert arrived.turns() == [turn]


@pytest.mark.parametrize("before", SHAPES)
def test_h04_fifty_model_calls_after_a_chain_are_all_logged(arrived, handler, before):
    """No chain leaves anything behind that hides what comes after."""
    model = Echo(callbacks=[handler])
    ask(SHAPES[before][0](Echo()), ASKED, config={"callbacks": [handler]})
    for number in range(50):
        model.invoke(f"q{number}")
    assert arrived.turns() == [
        SHAPES[before][1],
        *([("user", f"q{number}"), ("assistant", f"echo: q{number}")] for number in range(50)),
    ]


# Chains inside chains.


@pytest.mark.parametrize("passing", ["config passed on", "left to the context"])
@pytest.mark.parametrize("way", ["invoke", "stream", "ainvoke"])
def test_h14_nested_chains_are_one_conversation(arrived, handler, passing, way):
    """What a function asks of inner chains belongs to the outer one: its input, its output."""
    inner = PROMPT | Echo() | StrOutputParser()

    def outer(asked, config):
        given = config if passing == "config passed on" else None
        first = inner.invoke({"question": "one " + asked["question"]}, given)
        return inner.invoke({"question": "two " + first}, given)

    ask(RunnableLambda(outer), ASKED, way, {"callbacks": [handler]})
    assert arrived.turns() == [[("user", "hi"), ("assistant", "echo: two echo: one hi")]]


def test_h14_chains_gathered_inside_a_chain_are_one_conversation(arrived):
    """So do chains that an async function asks for at the same time."""
    inner = wrap(PROMPT | Echo() | StrOutputParser())

    async def outer(asked):
        answers = await asyncio.gather(*(inner.ainvoke({"question": name}) for name in "abc"))
        return asked["question"] + ": " + ", ".join(answers)

    asyncio.run(wrap(RunnableLambda(outer)).ainvoke(ASKED))
    assert arrived.turns() == [[("user", "hi"), ("assistant", "hi: echo: a, echo: b, echo: c")]]


# Handlers, wrap, decorator and session in any combination.


def _chain(model):
    return PROMPT | model | StrOutputParser()


COMBINED = {
    "handler on model and chain": lambda h: _chain(Echo(callbacks=[h])).with_config(callbacks=[h]),
    "handler on chain and in the call": lambda h: RunnableLambda(
        lambda asked: _chain(Echo()).with_config(callbacks=[h]).invoke(asked, {"callbacks": [h]})
    ),
    "handler twice in one list": lambda h: _chain(Echo()).with_config(callbacks=[h, h]),
    "wrap and handler on the model": lambda h: wrap(_chain(Echo(callbacks=[h]))),
    "wrap and handler on the chain": lambda h: wrap(_chain(Echo()).with_config(callbacks=[h])),
    "handler on the wrapped": lambda h: wrap(_chain(Echo())).with_config(callbacks=[h]),
    "wrapped model in a wrapped chain": lambda _: wrap(_chain(wrap(Echo()))),
    "wrapped twice": lambda _: wrap(wrap(_chain(Echo()))),
    "wrapped inside wrapped": lambda _: wrap(RunnablePassthrough() | wrap(_chain(Echo()))),
    "wrapped inside a function": lambda _: wrap(RunnableLambda(lambda asked: wrap(_chain(Echo())).invoke(asked))),
}


@pytest.mark.parametrize("around", ["nothing", "handler", "session", "two sessions", "track_context"])
@pytest.mark.parametrize("combined", COMBINED)
def test_h15_however_combined_it_is_one_conversation(arrived, handler, combined, around):
    """Whichever ways are combined, one question is one conversation."""
    runnable = COMBINED[combined](handler)
    if around == "session":
        with session():
            runnable.invoke(ASKED)
    elif around == "two sessions":
        with session(user_id="ada"), session(thread_id="t"):
            runnable.invoke(ASKED)
    elif around == "track_context":
        track_context(runnable.invoke)(ASKED)
    else:
        runnable.invoke(ASKED, {"callbacks": [handler]} if around == "handler" else None)
    assert arrived.turns() == [TURN]


@pytest.mark.parametrize("way", WAYS)
def test_h15_two_handlers_the_wrong_way_are_one_conversation(arrived, way):
    """A handler object for the model and another for the chain, as the old page warned of, mean the same one."""
    from contextwrap import ContextCallbackHandler

    runnable = _chain(Echo(callbacks=[ContextCallbackHandler()]))
    ask(runnable, ASKED, way, {"callbacks": [ContextCallbackHandler()]})
    assert arrived.turns() == [TURN]


class _Listening(BaseCallbackHandler):
    """Somebody else's handler."""

    def __init__(self):
        self.heard = []

    def on_chain_start(self, *_, **__):
        self.heard.append("chain start")

    def on_chain_end(self, *_, **__):
        self.heard.append("chain end")

    def on_chat_model_start(self, *_, **__):
        self.heard.append("chat model start")

    def on_llm_start(self, *_, **__):
        self.heard.append("llm start")

    def on_llm_end(self, *_, **__):
        self.heard.append("llm end")


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "astream", "abatch"])
@pytest.mark.parametrize(
    ("make", "asked"), [(Echo, "chat model start"), (lambda: FakeListLLM(responses=["echo: hi"]), "llm start")]
)
def test_h15_other_handlers_hear_what_they_heard_before(arrived, handler, make, asked, way):
    """Beside ours another handler is told all that there is to tell: chain, prompt and model, each once."""
    other = _Listening()
    ask(wrap(PROMPT | make()), ASKED, way, {"callbacks": [other, handler]})
    assert sorted(other.heard) == sorted(["chain start", "chain end"] * 2 + [asked, "llm end"])
    assert arrived.only().messages[-1].message == "echo: hi"


# Batches, and what is nobody's conversation.


@pytest.mark.parametrize("way", ["batch", "abatch", "batch_as_completed"])
@pytest.mark.parametrize("make", [_chain, lambda model: model], ids=["chain", "model"])
def test_h01_a_batch_is_a_conversation_for_each_input(arrived, make, way):
    """Each input of a batch has its own config, and its own user with it."""
    bot = wrap(make(Echo()))
    asked = [f"q{number}" for number in range(10)]
    configs = [{"metadata": {"user_id": f"u{number}"}} for number in range(10)]
    if way == "abatch":
        asyncio.run(bot.abatch(asked, configs))
    elif way == "batch":
        bot.batch(asked, configs)
    else:
        list(bot.batch_as_completed(asked, configs))
    assert arrived.by_user() == {
        f"u{number}": [[("user", f"q{number}"), ("assistant", f"echo: q{number}")]] for number in range(10)
    }


def test_h15_what_no_chain_asks_for_is_no_conversation(arrived):
    """A tool, a prompt or a chain that the app runs by itself, unwrapped, is none."""
    wrap(clock).invoke({"zone": "Rome"})
    PROMPT.invoke(ASKED)
    _chain(Echo()).invoke(ASKED)
    assert arrived.turns() == []


# Completion models.


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("shape", ["alone", "in a chain"])
def test_h18_a_completion_model_keeps_its_prompt(arrived, shape, way):
    """A model that takes text is recorded with its prompt and its completion."""
    model = FakeListLLM(responses=["fine"])
    if shape == "alone":
        ask(wrap(model), "how are you?", way)
    else:
        ask(wrap(PromptTemplate.from_template("how {verb} you?") | model), {"verb": "are"}, way)
    assert arrived.turns() == [[("user", "how are you?"), ("assistant", "fine")]]


@pytest.mark.parametrize("way", ["generate", "batch"])
def test_h18_prompts_in_one_call_are_each_a_conversation(arrived, way):
    """Two prompts of a completion model are two conversations."""
    model = wrap(FakeListLLM(responses=["fine"]))
    model.generate(["a", "b"]) if way == "generate" else model.batch(["a", "b"])
    assert sorted(arrived.turns()) == [[("user", one), ("assistant", "fine")] for one in "ab"]
