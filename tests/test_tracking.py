"""wrap and track_context: the host's objects stay what they are, and are recorded."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import pickle
from dataclasses import dataclass

import pytest
from fakemodels import Echo
from langchain_core.callbacks import BaseCallbackHandler, CallbackManager
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel, FakeListLLM
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.tools import BaseTool, tool
from parcels import conversations, lines, sent

from contextwrap import ContextCallbackHandler, configure, session, track_context, wrap
from contextwrap.errors import ConfigurationError
from contextwrap.identity import current_scope
from contextwrap.recorder import shared_handler

ASKED = {"question": "hi"}
TURN = [("user", "hi"), ("assistant", "echo: hi")]


@pytest.fixture(autouse=True)
def client(home):
    """The default client, and a handler that holds nothing when the test is over."""
    yield configure(home=home)
    assert shared_handler()._runs.roots == {}
    assert shared_handler()._runs._of == {}


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


# wrap


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
    """A wrapped chain that fails and its plain fallback answers: the failure is one record, the turn's only one."""
    failing = wrap(ChatPromptTemplate.from_template("{question}") | Echo(failures=["boom"]))
    assert failing.with_fallbacks([chain()]).invoke(ASKED) == "echo: hi"
    assert turns(home) == [[("user", "hi"), ("event", "RuntimeError: boom")]]


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


@pytest.mark.parametrize("thing", [None, "text", print, object(), Echo])
def test_wrap_takes_runnables_only(thing):
    """What is no Runnable is refused at once, with what to do instead."""
    with pytest.raises(ConfigurationError, match="@track_context"):
        wrap(thing)


# track_context


@dataclass
class User:
    id: str | None
    tags: dict


@dataclass
class Request:
    user: User


REQUEST = Request(User("u1", {"plan": "free", "n": [10, 20]}))


@pytest.mark.parametrize(
    ("user_id", "expected"),
    [
        ("{request.user.id}", "u1"),
        ("{request.user.tags[plan]}", "free"),
        ("{request.user.tags[n][1]}", "20"),
        ("acme-{request.user.id}", "acme-u1"),
        ("{request.user.id!r}", "'u1'"),
        ("{{{request.user.id}}}", "{u1}"),
        ("{number:04d}", "0007"),
        ("{number}", "7"),
        ("always", "always"),
        ("{{braces}}", "{braces}"),
        ("", None),
        (lambda arguments: arguments["request"].user.id.upper(), "U1"),
        (lambda arguments: None, None),
        (None, None),
        ("{rest[0]}", "x"),
        ("{options[key]}", "value"),
    ],
)
def test_who_is_found_in_the_arguments(user_id, expected):
    """A constant, a format field over the arguments by name, index and attribute, or a callable says who it is."""

    @track_context(user_id=user_id, metadata={"who": user_id})
    def answer(request, number=7, *rest, **options):
        return current_scope().identity

    identity = answer(REQUEST, 7, "x", key="value")
    assert (identity.user_id or None) == expected
    assert (identity.metadata.get("who") or None) == expected


def test_nobody_is_not_a_user_called_none():
    """A field whose value is None says nothing, as an anonymous user should."""

    @track_context(user_id="{user.id}")
    def answer(user):
        return current_scope().identity.user_id

    assert answer(User(None, {})) is None


async def test_calls_of_every_kind_are_sessions(home):
    """Functions, coroutine functions, methods, classmethods and staticmethods are each a session."""

    class Service:
        name = "s"

        @track_context(user_id="{self.name}-{user}")
        def method(self, user):
            return Echo().invoke("hi").text

        @track_context(user_id="{self.name}-{user}")
        async def coroutine(self, user):
            await asyncio.sleep(0)
            return (await Echo().ainvoke("hi")).text

        @classmethod
        @track_context(user_id="{cls.name}-{user}")
        def on_class(cls, user):
            return Echo().invoke("hi").text

        @staticmethod
        @track_context(user_id="{user}")
        def static(user):
            return Echo().invoke("hi").text

    @track_context
    def plain():
        return Echo().invoke("hi").text

    service = Service()
    answers = [service.method("a"), await service.coroutine("b"), Service.on_class("c"), Service.static("d"), plain()]
    assert answers == ["echo: hi"] * 5
    assert [one.user_id for one in conversations(home)] == ["s-a", "s-b", "s-c", "d", None]
    assert Service.method(service, user="e") == "echo: hi"
    assert conversations(home)[-1].user_id == "s-e"


