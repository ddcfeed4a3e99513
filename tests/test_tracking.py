"""track_context: what is decorated stays what it is, and each call of it is a session."""

from __future__ import annotations

import asyncio
import copy
import functools
import inspect
import pickle

import pytest
import wrapt
from fakemodels import Echo
from langchain_core.language_models import BaseChatModel
from parcels import conversations, lines

from contextwrap import track_context
from contextwrap.errors import ConfigurationError
from contextwrap.identity import current_scope

pytestmark = pytest.mark.usefixtures("recording")


def me():
    """The user of the scope this runs in."""
    scope = current_scope()
    return None if scope is None else scope.identity.user_id


# What it goes on


def plain(user):
    """Whose it is."""
    return me()


async def coroutine(user):
    """Whose it is."""
    await asyncio.sleep(0)
    return me()


def generator(user):
    """Whose it is."""
    yield me()


async def async_generator(user):
    """Whose it is."""
    await asyncio.sleep(0)
    yield me()


KINDS = [plain, coroutine, generator, async_generator]
ASKING = [
    inspect.iscoroutinefunction,
    asyncio.iscoroutinefunction,
    inspect.isgeneratorfunction,
    inspect.isasyncgenfunction,
    inspect.isfunction,
    inspect.ismethod,
    inspect.isroutine,
    inspect.isclass,
    callable,
]


class Service:
    """Every kind of method, tracked in every way."""

    def __init__(self, name="s"):
        self.name = name

    label = "k"

    method = track_context(user_id="{self.name}-{user}")(lambda self, user: plain(user))

    @track_context(user_id="{self.name}-{user}")
    async def coroutine(self, user):
        return await coroutine(user)

    @track_context(user_id="{self.name}-{user}")
    def generator(self, user):
        yield from generator(user)

    @track_context(user_id="{self.name}-{user}")
    async def async_generator(self, user):
        async for one in async_generator(user):
            yield one

    @classmethod
    @track_context(user_id="{cls.label}-{user}")
    def class_below(cls, user):
        return me()

    @track_context(user_id="{cls.label}-{user}")
    @classmethod
    def class_above(cls, user):
        return me()

    @staticmethod
    @track_context(user_id="static-{user}")
    def static_below(user):
        return me()

    @track_context(user_id="static-{user}")
    @staticmethod
    def static_above(user):
        return me()


async def result_of(call, *args, **kwargs):
    """What a function of any kind gives: its value, or the first it yields."""
    result = call(*args, **kwargs)
    if inspect.isasyncgen(result):
        (one,) = [one async for one in result]
        return one
    if inspect.isgenerator(result):
        return next(iter(list(result)))
    return await result if inspect.isawaitable(result) else result


@pytest.mark.parametrize("function", KINDS)
async def test_every_kind_of_function_is_a_session(function):
    """Functions, coroutine functions, generators and async generators run in the session, and nothing else does."""
    assert await result_of(track_context(function), "u") is None
    assert await result_of(track_context(user_id="{user}")(function), "u") == "u"
    assert await result_of(track_context(user_id="{user}")(function), user="v") == "v"
    assert current_scope() is None


@pytest.mark.parametrize("function", KINDS)
@pytest.mark.parametrize("derive", [lambda f: f, lambda f: functools.partial(f, "u"), lambda f: track_context(f)])
def test_a_tracked_function_looks_like_itself(function, derive):
    """Name, signature, defaults, docstring and kind are what they were, for everybody who asks."""
    before, after = derive(function), derive(track_context(user_id="{user}")(function))
    assert [ask(before) for ask in ASKING] == [ask(after) for ask in ASKING]
    assert inspect.signature(after) == inspect.signature(before)
    for name in ("__name__", "__qualname__", "__doc__", "__module__", "__defaults__", "__annotations__", "__dict__"):
        assert getattr(after, name, None) == getattr(before, name, None) or name == "__dict__"
    assert inspect.unwrap(track_context(function)) is function


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("method", "s-u"),
        ("coroutine", "s-u"),
        ("generator", "s-u"),
        ("async_generator", "s-u"),
        ("class_below", "k-u"),
        ("class_above", "k-u"),
        ("static_below", "static-u"),
        ("static_above", "static-u"),
    ],
)
async def test_every_kind_of_method_is_a_session(name, expected):
    """Methods, classmethods and staticmethods in either order, called on an instance, its class or a subclass."""

    class Below(Service):
        pass

    assert await result_of(getattr(Service(), name), "u") == expected
    assert await result_of(getattr(Below(), name), user="u") == expected
    if expected.startswith("s-"):
        assert await result_of(getattr(Service, name), Service(), "u") == expected
        assert inspect.ismethod(getattr(Service(), name))
    else:
        assert await result_of(getattr(Service, name), "u") == expected


