"""A Runnable that tells LangChain nothing of its runs is one run all the same, once it is wrapped.

LangChain's own kinds tell their callbacks when a run begins and ends; a class of the host's with an `invoke` of its
own need not. Its calls are told to the recorder here, and what runs inside belongs to them.
"""

from __future__ import annotations

from contextlib import aclosing
from functools import partial, reduce
from operator import add
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID, uuid4

from langchain_core.runnables import Runnable, RunnableBinding

from contextwrap import transcript
from contextwrap.following import awaited, followed
from contextwrap.handler import shared_handler
from contextwrap.identity import Identity, Scope, Turn, current_scope

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

    from langchain_core.runnables import RunnableConfig

_LANGCHAINS: Final = ("langchain", "langgraph")


def is_silent(kind: type[Runnable[Any, Any]]) -> bool:
    """Whether runs of this class may be told to nobody: its `invoke` is none of LangChain's."""
    return not kind.invoke.__module__.startswith(_LANGCHAINS)


class SilentBinding(RunnableBinding[Any, Any]):
    """A binding whose own calls are told."""

    def invoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any | None) -> Any:
        """As RunnableBinding's."""
        return told("invoke", *self._call(self.bound.invoke, input, config, kwargs))

    async def ainvoke(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any | None) -> Any:
        """As RunnableBinding's."""
        return await told("ainvoke", *self._call(self.bound.ainvoke, input, config, kwargs))

    def stream(self, input: Any, config: RunnableConfig | None = None, **kwargs: Any | None) -> Iterator[Any]:
        """As RunnableBinding's."""
        yield from told("stream", *self._call(self.bound.stream, input, config, kwargs))

    async def astream(
        self, input: Any, config: RunnableConfig | None = None, **kwargs: Any | None
    ) -> AsyncIterator[Any]:
        """As RunnableBinding's."""
        async with aclosing(told("astream", *self._call(self.bound.astream, input, config, kwargs))) as stream:
            async for chunk in stream:
                yield chunk

    # Each input by `invoke`: the batch of what is bound would call its own.
    batch = Runnable.batch
    abatch = Runnable.abatch

    def _call(
        self, method: Callable[..., Any], given: Any, config: RunnableConfig | None, kwargs: Mapping[str, Any]
    ) -> tuple[Callable[[], Any], Any, RunnableConfig]:
        whole = self._merge_configs(config)
        return partial(method, given, whole, **{**self.kwargs, **kwargs}), given, whole


def told(method: str, make: Callable[[], Any], given: Any, config: Mapping[str, Any]) -> Any:
    """What `make()` gives for one of invoke, ainvoke, stream and astream; a run that begins when that does."""
    if method == "ainvoke":
        return _awaited(make, given, config)
    if method == "stream":
        return _streamed(make, given, config)
    return _astreamed(make, given, config) if method == "astream" else followed(make, OwnRun(given, config))


async def _awaited(make: Callable[[], Any], given: Any, config: Mapping[str, Any]) -> Any:
    return await awaited(make, OwnRun(given, config))


def _streamed(make: Callable[[], Any], given: Any, config: Mapping[str, Any]) -> Iterator[Any]:
    yield from followed(make, OwnRun(given, config))


async def _astreamed(make: Callable[[], Any], given: Any, config: Mapping[str, Any]) -> AsyncIterator[Any]:
    stream = followed(make, OwnRun(given, config))
    try:
        async for chunk in stream:
            yield chunk
    finally:
        if hasattr(stream, "aclose"):
            await stream.aclose()


class OwnRun:
    """One call under way, for `following`: its end, its chunks and its failure are told as a chain's."""

    media_type: str | None = None

    def __init__(self, given: object, config: Mapping[str, Any]) -> None:
        self._run_id: UUID = uuid4()
        shared_handler().on_chain_start(
            None,
            given,
            run_id=self._run_id,
            metadata=config.get("metadata"),
            tags=config.get("tags"),
        )
        # Without a session there is nobody to name, only the run to belong to.
        around = current_scope() or Scope(identity=Identity(), turn=Turn(), asked=False)
        self.scope = around.below(self._run_id.int)
        self._chunks: list[Any] = []

    def took(self, chunk: object) -> None:
        """The reader of its stream gets a chunk."""
        self._chunks.append(chunk)
        shared_handler().on_llm_new_token(transcript.answered(chunk), run_id=self._run_id)

    def returned(self, result: object) -> None:
        """It is over, its stream too."""
        shared_handler().on_chain_end(self._whole() if self._chunks else result, run_id=self._run_id)

    def raised(self, error: BaseException) -> None:
        """It failed, was cancelled, or its stream was abandoned."""
        shared_handler().on_chain_error(error, run_id=self._run_id)

    def _whole(self) -> Any:
        try:
            return reduce(add, self._chunks)
        except TypeError:
            # As LangChain does with chunks that cannot be added: the last one stands.
            return self._chunks[-1]
