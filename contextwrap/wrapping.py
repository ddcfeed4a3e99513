"""wrap: brings the one shared handler into reach of a Runnable, a class of them or a factory, and changes nothing else.

It goes through LangChain's own seams, so that what comes out is what went in: a copy of a model, tool or classic
chain with the handler among its `callbacks`; `with_config` on a compiled graph; a binding with a config factory on
any other Runnable. A proxy would lose itself in every method that returns a new Runnable. Whatever is derived from
a wrapped Runnable is recorded as a whole, because the recorder hears the whole run around the handler.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, cast

import wrapt
from langchain_core.callbacks import BaseCallbackManager
from langchain_core.language_models import BaseLanguageModel
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableBinding
from langchain_core.runnables.base import RunnableBindingBase
from langchain_core.runnables.config import merge_configs

from contextwrap.errors import ConfigurationError
from contextwrap.handler import shared_handler
from contextwrap.ownruns import SilentBinding, is_silent, told
from contextwrap.streams import carry
from contextwrap.whose import EXPLICIT_THREAD, EXPLICIT_USER, THREAD_KEYS, USER_KEYS, WRAPPED

if TYPE_CHECKING:
    from langchain_core.runnables import RunnableConfig

Wrappable = TypeVar("Wrappable", bound=Runnable[Any, Any] | Callable[..., Any])


def wrap(
    target: Wrappable,
    *,
    user_id: str | None = None,
    thread_id: str | None = None,
    metadata: Mapping[str, Any] | None = None,
    tags: Iterable[str] = (),
    name: str | None = None,
) -> Wrappable:
    """The same Runnable, recorded: every root run that it has part in becomes one turn of a conversation.

    The original is left as it is; wrapping twice is wrapping once. A class of Runnables is changed in place, so
    that all its instances are recorded, and returned; a function is returned with what it makes wrapped (also
    what it is awaited for). `user_id` and `thread_id` go before a session's; `metadata`, `tags` and `name` are
    added to what LangChain itself knows of the run. Raises ConfigurationError for what is no Runnable.
    """
    ids = {EXPLICIT_USER: user_id, EXPLICIT_THREAD: thread_id}
    said = _Said(
        metadata={**(metadata or {}), **{key: str(value) for key, value in ids.items() if value is not None}},
        tags=(tags,) if isinstance(tags, str) else tuple(tags),
        name=name,
    )
    thing: Any = target
    wrapped: Any
    if isinstance(thing, Runnable):
        wrapped = _instance(thing, said)
    elif inspect.isclass(thing):
        if not issubclass(thing, Runnable):
            raise ConfigurationError(f"wrap() takes classes of Runnables, and {thing.__name__} is none; {_ELSE}")
        wrapped = _class(thing, said)
    elif callable(thing):
        wrapped = _factory(thing, said)
    else:
        raise ConfigurationError(f"wrap() takes a LangChain Runnable, not {type(thing).__name__}; {_ELSE}")
    return cast("Wrappable", wrapped)


@dataclass(frozen=True, kw_only=True)
class _Said:
    """What `wrap` was told beside the target."""

    metadata: Mapping[str, Any]
    tags: tuple[str, ...]
    name: str | None

    def __bool__(self) -> bool:
        return bool(self.metadata or self.tags or self.name)

    def config(self) -> RunnableConfig:
        """It as LangChain's config."""
        config: RunnableConfig = {}
        if self.metadata:
            config["metadata"] = dict(self.metadata)
        if self.tags:
            config["tags"] = list(self.tags)
        if self.name:
            config["run_name"] = self.name
        return config


def _instance(runnable: Runnable[Any, Any], said: _Said) -> Any:
    carry(type(runnable))
    if isinstance(runnable, BaseRetriever) or "callbacks" in getattr(type(runnable), "model_fields", {}):
        return _with_handler(runnable, said)
    if isinstance(runnable, RunnableBindingBase):
        factories, config = runnable.config_factories, runnable.config
        if _recorded not in factories:
            factories = [*factories, _recorded]
        if said:
            config = merge_configs(config, said.config())
        if factories is runnable.config_factories and config is runnable.config:
            return runnable
        return runnable.model_copy(update={"config_factories": factories, "config": config})
    if _is_graph(runnable):
        return _graph(runnable, said)
    binding = SilentBinding if is_silent(type(runnable)) else RunnableBinding
    return binding(bound=runnable, config=said.config(), config_factories=[_recorded])


def _graph(graph: Any, said: _Said) -> Any:
    config = said.config()
    if not _has_handler((graph.config or {}).get("callbacks")):
        config["callbacks"] = [shared_handler()]
        if not hasattr(sys.modules.get("langgraph._internal._config"), "_merge_callbacks"):
            _merge_callbacks()
    return graph.with_config(config) if config else graph


def _merge_callbacks() -> None:
    """In LangGraph 1.0 the callbacks of a call replace those of `with_config`; every call ends in one of these two."""
    pregel = sys.modules["langgraph.pregel"].Pregel
    for name in ("stream", "astream"):
        if not hasattr(pregel.__dict__[name], "_self_merges"):
            merging: Any = wrapt.FunctionWrapper(pregel.__dict__[name], _merged)
            merging._self_merges = True  # noqa: SLF001  wrapt keeps a wrapper's own under this prefix
            setattr(pregel, name, merging)


