"""Whatever is derived from a wrapped Runnable is recorded: one call, one conversation."""

from __future__ import annotations

import copy
import pickle

import pytest
from heart import ChatHeart, Heart
from kinds import AGAIN, ASKED, KINDS, PROMPT, TEXT, Card, Clock, chain, fresh
from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.runnables import ConfigurableField, RunnableLambda, RunnableParallel, RunnablePassthrough
from parcels import conversations, lines

import contextwrap
from contextwrap import wrap

TURN = [("user", "hi"), ("assistant", TEXT)]
# Those whose one recorded answer is known beforehand; `each` has no event stream, and a test of its own, as map.
ANSWERING = [name for name, kind in KINDS.items() if kind.said and kind.answer and name != "each"]
# LangChain says that a message history and a classic chain are old.
OLD = pytest.mark.filterwarnings("ignore::langchain_core._api.deprecation.LangChainDeprecationWarning")
FIRST_FAILS = {"error": ZeroDivisionError("mine"), "failures": 1}


@pytest.fixture(autouse=True)
def configured(home):
    """Records go to this test's home."""
    contextwrap.configure(home=home)


def turns(home):
    """The lines of each turn."""
    return [lines(one) for one in conversations(home)]


def model(**options):
    """A wrapped model."""
    return wrap(ChatHeart(heart=Heart(**options)))


def wrapped_chain(**options):
    """A wrapped chain."""
    return wrap(chain(Heart(**options)))


FROM_A_MODEL = {
    "with_retry": lambda: model().with_retry(),
    "with_retry, the first attempt fails": lambda: model(**FIRST_FAILS).with_retry(wait_exponential_jitter=False),
    "with_config": lambda: model().with_config(tags=["x"], run_name="named"),
    "with_config, a handler": lambda: model().with_config(callbacks=[BaseCallbackHandler(), AsyncCallbackHandler()]),
    "bind": lambda: model().bind(stop=["x"]),
    "with_fallbacks": lambda: model().with_fallbacks([ChatHeart(heart=Heart())]),
    "with_fallbacks, a bare one answers": lambda: model(**FIRST_FAILS).with_fallbacks([ChatHeart(heart=Heart())]),
    "with_fallbacks, of a bare one": lambda: ChatHeart(heart=Heart(**FIRST_FAILS)).with_fallbacks([model()]),
    "with_listeners": lambda: model().with_listeners(on_start=lambda *_: None, on_end=lambda *_: None),
    "with_types": lambda: model().with_types(output_type=AIMessage),
    "pipe": lambda: model().pipe(StrOutputParser()),
    "or": lambda: model() | StrOutputParser(),
    "or, a parallel": lambda: model() | {"text": StrOutputParser()} | RunnableLambda(lambda both: both["text"]),
    "after a prompt": lambda: RunnableLambda(lambda text: {"question": text}) | PROMPT | model(),
    "configurable_fields": lambda: model().configurable_fields(prefix=ConfigurableField(id="prefix")),
    "configurable_fields, with a value": lambda: (
        model().configurable_fields(model=ConfigurableField(id="m")).with_config(configurable={"m": "other"})
    ),
    "configurable_alternatives": lambda: model().configurable_alternatives(ConfigurableField(id="w"), o=Clock(heart=0)),
    "configurable_alternatives, the other": lambda: (
        model().configurable_alternatives(ConfigurableField(id="w"), o=model()).with_config(configurable={"w": "o"})
    ),
    "model_copy": lambda: model().model_copy(),
    "model_copy, updated": lambda: model().model_copy(update={"model": "other"}),
    "copy": lambda: copy.copy(model()),
    "deepcopy": lambda: copy.deepcopy(model()),
    "pickle": lambda: pickle.loads(pickle.dumps(model())),
    "wrap": lambda: wrap(model()),
    "wrap of what is derived": lambda: wrap(model().bind(stop=["x"]) | StrOutputParser()),
    "branch of a bare parallel": lambda: RunnableParallel(text=model(), more=str) | RunnableLambda(lambda d: d["text"]),
    "inside a lambda": lambda: RunnableLambda(lambda text: model().invoke(text).text),
}

