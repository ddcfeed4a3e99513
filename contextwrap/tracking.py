"""track_context: each call of a function is a session, and nothing else about the function changes.

What is decorated stays what it was: a proxy stands for a function, a method stays Python's own, a class and a
classmethod are the same object with tracked functions in them. LangChain is imported at the first call.
"""

from __future__ import annotations

import copy
import functools
import inspect
import sys
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast, overload

import wrapt

from contextwrap.client import default_client
from contextwrap.errors import ConfigurationError
from contextwrap.fields import Fields, Labels, Value, labels

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping

    from contextwrap.calls import Call
    from contextwrap.identity import Capture

Tracked = TypeVar(
    "Tracked", bound="Callable[..., Any] | classmethod[Any, ..., Any] | staticmethod[..., Any]"
)  # fmt: skip


@overload
def track_context(function: Tracked, /) -> Tracked: ...


@overload
def track_context(
    *,
    user_id: Value = None,
    thread_id: Value = None,
    metadata: Mapping[str, Value] | None = None,
    tags: Labels = (),
    capture: Capture = "content",
) -> Callable[[Tracked], Tracked]: ...


def track_context(
    function: Tracked | None = None,
    /,
    *,
    user_id: Value = None,
    thread_id: Value = None,
    metadata: Mapping[str, Value] | None = None,
    tags: Labels = (),
    capture: Capture = "content",
) -> Tracked | Callable[[Tracked], Tracked]:
    """Decorate a function of any kind, a method, a callable object or a class: each call of it is a `session`.

    `user_id`, `thread_id`, the values of `metadata` and each of `tags` are a constant, a format field over the
    arguments in Python's own syntax (`"{request.user.id}"`, `"{payload[user]}"`, `"{kwargs[user]}"`; no braces, no
    lookup) or a callable that gets the arguments by name as a mapping; `tags` may be one callable for all. A value
    that cannot be found is left out and counted. `capture` is a session's.

    A generator, and a stream, awaitable or streaming response that is returned, belongs to the call until it has
    been read; generators run in a Context of their own. A call in which LangChain has no part is itself the turn:
    its text arguments, its result. Of a class the public functions are tracked; one of LangChain Runnables is
    `wrap`ped. Raises ConfigurationError at decoration for a field that names no argument.
    """
    fields = Fields(
        user_id=user_id, thread_id=thread_id, metadata=dict(metadata or {}), tags=labels(tags), capture=capture
    )

    def decorate(function: Tracked) -> Tracked:
        return cast("Tracked", _tracked(function, fields))

    return decorate if function is None else decorate(function)


def _tracked(target: Any, fields: Fields) -> Any:
    if isinstance(target, (classmethod, staticmethod)):
        return type(target)(_tracked(target.__func__, fields))
    runnables = sys.modules.get("langchain_core.runnables")
    if inspect.isclass(target):
        if runnables is not None and issubclass(target, runnables.Runnable):
            return _runnable(target, fields)
        return _class(target, fields)
    if not callable(target) or (runnables is not None and isinstance(target, runnables.Runnable)):
        raise ConfigurationError(
            f"@track_context goes on functions and classes, not on {type(target).__name__}; "
            "for a LangChain Runnable use wrap()"
        )
    call = inspect.getattr_static(type(target), "__call__")
    if isinstance(call, FunctionType) and not inspect.isroutine(target):
        return _TrackedObject(target, fields)
    return _Tracked(target, fields)


def _class(kind: type[Any], fields: Fields) -> type[Any]:
    """The same class, its public functions tracked; of the fields each gets those that it has arguments for."""
    functions = {
        name: value
        for name, value in vars(kind).items()
        if not name.startswith("_") and isinstance(value, (FunctionType, classmethod, staticmethod))
    }
    known = [_parameters(cast("Any", getattr(value, "__func__", value))) for value in functions.values()]
    nowhere = [value for value in fields.values() if all(value in fields.unknown(names) for names in known)]
    if functions and nowhere:
        raise ConfigurationError(f"@track_context: {nowhere[0]!r} names no argument of any function of {kind.__name__}")
    for (name, value), names in zip(functions.items(), known, strict=True):
        setattr(kind, name, _tracked(value, fields.known(names)))
    return kind


def _runnable(kind: type[Any], fields: Fields) -> type[Any]:
    if not fields.constant() or fields.capture != "content":
        raise ConfigurationError(
            f"@track_context on {kind.__name__}, a class of LangChain Runnables, takes constants only and no capture: "
            "say who it is with session() around the call, or in the call's config"
        )
    from contextwrap.wrapping import wrap  # noqa: PLC0415  LangChain, 180 ms: only where it is there already

    metadata = {key: value for key, value in fields.metadata.items() if value is not None}
    tags = [str(tag) for tag in cast("tuple[Value, ...]", fields.tags) if tag is not None]
    user_id, thread_id = cast("str | None", fields.user_id), cast("str | None", fields.thread_id)
    return wrap(kind, user_id=user_id, thread_id=thread_id, metadata=metadata, tags=tags)


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(function).parameters
    except (TypeError, ValueError):
        # A function written in C may not say.
        return {}


