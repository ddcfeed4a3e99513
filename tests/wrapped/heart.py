"""What every kind of Runnable in these tests calls at last: it answers, fails, waits and remembers."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.language_models.llms import LLM
from langchain_core.messages import AIMessage, AIMessageChunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult, GenerationChunk
from langchain_core.utils.function_calling import convert_to_openai_tool

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator


@dataclass
class Heart:
    """Answers "so: <text>" in four pieces.

    It raises `error`, when there is one, at its first `failures` calls; with `hangs` it waits, in async code, until
    it is cancelled. `seen` is what happened, `most` how many calls were open at once.
    """

    error: BaseException | None = None
    failures: int = 1_000
    hangs: bool = False
    seen: list[str] = field(default_factory=list)
    most: int = 0
    _open: int = 0

    def _enter(self) -> None:
        self._open += 1
        self.most = max(self.most, self._open)
        if self.error is not None and self.failures > 0:
            self.failures -= 1
            self._open -= 1
            self.seen.append("failed")
            raise self.error

    def answer(self, text: Any) -> str:
        self._enter()
        # Two that run at once meet here; one alone waits a moment for nobody.
        threading.Event().wait(0.001)
        self._open -= 1
        self.seen.append("answered")
        return f"so: {text} it is"

    async def aanswer(self, text: Any) -> str:
        self._enter()
        try:
            self.seen.append("waits")
            await asyncio.sleep(3600 if self.hangs else 0)
        except asyncio.CancelledError:
            self.seen.append("cancelled")
            raise
        finally:
            self._open -= 1
        self.seen.append("answered")
        return f"so: {text} it is"

    def pieces(self, text: Any) -> Iterator[str]:
        try:
            for piece in self.answer(text).partition(": "):
                self.seen.append(piece)
                yield piece
        except GeneratorExit:
            self.seen.append("closed")
            raise

    async def apieces(self, text: Any) -> AsyncIterator[str]:
        try:
            for piece in (await self.aanswer(text)).partition(": "):
                self.seen.append(piece)
                yield piece
        except GeneratorExit:
            self.seen.append("closed")
            raise

    def generate(self, texts: Iterator[str]) -> Iterator[str]:
        yield from self.pieces("".join(texts))

    async def agenerate(self, texts: AsyncIterator[str]) -> AsyncIterator[str]:
        async for piece in self.apieces("".join([text async for text in texts])):
            yield piece


class ChatHeart(BaseChatModel):
    """A chat model that is all heart; told of tools it calls the first, once."""

    heart: Any
    prefix: str = ""
    model: str = "heart-1"

    @property
    def _llm_type(self) -> str:
        return "heart"

    def bind_tools(self, tools: Any, *, tool_choice: Any = None, **kwargs: Any) -> Any:
        return self.bind(tools=[convert_to_openai_tool(tool)["function"] for tool in tools], **kwargs)

    def _message(self, text: str, messages: list[Any], tools: Any) -> AIMessage:
        call = bool(tools) and messages[-1].type != "tool"
        names = list(tools[0]["parameters"]["properties"]) if call else []
        calls = [{"name": tools[0]["name"], "args": dict.fromkeys(names, text), "id": "c1"}] if call else []
        return AIMessage(
            content="" if call else self.prefix + text,
            tool_calls=calls,
            response_metadata={"model_name": self.model, "finish_reason": "stop"},
            usage_metadata={"input_tokens": 3, "output_tokens": 4, "total_tokens": 7},
        )

    def _generate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        text = self.heart.answer(messages[-1].text)
        message = self._message(text, messages, kwargs.get("tools"))
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(self, messages: Any, stop: Any = None, run_manager: Any = None, **kwargs: Any) -> ChatResult:
        text = await self.heart.aanswer(messages[-1].text)
        message = self._message(text, messages, kwargs.get("tools"))
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _should_stream(self, *args: Any, **kwargs: Any) -> bool:
        return not kwargs.get("tools") and super()._should_stream(*args, **kwargs)

    def _stream(self, messages: Any, stop: Any = None, run_manager: Any = None, **_: Any) -> Iterator[Any]:
        for piece in self.heart.pieces(messages[-1].text):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk

    async def _astream(self, messages: Any, stop: Any = None, run_manager: Any = None, **_: Any) -> AsyncIterator[Any]:
        async for piece in self.heart.apieces(messages[-1].text):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager:
                await run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk


class TextHeart(LLM):
    """A completion model that is all heart."""

    heart: Any

    @property
    def _llm_type(self) -> str:
        return "heart"

    def _call(self, prompt: str, stop: Any = None, run_manager: Any = None, **_: Any) -> str:
        return self.heart.answer(prompt)

    async def _acall(self, prompt: str, stop: Any = None, run_manager: Any = None, **_: Any) -> str:
        return await self.heart.aanswer(prompt)

    def _stream(self, prompt: str, stop: Any = None, run_manager: Any = None, **_: Any) -> Iterator[GenerationChunk]:
        for piece in self.heart.pieces(prompt):
            if run_manager:
                run_manager.on_llm_new_token(piece)
            yield GenerationChunk(text=piece)

    async def _astream(self, prompt: str, stop: Any = None, run_manager: Any = None, **_: Any) -> AsyncIterator[Any]:
        async for piece in self.heart.apieces(prompt):
            if run_manager:
                await run_manager.on_llm_new_token(piece)
            yield GenerationChunk(text=piece)
