"""What a tracked call returns is followed until it has been read: streams, awaitables, streaming responses.

A generator stays a real generator, a coroutine a coroutine, a response the same object; whoever reads them meets
the protocol of the original, step by step and error by error. No ContextVar is held while the reader has control.

A generator that has not begun runs in a Context of its own (PEP 567), so that what it sets is never reset in
another, whatever thread goes on with it. Code that is under way already is left in its reader's Context.
"""

from __future__ import annotations

import asyncio
import copy
import dis
import inspect
import io
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, Protocol, Self, TypeAlias

import wrapt

from contextwrap import responses
from contextwrap.client import default_client
from contextwrap.identity import current_scope
from contextwrap.streams import entered, unknown_to_the_loop

if TYPE_CHECKING:
    from contextwrap.identity import Scope

Run: TypeAlias = Callable[..., Any]
"""Makes one step, `run(step, *args)`, where the call belongs."""


class Call(Protocol):
    """Who is told how a call goes on and ends; what is read of it runs in `scope`."""

    media_type: str | None
    scope: Scope

    def took(self, chunk: object, /) -> None:
        """The reader of its stream gets a chunk."""

    def returned(self, result: object, /) -> None:
        """It is over, its stream too."""

    def raised(self, error: BaseException, /) -> None:
        """It failed, was cancelled, or its stream was abandoned."""


def _follow(result: Any, call: Call) -> Any:  # noqa: PLR0911  one line a kind
    """`result`, or what stands for it until it has been read; `call` learns how it ends. Only in its scope."""
    if inspect.isgenerator(result):
        if result.gi_code.co_flags & inspect.CO_ITERABLE_COROUTINE:
            # What @types.coroutine makes is awaited by its own flag, which no other generator has.
            return result
        begun = inspect.getgeneratorstate(result) != inspect.GEN_CREATED
        return _named_like(result, _through(_run(call.scope, begun=begun), result, call))
    if inspect.isasyncgen(result):
        return _named_like(result, _athrough(_run(call.scope, begun=_begun(result)), result, call))
    if inspect.iscoroutine(result):
        return _named_like(result, awaited(lambda: result, call))
    if isinstance(result, asyncio.Future):
        result.add_done_callback(lambda future: _settled(future, call))
        return result
    if responses.is_response(result):
        call.media_type = responses.media_type(result)
        if not responses.replace_stream(result, lambda stream: _follow(stream, call)):
            call.returned(result)
        return result
    if isinstance(result, Iterator) and not isinstance(result, io.IOBase):
        return _Iterator(result, call)
    if isinstance(result, AsyncIterator):
        return _AsyncIterator(result, call)
    call.returned(None if inspect.isawaitable(result) else result)
    return result


def followed(make: Callable[[], Any], call: Call) -> Any:
    """What `make()` gives in the scope of `call`, followed."""
    with entered(call.scope):
        try:
            result = make()
        except BaseException as error:
            call.raised(error)
            raise
        with default_client().guard("track_context"):
            return _follow(result, call)
        return result


async def awaited(make: Callable[[], Awaitable[Any]], call: Call) -> Any:
    """What `make()` is awaited for, in the scope of `call`, followed in turn."""
    with entered(call.scope):
        try:
            result = await make()
        except BaseException as error:
            call.raised(error)
            raise
        with default_client().guard("track_context"):
            return _follow(result, call)
        return result


def _through(run: Run, stream: Generator[Any, Any, Any], call: Call | None) -> Generator[Any, Any, Any]:
    """`yield from stream`, each step by `run`; and unlike it, what ignores GeneratorExit is left alive."""
    sent: Any = None
    thrown: BaseException | None = None
    try:
        while True:
            item = run(stream.send, sent) if thrown is None else run(stream.throw, thrown)
            if call is not None:
                call.took(item)
            sent = thrown = None
            try:
                sent = yield item
            except BaseException as error:  # noqa: BLE001  whatever is thrown in is the stream's to take
                thrown = error
    except StopIteration as end:
        if call is not None:
            call.returned(end.value)
        return end.value
    except BaseException as error:
        if call is not None:
            call.raised(error)
        raise