class _Tracked(wrapt.ObjectProxy):  # type: ignore[type-arg]  # not generic before wrapt 2
    """A tracked function; bound, copied and pickled as the function itself would be."""

    def __init__(self, function: Callable[..., Any], fields: Fields) -> None:
        super().__init__(function)
        name = getattr(function, "__qualname__", None) or repr(function)
        unknown = fields.unknown(_parameters(function))
        if unknown:
            signature = f"({', '.join(_parameters(function))})"
            raise ConfigurationError(f"@track_context: {unknown[0]!r} names no argument of {name}{signature}")
        self._self_fields = fields
        self._self_apart = fields.whole()
        try:
            self._self_signature: inspect.Signature | None = inspect.signature(function)
        except (TypeError, ValueError):
            self._self_signature = None
        self._self_is_coroutine = inspect.iscoroutinefunction(function)
        inner: Any = function
        while isinstance(inner, functools.partial):
            inner = inner.func
        self._self_names = getattr(inner, "__name__", ""), getattr(inner, "__qualname__", "")

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        function = self.__wrapped__
        arguments = self._self_arguments(args, kwargs)
        if arguments is None:
            # Whoever calls it wrongly hears so from Python.
            result = function(*args, **kwargs)
            default_client().guard.lost("track_context: the arguments do not fit the signature")
            return result
        if self._self_is_coroutine:
            coroutine: Any = _awaited(self, functools.partial(function, *args, **kwargs), arguments)
            coroutine.__name__, coroutine.__qualname__ = self._self_names
            return coroutine
        call = self._self_begin(arguments)
        if call is None:
            return function(*args, **kwargs)
        from contextwrap.following import followed  # noqa: PLC0415  see above

        return followed(functools.partial(function, *args, **kwargs), call)

    def __get__(self, instance: object, owner: type[Any] | None = None) -> Any:
        if instance is None or not isinstance(self.__wrapped__, FunctionType):
            return self
        return MethodType(self, instance)

    def __copy__(self) -> Self:
        return self if isinstance(self.__wrapped__, FunctionType) else self._self_again(copy.copy(self.__wrapped__))

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        if isinstance(self.__wrapped__, FunctionType):
            return self
        return self._self_again(copy.deepcopy(self.__wrapped__, memo))

    def __reduce_ex__(self, protocol: Any) -> Any:
        name = getattr(self.__wrapped__, "__qualname__", "")
        if _named(getattr(self.__wrapped__, "__module__", ""), name) is self:
            return name
        return type(self), (self.__wrapped__, self._self_fields)

    def _self_again(self, function: Any) -> Self:
        return type(self)(function, self._self_fields)

    def _self_arguments(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[str, Any] | None:
        """The arguments by name; None when they do not fit."""
        if self._self_signature is None:
            return {"args": args, "kwargs": kwargs}
        try:
            bound = self._self_signature.bind(*args, **kwargs)
        except TypeError:
            return None
        bound.apply_defaults()
        return bound.arguments

    def _self_begin(self, arguments: Mapping[str, Any]) -> Call | None:
        """A call in a session of its own; None, and counted, when that cannot be had."""
        with default_client().guard("track_context"):
            from contextwrap.calls import begin  # noqa: PLC0415  LangChain, 180 ms: at the first call

            scope = self._self_fields.session(arguments).scope()
            return begin(scope, arguments, apart_from=self._self_apart)
        return None


class _TrackedObject(_Tracked):
    """A tracked callable object: its class's `__call__` is what is tracked, so frameworks see of which kind it is."""

    def __init__(self, thing: Any, fields: Fields) -> None:
        wrapt.ObjectProxy.__init__(self, thing)
        self._self_fields = fields
        self._self_call = _Tracked(type(thing).__call__, fields)

    @property
    def __call__(self) -> Any:
        return MethodType(self._self_call, self.__wrapped__)


async def _awaited(tracked: _Tracked, make: Callable[[], Awaitable[Any]], arguments: Mapping[str, Any]) -> Any:
    """A coroutine function's own call: nothing of it happens before it is awaited."""
    call = tracked._self_begin(arguments)  # noqa: SLF001  wrapt keeps a proxy's own under this prefix
    if call is None:
        return await make()
    from contextwrap.following import awaited  # noqa: PLC0415  see above

    return await awaited(make, call)


def _named(module: str | None, qualname: str) -> object:
    """What pickle finds under a function's name."""
    found: object = sys.modules.get(module or "")
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return found
