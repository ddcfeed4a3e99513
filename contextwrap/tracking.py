"""wrap and track_context: both only bring the one shared handler into reach, and change nothing else.

`wrap` goes through LangChain's own seams, so that what comes out is what went in: a copy of a model, tool or
classic chain with the handler among its `callbacks`; `with_config` on a compiled graph; a binding with a config
factory on any other Runnable. A proxy would lose itself in every method that returns a new Runnable.
"""

from __future__ import annotations

import inspect
import string
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ParamSpec, Self, TypeAlias, TypeVar, cast, overload

import wrapt
from langchain_core.callbacks import BaseCallbackManager
from langchain_core.language_models import BaseLanguageModel
from langchain_core.runnables import Runnable, RunnableBinding
from langchain_core.runnables.base import RunnableBindingBase

from contextwrap.client import default_client
from contextwrap.errors import ConfigurationError
from contextwrap.recorder import THREAD_KEYS, USER_KEYS, shared_handler
from contextwrap.sessions import session

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

P = ParamSpec("P")
R = TypeVar("R")
AnyRunnable = TypeVar("AnyRunnable", bound=Runnable[Any, Any])
Said: TypeAlias = str | Callable[[Mapping[str, Any]], Any] | None
"""A constant, a format field over the arguments ("{request.user.id}"), or a callable over them by name."""


def wrap(runnable: AnyRunnable) -> AnyRunnable:
    """The same Runnable, recorded: every root run of it becomes one turn of a conversation.

    The original is left as it is; wrapping twice is wrapping once. Raises ConfigurationError for what is no
    Runnable.
    """
    if not isinstance(runnable, Runnable):
        raise ConfigurationError(
            f"wrap() takes a LangChain Runnable, not {type(runnable).__name__}; for functions use @track_context"
        )
    wrapped: Any = runnable
    if "callbacks" in getattr(type(runnable), "model_fields", {}):
        wrapped = _with_handler(runnable)
    elif isinstance(runnable, RunnableBindingBase):
        if _recorded not in runnable.config_factories:
            factories = [*runnable.config_factories, _recorded]
            wrapped = runnable.model_copy(update={"config_factories": factories})
    elif _is_graph(runnable):
        callbacks = (getattr(runnable, "config", None) or {}).get("callbacks")
        if not _has_handler(callbacks):
            wrapped = runnable.with_config(callbacks=[shared_handler()])
    else:
        wrapped = RunnableBinding(bound=runnable, config_factories=[_recorded])
    return cast("AnyRunnable", wrapped)


@overload
def track_context(function: Callable[P, R], /) -> Callable[P, R]: ...


@overload
def track_context(
    *,
    user_id: Said = None,
    thread_id: Said = None,
    metadata: Mapping[str, Said] | None = None,
    tags: Iterable[str] = (),
) -> Callable[[Callable[P, R]], Callable[P, R]]: ...


def track_context(
    function: Callable[P, R] | None = None,
    /,
    *,
    user_id: Said = None,
    thread_id: Said = None,
    metadata: Mapping[str, Said] | None = None,
    tags: Iterable[str] = (),
) -> Callable[P, R] | Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function or coroutine function: each call of it is a `session`.

    `user_id`, `thread_id` and the values of `metadata` are each a constant, a format field over the arguments
    in Python's own syntax (`"{request.user.id}"`, `"{payload[user]}"`; no braces, no lookup) or a callable that
    gets the arguments by name as a mapping. A value that cannot be found is left out and counted. Raises
    ConfigurationError at decoration for a field that names no argument.
    """
    said = {"user_id": user_id, "thread_id": thread_id}
    noted = dict(metadata or {})
    labels = tuple(tags)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        _check(function, [*said.values(), *noted.values()])
        signature = inspect.signature(function)
        looks_up = any(callable(value) or _names(value) for value in [*said.values(), *noted.values()])

        def scope(instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> session:
            arguments: Mapping[str, Any] = {}
            if looks_up:
                with default_client().guard("track_context"):
                    given = args if instance is None else (instance, *args)
                    bound = signature.bind(*given, **kwargs)
                    bound.apply_defaults()
                    arguments = bound.arguments
            return session(
                user_id=_found(said["user_id"], arguments),
                thread_id=_found(said["thread_id"], arguments),
                metadata={key: _found(value, arguments) for key, value in noted.items()},
                tags=labels,
            )

        if inspect.iscoroutinefunction(function):

            async def tracked_async(
                wrapped: Callable[..., Any], instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
            ) -> Any:
                with scope(instance, args, kwargs):
                    return await wrapped(*args, **kwargs)

            return cast("Callable[P, R]", _Tracked(function, tracked_async))

        def tracked(
            wrapped: Callable[..., Any], instance: object, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> Any:
            with scope(instance, args, kwargs):
                return wrapped(*args, **kwargs)

        return cast("Callable[P, R]", _Tracked(function, tracked))

    return decorate if function is None else decorate(function)


class _Tracked(wrapt.FunctionWrapper[..., Any]):
    """A tracked function; copied and pickled as functions are, which wrapt leaves to us."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> str:
        return str(self.__qualname__)


