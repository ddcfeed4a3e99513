"""Rows H20 to H23: tools, calls, pictures and numbers are recorded as what they are."""

from __future__ import annotations

import base64
import hashlib
import json

import pytest
from arrivals import WAYS, ask, facts
from fakemodels import Echo, calling
from langchain_core.documents import Document
from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.tools import tool
from pydantic import BaseModel

from contextwrap import session, wrap

PROMPT = ChatPromptTemplate.from_template("{question}")


@tool
def clock(zone: str) -> str:
    """The time."""
    if zone == "Mars":
        raise ValueError("no clock there")
    return f"noon in {zone}"


def _rows(conversation):
    return [(row.type, row.name, row.input, row.observation or row.message) for row in conversation.messages]


def test_h20_a_tool_message_is_a_tool_row(arrived):
    """A tool's answer in the history is a row of its own type, with what it was asked and what it said."""
    history = [
        HumanMessage("what time?"),
        calling("clock", zone="Rome"),
        ToolMessage("noon in Rome", name="clock", tool_call_id="c1"),
    ]
    wrap(Echo()).invoke(history)
    assert _rows(arrived.only()) == [
        ("message", None, None, "what time?"),
        ("tool", "clock", {"zone": "Rome"}, "noon in Rome"),
        ("message", None, None, "echo: what time?"),
    ]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrapped", ["the chain", "the tool"])
def test_h20_a_tool_that_a_chain_calls_is_a_tool_row(arrived, wrapped, way):
    """A tool called in a chain is recorded with name, input and observation, before the answer."""
    used = wrap(clock) if wrapped == "the tool" else clock
    chain = (
        RunnablePassthrough.assign(question=(lambda asked: {"zone": asked["zone"]}) | used)
        | PROMPT
        | Echo()
        | StrOutputParser()
    )
    ask(wrap(chain) if wrapped == "the chain" else chain, {"question": "when?", "zone": "Rome"}, way)
    assert _rows(arrived.only()) == [
        ("message", None, None, "when?"),
        ("tool", "clock", {"zone": "Rome"}, "noon in Rome"),
        ("message", None, None, "echo: noon in Rome"),
    ]


def test_h20_a_tool_that_fails_says_so(arrived):
    """A failed tool is a tool row whose observation is the error."""
    with pytest.raises(ValueError, match="no clock"):
        wrap(RunnableLambda(lambda zone: clock.invoke({"zone": zone}))).invoke("Mars")
    asked, row, error = arrived.only().messages
    assert asked.message == "Mars"
    assert (row.type, row.name, row.input) == ("tool", "clock", {"zone": "Mars"})
    assert (row.observation, row.metadata) == ("ValueError: no clock there", {"error": "true"})
    assert (error.type, error.message) == ("event", "ValueError: no clock there")


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "batch", "abatch"])
def test_h21_an_answer_that_is_a_tool_call_is_a_tool_row(arrived, way):
    """A model that answers with a tool call is recorded as calling, not as saying nothing."""
    model = GenericFakeChatModel(messages=iter([calling("clock", zone="Rome")]))
    ask(wrap(PROMPT | model), {"question": "what time?"}, way)
    assert _rows(arrived.only()) == [
        ("message", None, None, "what time?"),
        ("tool", "clock", {"zone": "Rome"}, ""),
    ]


def test_h21_text_beside_a_tool_call_is_the_answer(arrived):
    """What the model says beside its call is kept as its words."""
    message = AIMessage(content="let me look", tool_calls=calling("clock", zone="Rome").tool_calls)
    wrap(GenericFakeChatModel(messages=iter([message]))).invoke("what time?")
    assert _rows(arrived.only()) == [
        ("message", None, None, "what time?"),
        ("tool", "clock", {"zone": "Rome"}, ""),
        ("message", None, None, "let me look"),
    ]


def test_h21_bound_tools_are_recorded(arrived):
    """bind_tools on a wrapped model keeps it wrapped."""
    wrap(Echo()).bind_tools([clock]).invoke("hi")
    assert arrived.turns() == [[("user", "hi"), ("assistant", "echo: hi")]]


class Joke(BaseModel):
    """A joke."""

    setup: str
    punchline: str


class Structured(Echo):
    """Answers by calling the tool it is bound to."""

    def _generate(self, messages, *_, **kwargs):
        message = AIMessage(
            content="", tool_calls=calling("Joke", setup=str(messages[-1].text), punchline="!").tool_calls
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(self, messages, *_, **kwargs):
        return self._generate(messages)


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "batch", "abatch"])
@pytest.mark.parametrize("wrapped", ["the model", "the chain"])
def test_h21_a_structured_answer_is_its_json(arrived, wrapped, way):
    """with_structured_output is recorded with the object that came out, not with an empty text."""
    if wrapped == "the model":
        runnable = wrap(Structured()).with_structured_output(Joke)
    else:
        runnable = wrap(Structured().with_structured_output(Joke))
    ask(runnable, "a hen", way)
    assert arrived.turns() == [[("user", "a hen"), ("assistant", '{"setup":"a hen","punchline":"!"}')]]


class Shelf(BaseRetriever):
    """Finds one document."""

    def _get_relevant_documents(self, query, *, run_manager):
        return [Document(f"all about {query}")]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("wrapped", ["the chain", "the model", "the retriever"])
