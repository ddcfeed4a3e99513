"""The transcript: what was said and what was answered, from every shape LangChain passes around."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass

import pytest
from fakemodels import calling
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.agents import AgentFinish
from langchain_core.messages import (
    AIMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.outputs import ChatGeneration, Generation, LLMResult
from langchain_core.prompt_values import ChatPromptValue, StringPromptValue
from pydantic import BaseModel

from contextwrap import transcript
from contextwrap.model import Message

PIXEL = b"\x89PNG pixel \x00\xff" * 20
B64 = base64.b64encode(PIXEL).decode()


class Form(BaseModel):
    question: str
    page: int = 1


@dataclass
class Card:
    input: str


@dataclass
class Plain:
    colour: str


class Hostile:
    """An object that answers no question."""

    def __getattr__(self, name):
        raise AttributeError(name) if name == "__name__" else RuntimeError(name)

    def __str__(self):
        return "hostile"


USER = [("user", "hi")]


def shown(messages):
    """Role and text of each message."""
    return None if messages is None else [(one.role, one.message) for one in messages]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("hi", USER),
        (HumanMessage("hi"), USER),
        (StringPromptValue(text="hi"), USER),
        (ChatPromptValue(messages=[SystemMessage("be"), HumanMessage("hi")]), [("system", "be"), *USER]),
        ([HumanMessage("a"), AIMessage("b"), HumanMessage("c")], [("user", "a"), ("assistant", "b"), ("user", "c")]),
        ([("system", "be"), ("human", "hi")], [("system", "be"), *USER]),
        ([{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}], [*USER, ("assistant", "ho")]),
        ((HumanMessage("hi"),), USER),
        ({"messages": [HumanMessage("hi")], "input": "not this"}, USER),
        ({"messages": [("human", "hi")]}, USER),
        *(({key: "hi", "context": "long"}, USER) for key in transcript.INPUT_KEYS),
        ({"input": HumanMessage("hi")}, USER),
        ({"input": [HumanMessage("hi")]}, USER),
        ({"input": {"nested": 1}, "question": "hi"}, USER),
        (Form(question="hi"), USER),
        (Card(input="hi"), USER),
        ({"product": "socks"}, None),
        ({}, None),
        ([], None),
        (None, None),
        (5, None),
        (Plain("red"), None),
        ([object()], None),
        ([1, 2], None),
        (Hostile(), None),
        ([ChatMessage(role="developer", content="be")], [("system", "be")]),
        ([ChatMessage(role="Human", content="hi")], USER),
        ([ChatMessage(role="critic", content="meh")], [("assistant", "meh")]),
        ([FunctionMessage(name="f", content="4")], [("assistant", "4")]),
        ([HumanMessage("hi"), calling()], USER),
    ],
)
def test_said(value, expected):
    """Every shape of an input gives its messages, history included; no known key gives None."""
    assert shown(transcript.said(value)) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("hi", "hi"),
        ("", ""),
        (None, None),
        (AIMessage("hi"), "hi"),
        (calling(), None),
        (AIMessage([{"type": "reasoning", "reasoning": "hm"}, {"type": "text", "text": "hi"}]), "hi"),
        (AgentFinish(return_values={"output": "hi"}, log="why"), "hi"),
        ([HumanMessage("q"), AIMessage("hi"), ToolMessage("4", tool_call_id="c")], "hi"),
        ({"messages": [HumanMessage("q"), AIMessage("first"), calling(), AIMessage("hi")]}, "hi"),
        ({"messages": [HumanMessage("q"), AIMessage("old"), HumanMessage("new")]}, None),
        ({"messages": []}, None),
        *(({key: "hi", "docs": [1, 2]}, "hi") for key in transcript.OUTPUT_KEYS),
        ({"output": None, "answer": "hi"}, "hi"),
        ({"answer": AIMessage("hi")}, "hi"),
        ({"report": "hi"}, "hi"),
        ({"a": 1, "b": "ü"}, '{"a": 1, "b": "ü"}'),
        ([1, 2], "[1, 2]"),
        (True, "true"),
        (4.5, "4.5"),
        (Plain("red"), "red"),
        (Hostile(), '"hostile"'),
        (Form(question="hi", page=2), '{"question":"hi","page":2}'),
    ],
)
def test_answered(value, expected):
    """Every shape of an output gives its text; a tool call and an interrupted graph give None."""
    assert transcript.answered(value) == expected


def test_an_output_that_contains_itself_is_still_answered():
    """A value without end gives some text rather than an error."""
    ring: dict = {"a": 1}
    ring["b"] = ring
    assert transcript.answered(ring)


_leaves = st.none() | st.booleans() | st.floats() | st.text() | st.binary()


@given(st.recursive(_leaves, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3)))
def test_no_plain_value_is_too_odd(value):
    """Whatever plain value comes, asking for its text raises nothing."""
    assert transcript.said(value) is None or all(isinstance(one, Message) for one in transcript.said(value))
    assert transcript.answered(value) is None or isinstance(transcript.answered(value), str)


@pytest.mark.parametrize(
    ("part", "kind", "mime"),
    [
        ({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{B64}"}}, "image", "image/png"),
        ({"type": "image_url", "image_url": f"data:image/png;base64,{B64}"}, "image", "image/png"),
        ({"type": "image", "base64": B64, "mime_type": "image/png"}, "image", "image/png"),
        ({"type": "image", "source_type": "base64", "data": B64, "mime_type": "image/png"}, "image", "image/png"),
        ({"type": "image", "source": {"media_type": "image/png", "data": B64}}, "image", "image/png"),
        ({"type": "audio", "base64": B64, "mime_type": "audio/wav"}, "audio", "audio/wav"),
        ({"type": "input_audio", "input_audio": {"data": B64, "format": "wav"}}, "audio", "audio/wav"),
        ({"type": "file", "base64": B64, "mime_type": "application/pdf"}, "file", "application/pdf"),
        ({"type": "file", "file": {"file_data": f"data:application/pdf;base64,{B64}"}}, "file", "application/pdf"),
        ({"type": "media", "data": PIXEL, "mime_type": "image/png"}, "media", "image/png"),
    ],
)
def test_binary_parts_are_described_and_never_carried(part, kind, mime):
    """An inline image, audio or file becomes its type, mime, size and digest; no base64 is left."""
    text = transcript.text_of(HumanMessage([{"type": "text", "text": "look:"}, part]))
    first, described = text.split("\n")
    assert first == "look:"
    assert json.loads(described) == {
        "type": kind, "mime": mime, "bytes": len(PIXEL), "sha256": hashlib.sha256(PIXEL).hexdigest(),
    }  # fmt: skip
    assert B64[:40] not in text


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "base64": "!", "mime_type": "image/png"},
        {"type": "image", "base64": 5},
        {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}},
        {"type": "image_url"},
        {"type": "thinking", "thinking": "hm"},
        {"type": "tool_use", "name": "clock", "input": {}},
        {},
    ],
)
def test_parts_without_text_give_none(part):
    """A part that is neither text nor bytes is left out, and the text beside it stays."""
    assert transcript.text_of(HumanMessage(["hi", part])) == "hi"


def test_a_tool_message_is_a_tool_row():
    """A ToolMessage in a history is a tool row with its observation, not somebody's words."""
    (row,) = transcript.rows([ToolMessage("16:00", name="clock", tool_call_id="c")])
    assert (row.type, row.name, row.observation, row.message) == ("tool", "clock", "16:00", "")


