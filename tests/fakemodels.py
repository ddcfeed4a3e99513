"""Models whose answers follow from what they are asked, so that a mix-up shows."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import Runnable


class Echo(BaseChatModel):
    """Answers "echo: <the last human text>", a word a chunk.

    It pauses `pause` seconds before each chunk, and fails while `failures` is not empty.
    """

    pause: float = 0.0
    failures: list[str] = []  # noqa: RUF012  pydantic copies it

    @property
    def _llm_type(self) -> str:
        return "echo"

    def _answer(self, messages: list[BaseMessage]) -> AIMessage:
        if self.failures:
            raise RuntimeError(self.failures.pop())
        asked = next((str(one.text) for one in reversed(messages) if isinstance(one, HumanMessage)), "")
        return AIMessage(
            content=f"echo: {asked}",
            response_metadata={"model_name": "echo-1", "finish_reason": "stop"},
            usage_metadata={"input_tokens": 3, "output_tokens": 2, "total_tokens": 5},
        )

    def _generate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        time.sleep(self.pause)
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages))])

    async def _agenerate(self, messages: list[BaseMessage], *_: Any, **__: Any) -> ChatResult:
        await asyncio.sleep(self.pause)
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages))])

    def _chunks(self, messages: list[BaseMessage]) -> list[ChatGenerationChunk]:
        words = str(self._answer(messages).content).split(" ")
        texts = [word if index == 0 else f" {word}" for index, word in enumerate(words)]
        return [ChatGenerationChunk(message=AIMessageChunk(content=text)) for text in texts]

    def _stream(self, messages: list[BaseMessage], *_: Any, **kwargs: Any) -> Iterator[ChatGenerationChunk]:
        run_manager = kwargs.get("run_manager")
        for chunk in self._chunks(messages):
            time.sleep(self.pause)
            if run_manager is not None:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(self, messages: list[BaseMessage], *_: Any, **kwargs: Any) -> AsyncIterator[ChatGenerationChunk]:
        run_manager = kwargs.get("run_manager")
        for chunk in self._chunks(messages):
            await asyncio.sleep(self.pause)
            if run_manager is not None:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def bind_tools(self, tools: Any, **kwargs: Any) -> Runnable[Any, AIMessage]:
        return self.bind(tools=[str(tool) for tool in tools], **kwargs)


def calling(name: str = "clock", **arguments: Any) -> AIMessage:
    """An answer that is nothing but a tool call."""
    return AIMessage(content="", tool_calls=[{"name": name, "args": arguments, "id": "c1", "type": "tool_call"}])