FROM_A_CHAIN = {
    "with_retry": lambda: wrapped_chain().with_retry(),
    "with_retry, the first attempt fails": lambda: wrapped_chain(**FIRST_FAILS).with_retry(
        wait_exponential_jitter=False
    ),
    "with_config": lambda: wrapped_chain().with_config(tags=["x"], run_name="named"),
    "bind": lambda: wrapped_chain().bind(),
    "with_fallbacks": lambda: wrapped_chain().with_fallbacks([chain(Heart())]),
    "with_fallbacks, a bare one answers": lambda: wrapped_chain(**FIRST_FAILS).with_fallbacks([chain(Heart())]),
    "with_fallbacks, of a bare one": lambda: chain(Heart(**FIRST_FAILS)).with_fallbacks([wrapped_chain()]),
    "with_listeners": lambda: wrapped_chain().with_listeners(on_end=lambda *_: None),
    "with_types": lambda: wrapped_chain().with_types(input_type=dict),
    "pipe": lambda: wrapped_chain().pipe(str),
    "or": lambda: wrapped_chain() | str,
    "after something": lambda: RunnablePassthrough() | wrapped_chain(),
    "wrap": lambda: wrap(wrapped_chain()),
    "copy": lambda: copy.copy(wrapped_chain()),
    "deepcopy": lambda: copy.deepcopy(wrapped_chain()),
    "pickle": lambda: pickle.loads(pickle.dumps(wrapped_chain())),
    "inside a lambda, as a method": lambda: RunnableLambda(wrapped_chain().invoke),
    "inside a lambda, returned": lambda: RunnableLambda(lambda _: wrapped_chain()),
    "pick": lambda: wrap(RunnableParallel(text=chain(Heart()), more=str)).pick("text"),
    "assign, picked": lambda: wrap(RunnablePassthrough()).assign(text=chain(Heart())).pick("text"),
}


# LangChain does not try a stream again.
NOT_STREAMED = {"with_retry, the first attempt fails"}


@pytest.mark.parametrize("derive", FROM_A_MODEL.values(), ids=FROM_A_MODEL)
def test_what_comes_of_a_model_is_one_conversation(home, derive):
    """What is derived from a wrapped model records its call once, with the user's text and the final answer."""
    answer = derive().invoke("hi")
    assert getattr(answer, "text", answer) == TEXT
    assert turns(home) == [TURN]


@pytest.mark.parametrize("derive", FROM_A_CHAIN.values(), ids=FROM_A_CHAIN)
def test_what_comes_of_a_chain_is_one_conversation(home, derive):
    """What is derived from a wrapped chain records its call once, with the user's text and the final answer."""
    assert derive().invoke(ASKED) == TEXT
    assert turns(home) == [TURN]


@pytest.mark.parametrize("name", [name for name in FROM_A_MODEL if name not in NOT_STREAMED])
async def test_what_comes_of_a_model_is_one_conversation_when_streamed(home, name):
    """The same, streamed in async code."""
    assert [part async for part in FROM_A_MODEL[name]().astream("hi")]
    assert turns(home) == [TURN]


@pytest.mark.parametrize("name", [name for name in FROM_A_CHAIN if name not in NOT_STREAMED])
async def test_what_comes_of_a_chain_is_one_conversation_when_streamed(home, name):
    """The same, streamed in async code."""
    assert [part async for part in FROM_A_CHAIN[name]().astream(ASKED)]
    assert turns(home) == [TURN]


async def test_async_listeners(home):
    """with_alisteners hear, and the call is one conversation."""
    heard = []

    async def listen(run):
        heard.append(run.name)

    await RunnableLambda(lambda text: text).pipe(model()).with_alisteners(on_end=listen).ainvoke("hi")
    await wrapped_chain().with_alisteners(on_end=listen).ainvoke(ASKED)
    assert len(heard) == 2
    assert turns(home) == [TURN, TURN]