@pytest.mark.parametrize("name", ["coroutine", "generator", "async_generator", "class_below", "static_above"])
async def test_tracked_methods_can_be_sent_to_a_worker_process(name):
    """A bound method is pickled with its instance, as Python does it."""
    bound = getattr(Service("p"), name)
    there = pickle.loads(pickle.dumps(bound))
    assert await result_of(there, "u") == await result_of(bound, "u")


class Answerer:
    """A callable object with a state."""

    def __init__(self, name):
        self.name = name

    def __call__(self, user):
        return me()


class AsyncAnswerer(Answerer):
    async def __call__(self, user):
        return me()


class StreamingAnswerer(Answerer):
    async def __call__(self, user):
        yield me()


@pytest.mark.parametrize("kind", [Answerer, AsyncAnswerer, StreamingAnswerer])
async def test_callable_objects_are_tracked(kind):
    """A callable object keeps its type and attributes, and the kind of its call for frameworks that look at it."""
    thing = kind("n")
    tracked = track_context(user_id="{self.name}-{user}")(thing)
    assert isinstance(tracked, kind)
    assert tracked.name == "n"
    assert [ask(tracked.__call__) for ask in ASKING] == [ask(thing.__call__) for ask in ASKING]
    assert inspect.signature(tracked) == inspect.signature(thing)
    tracked.name = "m"
    assert thing.name == "m"
    for one in (tracked, copy.copy(tracked), copy.deepcopy(tracked), pickle.loads(pickle.dumps(tracked))):
        assert await result_of(one, "u") == "m-u"


@pytest.mark.parametrize("function", [*KINDS, Answerer("x"), AsyncAnswerer("x")])
async def test_partials_are_tracked(function):
    """functools.partial of anything, and a partial of what is tracked; both can be pickled."""
    for one in (
        track_context(user_id="{user}")(functools.partial(function, user="v")),
        functools.partial(track_context(user_id="{user}")(function), "v"),
    ):
        assert await result_of(one) == "v"
        assert isinstance(one, functools.partial)
    partial = track_context(user_id="{user}")(functools.partial(function, user="v"))
    assert await result_of(pickle.loads(pickle.dumps(partial))) == "v"


def test_bound_methods_and_builtins_are_tracked():
    """A bound method, and a function written in C, that may not say its arguments."""
    assert track_context(user_id="{user}")(Answerer("x").__call__)("u") == "u"
    assert track_context(user_id="u")(max)(1, 2) == 2
    assert track_context(user_id="u")(dict.fromkeys)("ab") == {"a": None, "b": None}


tracked_at_module_level = None


@track_context(user_id="{user}")
def tracked_at_module_level(user):  # noqa: F811  its name leads to the tracked one
    """Whose call it is."""
    return me()


known_by_another_name = track_context(user_id="{user}")(plain)


def test_a_tracked_function_can_be_sent_to_a_worker_process():
    """A tracked function is copied and pickled by its name; where that leads to the plain one, with what was said."""
    for one in (tracked_at_module_level, known_by_another_name):
        assert pickle.loads(pickle.dumps(one))("u") == "u"
        assert copy.deepcopy([one])[0] is one
        assert copy.copy(one) is one
    assert pickle.loads(pickle.dumps(tracked_at_module_level)) is tracked_at_module_level