async def _athrough(run: Run, stream: AsyncGenerator[Any, Any], call: Call) -> AsyncGenerator[Any, Any]:
    """The same for an async generator; the event loop gets to know the one that stands for it, not both."""
    sent: Any = None
    thrown: BaseException | None = None
    try:
        while True:
            with unknown_to_the_loop():
                step = stream.asend(sent) if thrown is None else stream.athrow(thrown)
            item = await _Steps(run, step)
            call.took(item)
            sent = thrown = None
            try:
                sent = yield item
            except BaseException as error:  # noqa: BLE001  whatever is thrown in is the stream's to take
                thrown = error
    except StopAsyncIteration:
        call.returned(None)
    except BaseException as error:
        call.raised(error)
        raise


class _Steps:
    """An awaitable whose every step is made by `run`: no Task of its own, so the caller's is seen and cancelled."""

    __slots__ = ("_awaitable", "_run")

    def __init__(self, run: Run, awaitable: Awaitable[Any]) -> None:
        self._run = run
        self._awaitable = awaitable

    def __await__(self) -> Generator[Any, Any, Any]:
        iterator: Any = self._awaitable.__await__()
        return _through(self._run, iterator if hasattr(iterator, "throw") else _whole(iterator), None)


def _whole(iterator: Iterator[Any]) -> Generator[Any, Any, Any]:
    """An iterator with the rest of a generator's protocol."""
    return (yield from iterator)


class _Here:
    """Runs steps in the reader's Context, each with the scope that the one before has left."""

    def __init__(self, scope: Scope) -> None:
        self._scope = scope

    def run(self, step: Callable[..., Any], *args: Any) -> Any:
        """One step."""
        with entered(self._scope):
            try:
                return step(*args)
            finally:
                self._scope = current_scope() or self._scope


def _run(scope: Scope, *, begun: bool) -> Run:
    return _Here(scope).run if begun else copy_context().run


def _begun(stream: AsyncGenerator[Any, Any]) -> bool:
    """Whether any of its code has run; Python says so from 3.12 on (inspect.getasyncgenstate)."""
    frame = stream.ag_frame  # type: ignore[attr-defined]  # an async generator's, not any AsyncGenerator's
    return frame is None or dis.opname[frame.f_code.co_code[frame.f_lasti]] != "RETURN_GENERATOR"


def _named_like(original: Any, made: Any) -> Any:
    made.__name__, made.__qualname__ = original.__name__, original.__qualname__
    return made


def _settled(future: asyncio.Future[Any], call: Call) -> None:
    if future.cancelled():
        call.raised(asyncio.CancelledError())
        return
    # Asked for by its public name, it would count as retrieved, and never be logged as lost.
    error = future._exception  # noqa: SLF001
    if error is None:
        call.returned(future.result())
    else:
        call.raised(error)


class _Read(wrapt.ObjectProxy):  # type: ignore[type-arg]  # not generic before wrapt 2
    """An iterator that is no generator, with all it can do; copied and pickled as the iterator alone."""

    def __init__(self, stream: Any, call: Call) -> None:
        super().__init__(stream)
        self._self_call = call
        self._self_run = _Here(call.scope).run

    def __copy__(self) -> Any:
        return copy.copy(self.__wrapped__)

    def __deepcopy__(self, memo: Any) -> Any:
        return copy.deepcopy(self.__wrapped__, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.__wrapped__.__reduce_ex__(protocol)

    def __del__(self) -> None:
        self._self_call.raised(GeneratorExit())


class _Iterator(_Read):
    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        try:
            item = self._self_run(next, self.__wrapped__)
        except StopIteration:
            self._self_call.returned(None)
            raise
        except BaseException as error:
            self._self_call.raised(error)
            raise
        self._self_call.took(item)
        return item


class _AsyncIterator(_Read):
    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Any:
        try:
            item = await _Steps(self._self_run, self.__wrapped__.__anext__())
        except StopAsyncIteration:
            self._self_call.returned(None)
            raise
        except BaseException as error:
            self._self_call.raised(error)
            raise
        self._self_call.took(item)
        return item
