"""A chat model that does what vendors' models do: text, tools and structured answers, whole or streamed."""

from __future__ import annotations

import json
import os
import re
from typing import TYPE_CHECKING, Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, HumanMessage
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import ConfigDict, Field, SecretStr

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from langchain_core.messages import BaseMessage
    from langchain_core.runnables import Runnable


class ChatScripted(BaseChatModel):
    """Calls the tool it is told to, with arguments that fit its schema; otherwise answers "said: <the question>"."""

    model_config = ConfigDict(populate_by_name=True)

    model_name: str = Field(default="scripted-1", alias="model")
    temperature: float | None = None
    max_tokens: int | None = None
    timeout: float | None = None
    max_retries: int = 2
    stop: list[str] | None = None
    streaming: bool = False
    api_key: SecretStr = Field(default_factory=lambda: SecretStr(os.environ.get("SCRIPTED_API_KEY", "")))

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, *, tool_choice: str | None = None, **kwargs: Any) -> Runnable[Any, AIMessage]:
        described = [convert_to_openai_tool(one)["function"] for one in tools]
        return self.bind(tools=described, tool_choice=tool_choice, **kwargs)

    def _answer(self, messages: list[BaseMessage], stop: list[str] | None = None, **kwargs: Any) -> AIMessage:
        asked = next((str(one.text) for one in reversed(messages) if isinstance(one, HumanMessage)), "")
        calls = [] if messages[-1].type == "tool" else _calls(asked, kwargs.get("tools"), kwargs.get("tool_choice"))
        text = "" if calls else f"said: {asked}"
        for end in stop or self.stop or ():
            text = text.partition(end)[0]
        return AIMessage(
            content=text,
            tool_calls=calls,
            response_metadata={"model_name": kwargs.get("model", self.model_name), "finish_reason": "stop"},
            usage_metadata={"input_tokens": len(asked), "output_tokens": 7, "total_tokens": len(asked) + 7},
        )

    def _generate(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=self._answer(messages, stop, **kwargs))])

    def _stream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> Iterator[ChatGenerationChunk]:
        for chunk in _chunks(self._answer(messages, stop, **kwargs)):
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self, messages: list[BaseMessage], stop: list[str] | None = None, run_manager: Any = None, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        for chunk in _chunks(self._answer(messages, stop, **kwargs)):
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


def _calls(asked: str, tools: list[dict[str, Any]] | None, choice: str | None) -> list[Any]:
    if not tools:
        return []
    named = [tool for tool in tools if tool["name"] == choice] or [tool for tool in tools if tool["name"] in asked]
    tool = (named or tools)[0]
    args = {name: _value(schema, asked) for name, schema in tool["parameters"].get("properties", {}).items()}
    return [{"name": tool["name"], "args": args, "id": "c1", "type": "tool_call"}]


def _value(schema: dict[str, Any], asked: str) -> Any:
    numbers = [int(found) for found in re.findall(r"\d+", asked)]
    return (numbers or [1])[0] if schema.get("type") == "integer" else (re.findall(r"'([^']+)'", asked) or ["cats"])[0]


def _chunks(answer: AIMessage) -> list[ChatGenerationChunk]:
    """A word a chunk, or each call's name and arguments apart; the last says why it ended and what it cost."""
    parts = [AIMessageChunk(content=part) for part in re.findall(r"\S+\s*", str(answer.content))]
    for index, call in enumerate(answer.tool_calls):
        args = json.dumps(call["args"])
        for name, number, piece in ((call["name"], call["id"], args[:4]), (None, None, args[4:])):
            chunk = tool_call_chunk(name=name, args=piece, id=number, index=index)
            parts.append(AIMessageChunk(content="", tool_call_chunks=[chunk]))
    end = AIMessageChunk(
        content="",
        response_metadata=answer.response_metadata,
        usage_metadata=answer.usage_metadata,
        chunk_position="last",
    )
    return [ChatGenerationChunk(message=part) for part in (*parts, end)]
