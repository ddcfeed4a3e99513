"""A stream belongs to the session it was asked for in, wherever it is read.

LangChain's streams are generators: nothing runs, and no run begins, before they are read for the first time,
which may be after the session is over, in another thread or task. So what makes a stream remembers the scope of
the call, and the first step, in which the root run begins, is made in that scope. No ContextVar is held while
the reader has control.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import wrapt
from langchain_core.runnables import Runnable

from contextwrap import recorder as recorder
from contextwrap.identity import Scope, current_scope, scope_var

STREAMING: Final = (
    "stream", "astream", "astream_events", "astream_log", "batch_as_completed", "abatch_as_completed",
)  # fmt: skip


def carry(kind: type[Any]) -> None:
    """Make the streams of a class of Runnables, and of those it inherits from, remember their scope."""
    for owner in kind.__mro__:
        for name in STREAMING:
            made_by = owner.__dict__.get(name)
            if callable(made_by) and not isinstance(made_by, wrapt.FunctionWrapper):
                setattr(owner, name, wrapt.FunctionWrapper(made_by, _remembering))


@contextmanager
def entered(scope: Scope) -> Iterator[None]:
    """For one step: the code inside runs in `scope`."""
    token = scope_var.set(scope)
    try:
        yield
    finally:
        # Whoever drives a coroutine may go on with it in another Context: there it never was set.
        with suppress(ValueError):
            scope_var.reset(token)


@contextmanager
def unknown_to_the_loop() -> Iterator[None]:
    """An async generator that is first asked in here is not closed by the event loop, but by whoever drives it."""
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(None, None)
    try:
        yield
    finally:
        sys.set_asyncgen_hooks(*hooks)


def _remembering(wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    stream, scope = wrapped(*args, **kwargs), current_scope()
    if scope is None:
        return stream
    if isinstance(stream, Generator):
        return _begun_in(scope, stream)
    return _abegun_in(scope, stream) if isinstance(stream, AsyncGenerator) else stream


def _begun_in(scope: Scope, stream: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """The same stream; `yield from` but for its first step."""
    try:
        with entered(scope):
            item = next(stream)
        while True:
            try:
                sent = yield item
            except GeneratorExit:
                stream.close()
                raise
            except BaseException as error:  # noqa: BLE001  whatever is thrown in is the stream's to take
                item = stream.throw(error)
            else:
                item = stream.send(sent)
    except StopIteration as end:
        return end.value


async def _abegun_in(scope: Scope, stream: AsyncGenerator[Any, Any]) -> AsyncGenerator[Any, Any]:
    """The same for an async stream."""
    try:
        with entered(scope):
            with unknown_to_the_loop():
                step = anext(stream)
            item = await step
        while True:
            try:
                sent = yield item
            except GeneratorExit:
                await stream.aclose()
                raise
            except BaseException as error:  # noqa: BLE001  whatever is thrown in is the stream's to take
                item = await stream.athrow(error)
            else:
                item = await stream.asend(sent)
    except StopAsyncIteration:
        return


def _carry_known(kind: type[Any]) -> None:
    carry(kind)
    for below in kind.__subclasses__():
        _carry_known(below)


_carry_known(Runnable)
wrapt.register_post_import_hook(lambda module: carry(module.Pregel), "langgraph.pregel")