async def test_other_decorators_go_above_and_below():
    """Decorators of other makers, and this one twice, stack in any order."""

    def noting(function):
        @functools.wraps(function)
        def noted(*args, **kwargs):
            return function(*args, **kwargs)

        return noted

    @wrapt.decorator
    def passing(wrapped, instance, args, kwargs):
        return wrapped(*args, **kwargs)

    for stack in (
        [noting, track_context(user_id="{user}")],
        [track_context(user_id="{user}"), noting],
        [passing, track_context(user_id="{user}"), passing],
        [track_context(user_id="{user}"), track_context(thread_id="t")],
        [track_context(user_id="{user}"), functools.cache],
        [track_context(thread_id="t"), track_context(user_id="{user}")],
    ):
        for function in (plain, coroutine, generator):
            tracked = functools.reduce(lambda inner, decorator: decorator(inner), stack, function)
            assert await result_of(tracked, "u") == "u"
            holder = type("Holder", (), {"method": functools.reduce(lambda f, d: d(f), stack, lambda self, user: me())})
            assert holder().method("u") == "u"


def test_two_decorators_are_nested_sessions(home):
    """What the inner one does not say it has from the outer one, and the turn is one."""

    @track_context(user_id="outer", thread_id="t", tags=["a"])
    @track_context(user_id="inner", tags=["b"])
    def answer(question):
        return "42"

    answer("why?")
    (one,) = conversations(home)
    assert (one.id, one.user_id, one.metadata["tags"]) == ("t", "inner", "a,b")
    assert lines(one) == [("user", "why?"), ("assistant", "42")]


# Classes


@track_context(user_id="{self.name}", thread_id="{chat}")
class Desk:
    """A plain class."""

    Nested = Answerer

    def __init__(self, name):
        self.name = name

    def answer(self, chat):
        return me(), current_scope().identity.thread_id

    async def later(self, chat):
        return me()

    @staticmethod
    def still(chat):
        return me(), current_scope().identity.thread_id

    def without(self):
        return me()

    @property
    def seen(self):
        return current_scope()

    def _inner(self):
        return current_scope()


async def test_a_class_is_tracked():
    """The public functions of a class are tracked, each with what it has arguments for; the rest is untouched."""
    desk = Desk("n")
    assert inspect.isclass(Desk)
    assert type(desk) is Desk
    assert desk.answer("t") == ("n", "t")
    assert await desk.later("t") == "n"
    assert Desk.still("t") == (None, "t")
    assert desk.without() == "n"
    assert desk.seen is None
    assert desk._inner() is None
    assert Desk.Nested is Answerer
    assert pickle.loads(pickle.dumps(desk)).answer("t") == ("n", "t")


def test_a_tracked_class_can_be_inherited_from():
    """A subclass may extend and replace; what it inherits is tracked, what it replaces is its own."""

    class Below(Desk):
        def answer(self, chat):
            return super().answer(chat), current_scope()

        def without(self):
            return me()

    assert Below("n").answer("t") == (("n", "t"), None)
    assert Below("n").without() is None


def test_a_field_that_fits_no_function_of_a_class_is_refused():
    """A class is refused when a field names an argument that none of its functions has."""
    with pytest.raises(ConfigurationError, match="Shop"):

        @track_context(user_id="{nobody}")
        class Shop:
            def answer(self, question):
                """Never called."""


def test_a_class_of_runnables_is_wrapped(home):
    """Instances of a tracked class of LangChain models are recorded, as the user the decorator names."""

    @track_context(user_id="u", thread_id="t", metadata={"plan": "pro"}, tags=["x"])
    class Own(Echo):
        pass

    model = Own()
    assert isinstance(model, BaseChatModel)
    assert model.invoke("hi").text == "echo: hi"
    (one,) = conversations(home)
    assert (one.id, one.user_id, one.metadata["plan"]) == ("t", "u", "pro")
    assert lines(one) == [("user", "hi"), ("assistant", "echo: hi")]


@pytest.mark.parametrize(
    "said", [{"user_id": "{input}"}, {"tags": lambda _: []}, {"metadata": {"x": print}}, {"capture": "off"}]
)
def test_what_a_class_of_runnables_cannot_have_is_said(said):
    """Lookups and `capture` are refused for a class of Runnables, with what to do instead."""
    with pytest.raises(ConfigurationError, match=r"session\(\)"):

        @track_context(**said)
        class Own(Echo):
            pass
