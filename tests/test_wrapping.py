"""wrap: what is wrapped stays what it is, and is recorded."""

from __future__ import annotations

import copy
import functools
import pickle

import pytest
from fakemodels import Echo
from langchain_core.callbacks import BaseCallbackHandler, CallbackManager
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel, FakeListLLM
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.tools import BaseTool, tool
from parcels import conversations, lines, sent

from contextwrap import ContextCallbackHandler, wrap
from contextwrap.errors import ConfigurationError

ASKED = {"question": "hi"}
TURN = [("user", "hi"), ("assistant", "echo: hi")]


pytestmark = pytest.mark.usefixtures("recording")


def chain():
    """A chain that echoes its question."""
    return ChatPromptTemplate.from_template("{question}") | Echo() | StrOutputParser()


def turns(home):
    """The lines of each turn."""
    return [lines(one) for one in conversations(home)]


@tool
def clock(zone: str) -> str:
    """The time."""
    return f"noon in {zone}"


class Shelf(BaseRetriever):
    def _get_relevant_documents(self, query, *, run_manager):
        return [Document(page_content=f"about {query}")]


class Listener(BaseCallbackHandler):
    """The host's own handler."""

    def __init__(self):
        self.heard = []

    def on_chat_model_start(self, *_, **__):
        self.heard.append("model")


@pytest.mark.parametrize(
    ("make", "asked"),
    [
        (Echo, "hi"),
        (lambda: FakeListLLM(responses=["echo: hi"]), "hi"),
        (chain, ASKED),
        (lambda: RunnableLambda(lambda asked: f"echo: {asked}"), "hi"),
        (lambda: Echo().bind(stop=["x"]), "hi"),
        (lambda: Echo().bind_tools([clock]), "hi"),
        (lambda: Echo().with_config(tags=["x"]), "hi"),
        (lambda: chain().with_config(run_name="x"), ASKED),
        (lambda: Echo().with_retry(), "hi"),
        (lambda: chain().with_fallbacks([chain()]), ASKED),
    ],
    ids=["model", "completion", "chain", "lambda", "bound", "tools", "config", "named", "retry", "fallbacks"],
)
async def test_what_is_wrapped_is_recorded_once(home, make, asked):
    """A wrapped Runnable answers as before, and each call of any kind is one turn; the original is untouched."""
    original = make()
    state = copy.deepcopy(original.__dict__)
    wrapped = wrap(original)
    answers = [
        wrapped.invoke(asked),
        await wrapped.ainvoke(asked),
        wrapped.batch([asked])[0],
        (await wrapped.abatch([asked]))[0],
        functools.reduce(lambda one, two: one + two, wrapped.stream(asked)),
        functools.reduce(lambda one, two: one + two, [part async for part in wrapped.astream(asked)]),
    ]
    for answer in answers:
        assert (answer if isinstance(answer, str) else answer.text) == "echo: hi"
    assert turns(home) == [TURN] * 6
    assert original.__dict__ == state
    original.invoke(asked)
    assert len(sent(home)) == 6


def test_a_wrapped_model_is_a_model():
    """A wrapped model or tool keeps its type; a wrapped sequence is a Runnable."""
    assert type(wrap(Echo())) is Echo
    assert isinstance(wrap(Echo()), BaseChatModel)
    assert isinstance(wrap(clock), BaseTool)
    assert isinstance(wrap(chain()), Runnable)
    assert type(wrap(Echo().bind(stop=["x"]))) is type(Echo().bind(stop=["x"]))


@pytest.mark.parametrize("make", [Echo, chain, lambda: Echo().bind(stop=[]), lambda: clock], ids=["m", "c", "b", "t"])
def test_wrapping_twice_is_wrapping_once(home, make):
    """A second wrap adds nothing."""
    once = wrap(make())
    twice = wrap(once)
    assert twice is once or twice.config_factories == once.config_factories
    if isinstance(once, BaseTool):
        return
    twice.invoke("hi" if make is not chain else ASKED)
    assert turns(home) == [TURN]


@pytest.mark.parametrize(
    "derive",
    [
        lambda m: m.with_retry(),
        lambda m: m.with_config(tags=["x"]),
        lambda m: m.with_config(callbacks=[Listener()]),
        lambda m: m.bind(stop=["x"]),
        lambda m: m.bind_tools([clock]),
        lambda m: m.with_fallbacks([Echo()]),
        lambda m: m.with_listeners(),
        lambda m: m.with_types(),
        lambda m: m.model_copy(),
        copy.copy,
        copy.deepcopy,
        lambda m: pickle.loads(pickle.dumps(m)),
        lambda m: m | StrOutputParser(),
        lambda m: m.pipe(StrOutputParser()),
        lambda m: RunnablePassthrough() | m | StrOutputParser(),
    ],
)
def test_what_comes_of_a_wrapped_model_is_recorded_once(home, derive):
    """Every Runnable that comes of a wrapped model is recorded, once."""
    derived = derive(wrap(Echo()))
    derived.invoke("hi")
    assert turns(home) == [TURN]


