"""From what LangChain passes around to what a person said and was told.

Pure functions; one odd field never loses the record: what has no text gives none.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from langchain_core.agents import AgentFinish
from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
    convert_to_messages,
)
from langchain_core.prompt_values import PromptValue
from pydantic import BaseModel

from contextwrap.model import Message

if TYPE_CHECKING:
    from langchain_core.outputs import LLMResult

    from contextwrap.model import Role

INPUT_KEYS: Final = (
    "input", "question", "query", "user_input", "human_input", "prompt", "message", "text", "content",
)  # fmt: skip
_SAID_KEYS: Final = ("messages", *INPUT_KEYS)
OUTPUT_KEYS: Final = (
    "output", "answer", "result", "response", "text", "output_text", "content", "structured_response",
)  # fmt: skip


def said(value: object) -> tuple[Message, ...] | None:
    """The messages in a root run's input, history included; None when no known key holds any.

    Strings, messages, prompt values, lists of messages, (role, text) pairs or role/content dicts; in a dict,
    pydantic object or dataclass `messages` first, then INPUT_KEYS.
    """
    if isinstance(value, str):
        return (Message(role="user", message=value),)
    if not isinstance(value, dict) and (messages := _messages(value)) is not None:
        return messages
    fields = value if isinstance(value, dict) else _fields(value) or {}
    if type(value).__name__ == "Command" and "resume" in fields:
        return _resumed(fields["resume"])
    for key in _SAID_KEYS:
        found = fields.get(key)
        if isinstance(found, str):
            return (Message(role="user", message=found),)
        if found is not None and (messages := _messages(found)):
            return messages
    return None


def answered(value: object) -> str | None:
    """The text of a root run's output; None when it is none (a tool call, an interrupted graph).

    A string; a message's text; AgentFinish; in a state's `messages` the last assistant text after the last
    user message; OUTPUT_KEYS; the one value of a one-key dict; anything else as JSON.
    """
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, BaseMessage):
        return text_of(value) or None
    if isinstance(value, AgentFinish):
        return answered(value.return_values)
    if isinstance(value, list) and value and all(isinstance(item, BaseMessage) for item in value):
        return _last_answer(value)
    fields = _fields(value)
    return _json(value) if fields is None else _answer_in(fields, value)


def source(value: object) -> str | None:
    """LangChain's id of the message in a graph's state that `answered` quotes, to tell it from an earlier turn's."""
    if isinstance(value, str):
        return None
    messages = (_fields(value) or {}).get("messages")
    message = _last_answering(messages) if isinstance(messages, list) else None
    return None if message is None else message.id


def _answer_in(fields: Mapping[str, Any], value: object) -> str | None:
    if isinstance(fields.get("messages"), list):
        # An agent with a response format may say nothing else.
        return _last_answer(fields["messages"]) or answered(fields.get("structured_response"))
    for key in OUTPUT_KEYS:
        if fields.get(key) is not None:
            return answered(fields[key])
    return answered(next(iter(fields.values()))) if len(fields) == 1 else _json(value)


def rows(messages: Sequence[BaseMessage]) -> tuple[Message, ...]:
    """A chat model's messages as rows; an assistant's bare tool call gives none, the tool's answer tells it."""
    asked = {
        call["id"]: call["args"]
        for message in messages
        if isinstance(message, AIMessage)
        for call in message.tool_calls
    }
    return tuple([row for row in [_row(message, asked) for message in messages] if row is not None])


def tool_row(*, name: str, call: object, result: object, failed: bool = False) -> Message:
    """A finished tool call as a row: its name, input and observation (or the error)."""
    observation = text_of(result) if isinstance(result, BaseMessage) else answered(result)
    return Message(
        role="assistant",
        type="tool",
        name=name,
        input=_plain(call),
        observation=observation or "",
        metadata={"error": "true"} if failed else {},
    )


def calls(answer: object) -> tuple[Message, ...]:
    """The tools that an answer asks for, as rows without an observation: nobody has called them yet."""
    if not isinstance(answer, AIMessage):
        return ()
    return tuple(
        Message(role="assistant", type="tool", name=call["name"], input=_plain(call["args"]))
        for call in answer.tool_calls
    )


def error_row(error: BaseException, *, attempts: int = 1) -> Message:
    """What went wrong instead of an answer, as an event."""
    text = f"{type(error).__name__}: {error}"[:2000]
    metadata = {"error": type(error).__name__} | ({"attempts": str(attempts)} if attempts > 1 else {})
    return Message(role="system", type="event", name="error", message=text, metadata=metadata)


def text_of(message: BaseMessage) -> str:
    """A message's text; each binary part becomes `{type, mime, bytes, sha256}`, reasoning and calls are dropped."""
    if isinstance(message.content, str):
        return message.content
    return "\n".join(part for part in map(_part, message.content) if part)


def model_facts(result: LLMResult, metadata: Mapping[str, Any], params: Mapping[str, Any]) -> dict[str, str]:
    """Model, provider and finish reason of one model run, as text; what is not known is not there."""
    message = answer_message(result)
    served = message.response_metadata if message is not None else {}
    asked = metadata.get("ls_model_name") or params.get("model") or params.get("model_name")
    facts = {
        "model": served.get("model_name") or asked,
        "provider": metadata.get("ls_provider"),
        "finish_reason": served.get("finish_reason") or served.get("stop_reason"),
    }
    return {key: str(value) for key, value in facts.items() if value}