def test_tools_are_bound_to_it(home):
    """bind_tools gives a model whose call for a tool is a row of the conversation."""
    answer = model().bind_tools([Clock(heart=Heart())]).invoke("hi")
    assert [call["name"] for call in answer.tool_calls] == ["clock"]
    (one,) = turns(home)
    assert one[0] == ("user", "hi")
    assert [row[0] for row in one[1:]] == ["tool"]


def test_structured_output(home):
    """with_structured_output answers the object, and that is the answer of the one conversation."""
    answer = model().with_structured_output(Card).invoke("hi")
    assert answer == Card(name=TEXT)
    (one,) = turns(home)
    assert one[0] == ("user", "hi")
    assert one[-1][0] == "assistant"
    assert TEXT in one[-1][1]


@pytest.mark.parametrize("wrapped", [model, wrapped_chain], ids=["model", "chain"])
def test_map_is_one_conversation_for_each(home, wrapped):
    """map() asks once for each of its inputs, and each is a conversation."""
    made = wrapped()
    both = ["hi", "bye"] if isinstance(made, ChatHeart) else [ASKED, AGAIN]
    made.map().invoke(both)
    assert sorted(turns(home)) == sorted([TURN, [("user", "bye"), ("assistant", "so: bye it is")]])


def test_assign_is_one_conversation(home):
    """RunnablePassthrough.assign around a wrapped chain and assign on one."""
    RunnablePassthrough.assign(answer=wrapped_chain()).invoke(ASKED)
    wrap(RunnableParallel(question=lambda asked: asked["question"])).assign(answer=chain(Heart())).invoke(ASKED)
    found = turns(home)
    assert [one[0] for one in found] == [("user", "hi")] * 2
    assert [TEXT in one[-1][1] for one in found] == [True, True]
    assert [len(one) for one in found] == [2, 2]


@pytest.mark.filterwarnings("ignore::langchain_core._api.beta_decorator.LangChainBetaWarning")
def test_as_a_tool(home):
    """as_tool makes a tool of it; called by itself it records what the wrapped chain did."""
    tool = wrapped_chain().as_tool(name="asks", description="Asks.", arg_types={"question": str})
    assert tool.invoke({"question": "hi"}) == TEXT
    assert turns(home) == [TURN]


@OLD
@pytest.mark.parametrize("kind", [name for name in ANSWERING if name != "coroutine"])
def test_each_call_of_each_kind_is_one_conversation(home, kind):
    """invoke, stream, both of a batch, and transform are one conversation each, of any kind."""
    kind = KINDS[kind]
    runnable = wrap(fresh(kind, Heart()))
    runnable.invoke(kind.asked, kind.config)
    list(runnable.stream(kind.asked, kind.config))
    runnable.batch([kind.asked, kind.asked], kind.config)
    list(runnable.transform(iter([kind.asked]), kind.config))
    found = turns(home)
    assert [one[0] for one in found] == [("user", "hi")] * 5
    assert [one[-1] for one in found] == [("assistant", kind.answer)] * 5
    assert [len(one) for one in found] == [2] * 5


@OLD
@pytest.mark.parametrize("kind", ANSWERING)
async def test_each_async_call_of_each_kind_is_one_conversation(home, kind):
    """The same in async code."""
    kind = KINDS[kind]
    runnable = wrap(fresh(kind, Heart()))
    await runnable.ainvoke(kind.asked, kind.config)
    assert [part async for part in runnable.astream(kind.asked, kind.config)]
    await runnable.abatch([kind.asked, kind.asked], kind.config)
    assert [one async for one in runnable.astream_events(kind.asked, kind.config, version="v2")]
    found = turns(home)
    assert [one[0] for one in found] == [("user", "hi")] * 5
    assert [one[-1] for one in found] == [("assistant", kind.answer)] * 5
    assert [len(one) for one in found] == [2] * 5


@pytest.mark.parametrize("kind", ["retriever", "tool"])
def test_what_is_no_conversation_is_none(home, kind):
    """A wrapped tool or retriever called by itself is nobody's conversation."""
    kind = KINDS[kind]
    wrap(kind.make(Heart())).invoke(kind.asked)
    assert turns(home) == []