@pytest.mark.parametrize(
    "derive",
    [
        lambda c: c.with_retry(),
        lambda c: c.with_config(tags=["x"]),
        lambda c: c.with_config(callbacks=[Listener()]),
        lambda c: c.with_config(callbacks=[ContextCallbackHandler()]),
        lambda c: c.bind(),
        lambda c: c.with_fallbacks([chain()]),
        lambda c: c.with_listeners(),
        lambda c: c.with_types(),
        copy.deepcopy,
        lambda c: c | RunnableLambda(str),
        lambda c: c.pipe(str),
        lambda c: RunnablePassthrough() | c,
        lambda c: RunnablePassthrough() | RunnableLambda(c.invoke),
    ],
)
def test_what_comes_of_a_wrapped_chain_is_recorded_once(home, derive):
    """Every Runnable that comes of a wrapped chain is recorded, once."""
    assert derive(wrap(chain())).invoke(ASKED) == "echo: hi"
    assert turns(home) == [TURN]


def test_map_is_a_turn_each(home):
    """A wrapped chain or model mapped over inputs records each of them."""
    wrap(chain()).map().invoke([{"question": "a"}, {"question": "b"}])
    wrap(Echo()).map().invoke(["c", "d"])
    assert sorted(one[0][1] for one in turns(home)) == ["a", "b", "c", "d"]


def test_a_fallback_of_a_wrapped_chain_is_one_record(home):
    """A wrapped chain that fails and its plain fallback answers: one turn, the answer."""
    failing = wrap(ChatPromptTemplate.from_template("{question}") | Echo(failures=["boom"]))
    assert failing.with_fallbacks([chain()]).invoke(ASKED) == "echo: hi"
    assert turns(home) == [TURN]


def test_wrap_and_handler_are_one_record(home):
    """A wrapped chain called with the handler in its config is recorded once."""
    wrap(chain()).invoke(ASKED, {"callbacks": [ContextCallbackHandler()]})
    wrap(Echo()).invoke("hi", {"callbacks": CallbackManager([ContextCallbackHandler()])})
    assert turns(home) == [TURN, TURN]


def test_the_hosts_handlers_go_on_hearing(home):
    """The host's own callbacks, on the object or on the call, hear what they heard before."""
    listener = Listener()
    wrap(Echo(callbacks=[listener])).invoke("hi")
    wrap(Echo(callbacks=CallbackManager([listener]))).invoke("hi")
    wrap(chain()).invoke(ASKED, {"callbacks": [listener]})
    assert listener.heard == ["model"] * 3
    assert turns(home) == [TURN] * 3


def test_a_wrapped_chain_inside_an_unwrapped_one_keeps_its_parent(home):
    """A wrapped chain called inside another run is a run of that one for the host's own tracers."""
    parents = []

    class Tracer(BaseCallbackHandler):
        def on_chain_start(self, *_, parent_run_id=None, **__):
            parents.append(parent_run_id)

    inner = wrap(chain())
    RunnableLambda(inner.invoke).invoke(ASKED, {"callbacks": [Tracer()]})
    assert parents.count(None) == 1
    assert len(parents) > 1
    assert turns(home) == [TURN]


def test_a_wrapped_chain_is_picklable(home):
    """A wrapped chain survives pickle and is still recorded, once."""
    steps = ChatPromptTemplate.from_template("{question}") | Echo() | StrOutputParser()
    back = pickle.loads(pickle.dumps(wrap(steps)))
    assert back.invoke(ASKED) == "echo: hi"
    assert turns(home) == [TURN]


def test_a_wrapped_tool_is_a_row_where_it_is_called(home):
    """A wrapped tool answers as before; inside a recorded chain it is one row of the turn, alone it is none."""
    wrapped = wrap(clock)
    assert wrapped.invoke({"zone": "UTC"}) == "noon in UTC"
    assert sent(home) == []
    wrap(RunnableLambda(lambda _: wrapped.invoke({"zone": "UTC"}))).invoke(ASKED)
    assert turns(home) == [[("user", "hi"), ("tool", "noon in UTC"), ("assistant", "noon in UTC")]]


async def test_a_wrapped_retriever_still_finds(home):
    """A wrapped retriever answers as before, and is no conversation of its own."""
    wrapped = wrap(Shelf())
    assert wrapped.invoke("socks")[0].page_content == "about socks"
    assert (await wrapped.ainvoke("socks"))[0].page_content == "about socks"
    assert sent(home) == []
    first = RunnableLambda(lambda found: found["docs"][0].page_content)
    rag = {"docs": wrapped, "question": RunnablePassthrough()} | first
    wrap(rag).invoke("hi")
    assert turns(home) == [[("user", "hi"), ("assistant", "about hi")]]


@pytest.mark.parametrize("thing", [None, "text", object(), dict])
def test_wrap_takes_runnables_only(thing):
    """What is no Runnable is refused at once, with what to do instead."""
    with pytest.raises(ConfigurationError, match="@track_context"):
        wrap(thing)