def test_h21_a_chain_that_retrieves_says_what_the_user_asked(arrived, wrapped, way):
    """Of retrieval-augmented generation the question is the user's, and the documents are nobody's words."""
    shelf = wrap(Shelf()) if wrapped == "the retriever" else Shelf()
    model = wrap(Echo()) if wrapped == "the model" else Echo()
    prompt = ChatPromptTemplate.from_template("{context}: {question}")
    found = {"context": shelf | (lambda documents: documents[0].page_content), "question": RunnablePassthrough()}
    chain = found | prompt | model | StrOutputParser()
    ask(wrap(chain) if wrapped == "the chain" else chain, "hens", way)
    assert arrived.turns() == [[("user", "hens"), ("assistant", "echo: all about hens: hens")]]


# Pictures and sounds.

PIXEL = bytes(range(200)) * 4
BASE64 = base64.b64encode(PIXEL).decode()
PARTS = {
    "standard block": ({"type": "image", "base64": BASE64, "mime_type": "image/png"}, "image", "image/png"),
    "OpenAI's image": (
        {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{BASE64}"}},
        "image",
        "image/png",
    ),
    "Anthropic's image": (
        {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": BASE64}},
        "image",
        "image/png",
    ),
    "audio": ({"type": "audio", "base64": BASE64, "mime_type": "audio/wav"}, "audio", "audio/wav"),
    "OpenAI's audio": ({"type": "input_audio", "input_audio": {"data": BASE64, "format": "wav"}}, "audio", "audio/wav"),
    "OpenAI's file": (
        {"type": "file", "file": {"filename": "a.pdf", "file_data": f"data:application/pdf;base64,{BASE64}"}},
        "file",
        "application/pdf",
    ),
    "file": ({"type": "file", "base64": BASE64, "mime_type": "application/pdf"}, "file", "application/pdf"),
}


@pytest.mark.parametrize("shape", ["model", "chain", "graph state"])
@pytest.mark.parametrize("part", PARTS)
def test_h22_a_binary_part_is_described_and_never_sent(arrived, part, shape):
    """Text is kept; a picture, sound or file is its type, size and hash, and no base64 is on the wire."""
    content, kind, mime = PARTS[part]
    asked = HumanMessage(content=[{"type": "text", "text": "what is this?"}, content])
    said = RunnableLambda(lambda _: "a hen")
    if shape == "model":
        wrap(GenericFakeChatModel(messages=iter([AIMessage("a hen")]))).invoke([asked])
    elif shape == "chain":
        wrap(said).invoke([asked])
    else:
        wrap(said).invoke({"messages": [asked]})
    user, answer = arrived.only().messages
    text, described = user.message.split("\n")
    assert text == "what is this?"
    assert json.loads(described) == {
        "type": kind,
        "mime": mime,
        "bytes": len(PIXEL),
        "sha256": hashlib.sha256(PIXEL).hexdigest(),
    }
    assert answer.message == "a hen"
    assert not any(BASE64[:40].encode() in asked.body for asked in arrived.server.asked)


def test_h22_a_picture_by_address_is_no_text(arrived):
    """Text before and after stays in its order; what is only linked has no bytes to describe."""
    parts = [
        {"type": "text", "text": "this"},
        {"type": "image_url", "image_url": {"url": "https://example.com/hen.png"}},
        "or that?",
    ]
    wrap(Echo()).invoke([HumanMessage(content=parts)])
    assert arrived.only().messages[0].message == "this\nor that?"


# Numbers.

WHOLE = {
    "model": "echo-1",
    "provider": "echo",
    "finish_reason": "stop",
    "input_tokens": "3",
    "output_tokens": "2",
    "total_tokens": "5",
}


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "batch", "abatch"])
@pytest.mark.parametrize("shape", ["model", "chain"])
def test_h23_what_the_model_says_of_itself_is_metadata(arrived, shape, way):
    """Model, provider, finish reason, tokens and latency are on the answer; the model on the conversation as well."""
    model = Echo()
    ask(wrap(model if shape == "model" else PROMPT | model | StrOutputParser()), "hi", way)
    conversation = arrived.only()
    user, answer = conversation.messages
    assert user.metadata == {}
    assert facts(answer) == WHOLE
    assert int(answer.metadata["latency_ms"]) >= 0
    assert conversation.metadata == {"model": "echo-1"}


def test_h23_tokens_of_all_model_calls_are_counted(arrived):
    """A chain that asks twice has used the tokens of both calls."""
    wrap(Echo() | (lambda message: message.text) | Echo()).invoke("hi")
    assert facts(arrived.only().messages[-1]) == {
        **WHOLE,
        "input_tokens": "6",
        "output_tokens": "4",
        "total_tokens": "10",
    }


def test_h23_what_is_not_known_is_not_there(arrived):
    """A model that says nothing of itself has no tokens, no finish reason: not zero, not empty."""
    wrap(RunnableLambda(lambda _: "fine")).invoke("how?")
    conversation = arrived.only()
    assert set(conversation.messages[-1].metadata) == {"latency_ms"}
    assert conversation.metadata == {}


def test_h23_latency_is_the_whole_turns(arrived):
    """It is what the user waited for, in milliseconds."""
    wrap(PROMPT | Echo(pause=0.05)).invoke("hi")
    assert 50 <= int(arrived.only().messages[-1].metadata["latency_ms"]) < 5000


def test_h23_system_messages_are_the_systems(arrived):
    """What the system says is neither the user's nor the assistant's, and stands once in a thread."""
    with session():
        for said in ("one", "two"):
            wrap(Echo()).invoke([SystemMessage("be kind"), HumanMessage(said)])
    assert [line for turn in arrived.turns() for line in turn] == [
        ("system", "be kind"),
        ("user", "one"),
        ("assistant", "echo: one"),
        ("user", "two"),
        ("assistant", "echo: two"),
    ]