def usage(result: LLMResult) -> dict[str, int]:
    """Tokens of one model run: input_tokens, output_tokens, total_tokens; empty when the model does not say."""
    message = answer_message(result)
    said_usage = message.usage_metadata if message is not None else None
    if not said_usage:
        return {}
    return {key: said_usage[key] for key in ("input_tokens", "output_tokens", "total_tokens") if key in said_usage}


def answer_message(result: LLMResult) -> AIMessage | None:
    """The message a chat model answered with; None for a completion model."""
    for generations in result.generations:
        for generation in generations:
            message = getattr(generation, "message", None)
            if isinstance(message, AIMessage):
                return message
    return None


def completion(result: LLMResult) -> str:
    """The text a model run produced."""
    message = answer_message(result)
    if message is not None:
        return text_of(message)
    return "".join(generation.text for generations in result.generations for generation in generations[:1])


def _messages(value: object) -> tuple[Message, ...] | None:
    if isinstance(value, PromptValue):
        return rows(value.to_messages())
    if isinstance(value, BaseMessage):
        return rows([value])
    if not isinstance(value, (list, tuple)) or not value:
        return None
    try:
        return rows(convert_to_messages(list(value)))
    except (ValueError, TypeError, NotImplementedError, KeyError):
        return None


def _resumed(value: object) -> tuple[Message, ...] | None:
    """What the user answers to a graph that was interrupted: text, or for each interrupt's id its answer."""
    if isinstance(value, Mapping) and len(value) == 1:
        value = next(iter(value.values()))
    messages = said(value)
    if messages is not None or value is None:
        return messages
    return (Message(role="user", message=_json(value)),)


def _row(message: BaseMessage, asked: Mapping[str | None, Any]) -> Message | None:
    text = text_of(message)
    if isinstance(message, ToolMessage):
        call = _plain(asked.get(message.tool_call_id))
        return Message(role="assistant", type="tool", name=message.name or "tool", input=call, observation=text)
    if isinstance(message, AIMessage) and not text:
        return None
    return Message(role=_role(message), message=text)


def _role(message: BaseMessage) -> Role:
    if isinstance(message, HumanMessage):
        return "user"
    if isinstance(message, SystemMessage):
        return "system"
    if isinstance(message, ChatMessage) and message.role.lower() in {"user", "human"}:
        return "user"
    if isinstance(message, ChatMessage) and message.role.lower() in {"system", "developer"}:
        return "system"
    return "assistant"


def _last_answer(messages: Sequence[object]) -> str | None:
    message = _last_answering(messages)
    return None if message is None else text_of(message)


def _last_answering(messages: Sequence[object]) -> AIMessage | None:
    for message in reversed(messages):
        if isinstance(message, HumanMessage):
            return None
        if isinstance(message, AIMessage) and text_of(message):
            return message
    return None


def _fields(value: object) -> Mapping[str, Any] | None:
    if isinstance(value, Mapping):
        return value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {item.name: getattr(value, item.name, None) for item in dataclasses.fields(value)}
    shape = getattr(type(value), "model_fields", None)
    return {name: getattr(value, name, None) for name in shape} if isinstance(shape, dict) else None


def _part(part: object) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        return ""
    if isinstance(part.get("text"), str):
        return str(part["text"])
    data, mime = _binary(part)
    if data is None:
        return ""
    kind = str(part.get("type", "file")).removeprefix("input_").removesuffix("_url")
    digest = hashlib.sha256(data).hexdigest()
    return json.dumps({"type": kind, "mime": mime, "bytes": len(data), "sha256": digest})


def _binary(part: Mapping[str, Any]) -> tuple[bytes | None, str | None]:
    """The bytes in an inline image, audio or file part, and their type; a part by URL has none."""
    inner = part.get("source") or part.get(str(part.get("type")))
    source = inner if isinstance(inner, Mapping) else {"url": inner, **part}
    mime = source.get("mime_type") or source.get("media_type")
    if mime is None and source.get("format"):
        mime = f"audio/{source['format']}"
    data = next((source[key] for key in ("base64", "data", "file_data", "url") if source.get(key)), None)
    if isinstance(data, bytes):
        return data, mime
    if not isinstance(data, str) or data.startswith(("http:", "https:")):
        return None, mime
    if data.startswith("data:"):
        head, _, data = data.partition(",")
        mime = head.removeprefix("data:").split(";")[0]
    try:
        return base64.b64decode(data) or None, mime
    except (binascii.Error, ValueError):
        return None, mime


def _plain(value: object) -> Any:
    """`value` if JSON can carry it, else its text."""
    try:
        json.dumps(value)
    except (TypeError, ValueError, RecursionError):
        return str(value)
    return value


def _json(value: object) -> str:
    if isinstance(value, BaseModel) and not isinstance(value, BaseMessage):
        return value.model_dump_json()
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    try:
        return json.dumps(value, ensure_ascii=False, default=_in_json)
    except (TypeError, ValueError, RecursionError):
        return str(value)


def _in_json(value: object) -> Any:
    if isinstance(value, BaseMessage):
        return text_of(value)
    return value.model_dump() if isinstance(value, BaseModel) else str(value)