def _merged(wrapped: Callable[..., Any], graph: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    config: Any = (args[1] if len(args) > 1 else kwargs.get("config")) or {}
    callbacks = config.get("callbacks")
    if not callbacks or _has_handler(callbacks) or not _has_handler((graph.config or {}).get("callbacks")):
        return wrapped(*args, **kwargs)
    merged = {**config, "callbacks": _added(callbacks)}
    if len(args) > 1:
        return wrapped(args[0], merged, *args[2:], **kwargs)
    return wrapped(*args, **{**kwargs, "config": merged})


def _with_handler(runnable: Any, said: _Said) -> Any:
    """A copy with the handler among its callbacks; a classic chain's are its own only, so its models get it too."""
    update = _update(runnable, said)
    if not isinstance(runnable, BaseLanguageModel):
        for name in type(runnable).model_fields:
            value = getattr(runnable, name, None)
            if isinstance(value, BaseLanguageModel) and not _has_handler(value.callbacks):
                update[name] = _with_handler(value, _NOTHING)
    if not update:
        return runnable
    copy = runnable.model_copy(update=update)
    # Cached from the original, callbacks and all.
    copy.__dict__.pop("_serialized", None)
    return copy


def _update(runnable: Any, said: _Said) -> dict[str, Any]:
    """The fields that differ in a wrapped model, tool or classic chain."""
    update: dict[str, Any] = {}
    fields, noted = type(runnable).model_fields, dict(said.metadata)
    if "callbacks" not in fields:
        # A retriever has no callbacks of its own: the recorder knows it by this.
        noted |= {WRAPPED: True}
    elif not _has_handler(runnable.callbacks):
        update["callbacks"] = _added(runnable.callbacks)
    if not noted.items() <= (runnable.metadata or {}).items():
        update["metadata"] = {**(runnable.metadata or {}), **noted}
    if said.tags and "tags" in fields:
        update["tags"] = list(dict.fromkeys([*(runnable.tags or ()), *said.tags]))
    if said.name and isinstance(runnable, BaseLanguageModel):
        update["name"] = said.name
    model_kwargs = getattr(runnable, "model_kwargs", None)
    if isinstance(model_kwargs, dict) and "headers" in model_kwargs and _is_openai(runnable):
        # The vendor's client has no `headers`, though the old handler's page says so: it raises TypeError.
        rest = {key: value for key, value in model_kwargs.items() if key != "headers"}
        headers = {**model_kwargs["headers"], **rest.get("extra_headers", {})}
        update["model_kwargs"] = {**rest, "extra_headers": headers}
    return update


def _class(kind: type[Any], said: _Said) -> type[Any]:
    carry(kind)
    if kind.__dict__.get(_MARK) is not None:
        return kind
    if issubclass(kind, BaseRetriever) or "callbacks" in getattr(kind, "model_fields", {}):
        _every_instance(kind, said)
    else:
        silent = is_silent(kind)
        for name in _ENTRIES:
            entered = functools.partial(_entered, said, name if silent and name in _TOLD else None)
            setattr(kind, name, wrapt.FunctionWrapper(getattr(kind, name), entered))
    setattr(kind, _MARK, True)
    return kind


def _every_instance(kind: type[Any], said: _Said) -> None:
    def initialised(wrapped: Callable[..., None], instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        wrapped(*args, **kwargs)
        for name, value in _update(instance, said).items():
            # As model_copy sets them: without validation, which would run the class's own code once more.
            instance.__dict__[name] = value

    setattr(kind, "__init__", wrapt.FunctionWrapper(kind.__init__, initialised))  # noqa: B010  mypy forbids the assignment


def _factory(make: Callable[..., Any], said: _Said) -> Any:
    if isinstance(make, _Factory):
        return make

    def made(wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _made(wrapped(*args, **kwargs), said)

    async def amade(wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _made(await wrapped(*args, **kwargs), said)

    return _Factory(make, amade if inspect.iscoroutinefunction(make) else made)


def _made(thing: Any, said: _Said) -> Any:
    return _instance(thing, said) if isinstance(thing, Runnable) else thing


def _entered(
    said: _Said,
    tell: str | None,
    wrapped: Callable[..., Any],
    _: object,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> Any:
    """An entry point of a Runnable, `method(input, config=None, **kwargs)`, called with the handler in its config."""
    given = args[0] if args else kwargs.get("input")
    config = _with_recorded(args[1] if len(args) > 1 else kwargs.get("config"), said)
    if len(args) > 1:
        call = functools.partial(wrapped, args[0], config, *args[2:], **kwargs)
    else:
        call = functools.partial(wrapped, *args, **{**kwargs, "config": config})
    return call() if tell is None else told(tell, call, given, config)


def _with_recorded(config: Any, said: _Said) -> Any:
    if isinstance(config, list):
        return [_with_recorded(one, said) for one in config]
    # The empty one takes up the ambient config first, so that the run around this one stays its parent.
    whole = merge_configs({}, config, said.config())
    return merge_configs(whole, _recorded(whole))


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


def _is_openai(runnable: object) -> bool:
    return any(kind.__module__.partition(".")[0] == "langchain_openai" for kind in type(runnable).__mro__)


class _Factory(wrapt.FunctionWrapper[..., Any]):
    """A function whose Runnables are wrapped; copied and pickled as functions are, which wrapt leaves to us."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> str:
        return str(self.__qualname__)


_TOLD: Final = ("invoke", "ainvoke", "stream", "astream")
_ENTRIES: Final = (*_TOLD, "batch", "abatch", "transform", "atransform")
# Listening begins with the first import: a chain around something wrapped may run before what is wrapped does.
shared_handler()

_ELSE: Final = "for functions and other classes use @track_context"
_MARK: Final = "__contextwrap__"
_NOTHING: Final = _Said(metadata={}, tags=(), name=None)