def _with_handler(runnable: Any) -> Any:
    """A copy with the handler in its `callbacks`; a classic chain's are its own only, so its models get it too."""
    update: dict[str, Any] = {}
    if not _has_handler(runnable.callbacks):
        update["callbacks"] = _added(runnable.callbacks)
    if not isinstance(runnable, BaseLanguageModel):
        for name in type(runnable).model_fields:
            value = getattr(runnable, name, None)
            if isinstance(value, BaseLanguageModel) and not _has_handler(value.callbacks):
                update[name] = _with_handler(value)
    if not update:
        return runnable
    copy = runnable.model_copy(update=update)
    # Cached from the original, callbacks and all.
    copy.__dict__.pop("_serialized", None)
    return copy


def _added(callbacks: Any) -> Any:
    if isinstance(callbacks, BaseCallbackManager):
        manager = callbacks.copy()
        manager.add_handler(shared_handler(), inherit=True)
        return manager
    return [*(callbacks or ()), shared_handler()]


def _has_handler(callbacks: Any) -> bool:
    handlers = callbacks.handlers if isinstance(callbacks, BaseCallbackManager) else callbacks or ()
    return any(handler is shared_handler() for handler in handlers)


def _recorded(config: RunnableConfig) -> RunnableConfig:
    """The config factory: resolved at each call, after the ambient config, so that the parent run is kept.

    Callbacks never see `configurable`: who and where go into the metadata, which they do.
    """
    configurable, metadata = config.get("configurable") or {}, config.get("metadata") or {}
    keys = [key for key in (*USER_KEYS, *THREAD_KEYS) if key in configurable and key not in metadata]
    noted: dict[str, Any] = {key: configurable[key] for key in keys}
    recorded: RunnableConfig = {"metadata": noted} if noted else {}
    if not _has_handler(config.get("callbacks")):
        recorded["callbacks"] = [shared_handler()]
    return recorded


def _is_graph(runnable: object) -> bool:
    pregel = sys.modules.get("langgraph.pregel")
    return pregel is not None and isinstance(runnable, pregel.Pregel)


def _check(function: Callable[..., Any], values: Iterable[Said]) -> None:
    name = getattr(function, "__qualname__", repr(function))
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"@track_context does not follow generators: use session() inside {name}")
    if inspect.isclass(function) or isinstance(function, (classmethod, staticmethod)) or not callable(function):
        raise ConfigurationError(f"@track_context goes on a function, below @classmethod and @staticmethod: {name}")
    known = set(inspect.signature(function).parameters)
    for value in values:
        for field in _names(value):
            if field not in known:
                signature = inspect.signature(function)
                raise ConfigurationError(f"@track_context: {value!r} names no argument of {name}{signature}")


def _names(value: Said) -> set[str]:
    """The arguments that a format string speaks of."""
    if not isinstance(value, str) or "{" not in value:
        return set()
    try:
        fields = [field for _, field, _, _ in string.Formatter().parse(value) if field is not None]
    except ValueError as error:
        raise ConfigurationError(f"@track_context: {value!r} is no format string: {error}") from None
    return {field.split(".")[0].split("[")[0] for field in fields}


def _found(value: Said, arguments: Mapping[str, Any]) -> str | None:
    """What `value` says, as text; None, and counted, when it cannot be found."""
    with default_client().guard("track_context"):
        found = _value(value, arguments)
        return None if found is None else str(found)
    return None


def _value(value: Said, arguments: Mapping[str, Any]) -> Any:
    if callable(value):
        return value(arguments)
    if not isinstance(value, str) or "{" not in value:
        return value
    match list(string.Formatter().parse(value)):
        case [("", str(field), "" | None, None)]:
            # A field alone is the value itself: format would make a user called "None" out of nobody.
            return string.Formatter().get_field(field, (), arguments)[0]
    return value.format_map(arguments)