def test_a_tracked_function_looks_like_itself():
    """Name, signature, docstring and kind stay what they were."""

    @track_context(user_id="{user}")
    async def answer(user: str, *, page: int = 1) -> str:
        """Answers."""
        return user

    assert str(inspect.signature(answer)) == "(user: 'str', *, page: 'int' = 1) -> 'str'"
    assert (answer.__name__, answer.__doc__) == ("answer", "Answers.")
    assert inspect.iscoroutinefunction(answer)
    assert asyncio.run(answer("u", page=2)) == "u"


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


def test_exceptions_pass_through(client):
    """What the function raises is raised, the very same object, and the session has ended."""
    mine = KeyError("mine")

    @track_context(user_id="{user}")
    def answer(user):
        raise mine

    with pytest.raises(KeyError) as raised:
        answer("u")
    assert raised.value is mine
    assert current_scope() is None
    assert client.stats().lost == {}


@pytest.mark.parametrize("user_id", ["{nobody}", "{request.user.id}-{other}", "{}", "{0}", "{unclosed"])
def test_a_bad_field_is_refused_at_decoration(user_id):
    """A field that names no argument is refused where the decorator stands, naming function and field."""
    with pytest.raises(ConfigurationError, match="@track_context"):

        @track_context(metadata={"x": user_id})
        def answer(request):
            """Never made."""


def generator():
    """A generator."""
    yield 1


async def async_generator():
    """An async generator."""
    yield 1


@pytest.mark.parametrize("thing", [User, generator, async_generator, classmethod(print), staticmethod(print), 5])
def test_what_cannot_be_tracked_is_refused(thing):
    """Classes, generators and what is no function are refused with what to do instead."""
    with pytest.raises(ConfigurationError, match="@track_context"):
        track_context(thing)


def test_partials_and_callable_objects_are_tracked():
    """functools.partial and objects with __call__ are functions too."""

    class Answerer:
        def __call__(self, user):
            return current_scope().identity.user_id

    assert track_context(user_id="{user}")(Answerer())("u") == "u"
    assert track_context(user_id="{user}")(functools.partial(Answerer(), user="v"))() == "v"


def test_two_calls_at_once_keep_their_users():
    """Concurrent calls of one tracked function are sessions of their own."""

    @track_context(user_id="{user}")
    async def answer(user):
        await asyncio.sleep(0.001)
        return current_scope().identity.user_id

    async def both():
        return await asyncio.gather(*(answer(f"u{number}") for number in range(30)))

    assert asyncio.run(both()) == [f"u{number}" for number in range(30)]


def test_answer_types_are_unchanged():
    """What the function returns is returned, the very same object."""
    answer = AIMessage("hi")
    assert track_context(lambda: answer)() is answer


def tracked_at_module_level(user):
    """Whose call it is."""
    return current_scope().identity.user_id


tracked_at_module_level = track_context(user_id="{user}")(tracked_at_module_level)


def test_a_tracked_function_can_be_sent_to_a_worker_process():
    """A tracked function of a module is copied and pickled as the function itself would be."""
    assert pickle.loads(pickle.dumps(tracked_at_module_level))("u") == "u"
    assert copy.deepcopy([tracked_at_module_level])[0]("u") == "u"
    assert copy.copy(tracked_at_module_level)("u") == "u"