def test_a_tool_row_carries_call_and_result():
    """A tool call is its name, its input as JSON or text, and its observation; a failed one says so."""
    row = transcript.tool_row(name="clock", call={"zone": "UTC"}, result=ToolMessage("16:00", tool_call_id="c"))
    assert (row.type, row.name, row.input, row.observation) == ("tool", "clock", {"zone": "UTC"}, "16:00")
    odd = transcript.tool_row(name="clock", call=Hostile(), result=None, failed=True)
    assert (odd.input, odd.observation, odd.metadata) == ("hostile", "", {"error": "true"})


def test_an_asked_for_tool_is_a_row():
    """An answer that asks for tools gives a row for each; any other answer gives none."""
    (row,) = transcript.calls(calling("clock", zone="UTC"))
    assert (row.type, row.name, row.input, row.observation) == ("tool", "clock", {"zone": "UTC"}, None)
    assert transcript.calls("text") == transcript.calls(AIMessage("hi")) == ()


def test_an_error_is_an_event():
    """An error is an event named by its kind, of bounded length."""
    row = transcript.error_row(ValueError("x" * 5000))
    assert (row.type, row.role, row.name, row.metadata) == ("event", "system", "error", {"error": "ValueError"})
    assert row.message.startswith("ValueError: xxx")
    assert len(row.message) == 2000


def test_facts_are_what_is_known():
    """Model, provider, finish reason and tokens come from where they show; what is not known is absent."""
    message = AIMessage(
        "hi",
        response_metadata={"model_name": "served-1", "finish_reason": "stop"},
        usage_metadata={"input_tokens": 0, "output_tokens": 2, "total_tokens": 2},
    )
    result = LLMResult(generations=[[ChatGeneration(message=message)]])
    metadata = {"ls_model_name": "asked", "ls_provider": "acme"}
    assert transcript.model_facts(result, metadata, {"model": "param"}) == {
        "model": "served-1", "provider": "acme", "finish_reason": "stop",
    }  # fmt: skip
    assert transcript.usage(result) == {"input_tokens": 0, "output_tokens": 2, "total_tokens": 2}
    bare = LLMResult(generations=[[Generation(text="hi")]])
    assert transcript.model_facts(bare, {}, {"model": "param"}) == {"model": "param"}
    assert transcript.model_facts(bare, {}, {}) == {}
    assert transcript.usage(bare) == {}
    assert transcript.completion(bare) == transcript.completion(result) == "hi"
    assert transcript.completion(LLMResult(generations=[])) == ""
