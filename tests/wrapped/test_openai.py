"""ChatOpenAI, wrapped: what its users send and get, and what is recorded of it. The server is on loopback."""

from __future__ import annotations

import asyncio

import openai
import pytest
from kinds import Card
from langchain_core.messages import ToolMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from openaiserver import MODEL, OpenAIServer
from parcels import conversations, lines

import contextwrap
from contextwrap import session, wrap

TURN = [("user", "hi"), ("assistant", "said: hi")]


@pytest.fixture(autouse=True)
def configured(home):
    """Records go to this test's home."""
    contextwrap.configure(home=home)


@pytest.fixture
def server():
    """A server that answers."""
    with OpenAIServer() as running:
        yield running


@pytest.fixture
def vendor(server):
    """Makes a model of that server, wrapped."""
    return lambda **options: wrap(bare(server, **options))


def bare(server, **options):
    """A model of that server."""
    return ChatOpenAI(model="gpt-scripted", api_key="k", base_url=server.url, **{"max_retries": 0, **options})


def turns(home):
    """The lines of each turn."""
    return [lines(one) for one in conversations(home)]


def facts(home):
    """The metadata of the last row recorded."""
    return conversations(home)[-1].messages[-1].metadata


@tool
def clock(zone: str) -> str:
    """The time in a zone."""
    return f"noon in {zone}"


FULL = {"model": MODEL, "finish_reason": "stop", "input_tokens": "11", "output_tokens": "5", "total_tokens": "16"}


def known(home):
    """The model, why it ended and what it cost, as recorded."""
    found = facts(home)
    return {key: found.get(key) for key in FULL}


def test_an_answer_is_recorded_with_its_facts(home, vendor):
    """Text, served model, finish reason and tokens are recorded, and the host has its answer."""
    answer = vendor().invoke("hi")
    assert answer.text == "said: hi"
    assert turns(home) == [TURN]
    assert known(home) == FULL


async def test_async_answers_are_recorded_with_their_facts(home, vendor):
    """The same in async code, and of a batch a turn each."""
    model = vendor()
    await model.ainvoke("hi")
    assert known(home) == FULL
    await model.abatch(["hi", "hi"])
    assert turns(home) == [TURN] * 3
    assert known(home) == FULL


@pytest.mark.parametrize("usage", [True, False])
def test_a_stream_is_recorded_with_its_facts(home, server, vendor, usage):
    """A streamed answer is recorded whole; with its tokens, where the host asked for them."""
    parts = list(vendor(stream_usage=usage).stream("hi"))
    assert "".join(part.text for part in parts) == "said: hi"
    assert bool(server.asked[0].get("stream_options")) is usage
    assert turns(home) == [TURN]
    tokens = {} if usage else dict.fromkeys(["input_tokens", "output_tokens", "total_tokens"])
    assert known(home) == FULL | tokens


async def test_an_async_stream_is_recorded_with_its_facts(home, vendor):
    """The same in async code."""
    assert [part async for part in vendor(stream_usage=True).astream("hi")]
    assert turns(home) == [TURN]
    assert known(home) == FULL


def test_what_is_sent_is_what_the_bare_one_sends(server, vendor):
    """The wrapped model's requests are the bare one's: body, and headers but for what is of one request."""
    for model in (bare(server), vendor()):
        model.invoke("hi")
        list(model.stream("hi"))
        model.bind_tools([clock]).invoke("hi")
        model.with_structured_output(Card).invoke("hi")
    assert server.asked[:4] == server.asked[4:]
    assert server.headers[:4] == server.headers[4:]


@pytest.mark.parametrize("streamed", [False, True])
def test_tool_calls_are_rows(home, vendor, streamed):
    """A call for a tool is a row of the conversation, whether it came whole or in pieces."""
    model = vendor().bind_tools([clock])
    answer = None
    for part in model.stream("UTC") if streamed else [model.invoke("UTC")]:
        answer = part if answer is None else answer + part
    assert [(call["name"], call["args"]) for call in answer.tool_calls] == [("clock", {"zone": "UTC"})]
    (one,) = conversations(home)
    assert (one.messages[0].role, one.messages[0].message) == ("user", "UTC")
    row = one.messages[1]
    assert row.type == "tool"
    assert "clock" in str(row.to_wire())


def test_a_turn_with_a_tool_is_one_thread(home, vendor):
    """Question, call, result and answer are the rows of one thread, none of them twice."""
    model = vendor().bind_tools([clock])
    history = [("user", "UTC")]
    with session(thread_id="t"):
        call = model.invoke(history)
        result = clock.invoke(call.tool_calls[0])
        assert isinstance(result, ToolMessage)
        answer = model.invoke([*history, call, result])
    assert answer.text == "said: UTC"
    rows = [row for one in turns(home) for row in one]
    assert [text for role, text in rows if role == "user"] == ["UTC"]
    assert rows[-1] == ("assistant", "said: UTC")
    assert ("tool", "noon in UTC") in rows


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output(home, vendor, method):
    """The host gets its object; its text is the recorded answer."""
    assert vendor().with_structured_output(Card, method=method).invoke("ada") == Card(name="ada")
    (one,) = turns(home)
    assert one[0] == ("user", "ada")
    assert one[-1][0] == "assistant"
    assert "ada" in one[-1][1]


async def test_structured_output_in_async_code(home, vendor):
    """The same in async code, in a chain."""
    chain = ChatPromptTemplate.from_template("{name}") | vendor().with_structured_output(Card)
    assert await chain.ainvoke({"name": "ada"}) == Card(name="ada")
    (one,) = turns(home)
    assert one[0] == ("user", "ada")
    assert "ada" in one[-1][1]


@pytest.mark.parametrize(("status", "error"), [(429, openai.RateLimitError), (500, openai.InternalServerError)])
def test_a_failure_is_raised_and_recorded(home, server, vendor, status, error):
    """The vendor's own error reaches the host; the conversation has the question and the error, and no answer."""
    server.failures = [status] * 4
    model = vendor()
    names = []
    for call in (
        lambda: model.invoke("hi"),
        lambda: list(model.stream("hi")),
        lambda: asyncio.run(model.ainvoke("hi")),
    ):
        with pytest.raises(error) as raised:
            call()
        names.append(raised.type.__name__)
    found = turns(home)
    assert [one[0] for one in found] == [("user", "hi")] * 3
    assert [[role for role, _ in one] for one in found] == [["user", "event"]] * 3
    assert [one[1][1].partition(":")[0] for one in found] == names


def test_the_vendors_own_retries_are_one_turn(home, server, vendor):
    """What the vendor's client tries again is one turn, with the answer."""
    server.failures = [500]
    assert vendor(max_retries=1).invoke("hi").text == "said: hi"
    assert len(server.asked) == 2
    assert turns(home) == [TURN]


def test_with_retry_is_one_turn(home, server, vendor):
    """So is what LangChain tries again."""
    server.failures = [500]
    assert vendor().with_retry(wait_exponential_jitter=False).invoke("hi").text == "said: hi"
    assert turns(home) == [TURN]


def test_a_refusal_is_recorded(home, vendor):
    """A refusal reaches the host as it does bare, and the question is recorded."""
    answer = vendor().invoke("refuse")
    assert answer.additional_kwargs["refusal"] == "I can't help with that."
    (one,) = turns(home)
    assert one[0] == ("user", "refuse")


def test_a_slow_stream_that_is_abandoned_is_recorded_so_far(home, vendor):
    """A stream that the host stops reading is recorded with the words that came, as interrupted."""
    parts = vendor().stream("slowly")
    assert next(part.text for part in parts if part.text) == "said:"
    parts.close()
    assert turns(home) == [[("user", "slowly"), ("assistant", "said:")]]
    assert facts(home)["interrupted"] == "true"


async def test_a_slow_stream_that_is_cancelled_is_recorded_so_far(home, vendor):
    """The same, when the task that reads it is cancelled."""
    came = asyncio.Event()

    async def read():
        async for part in vendor().astream("slowly"):
            if part.text:
                came.set()

    task = asyncio.ensure_future(read())
    await asyncio.wait_for(came.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert turns(home) == [[("user", "slowly"), ("assistant", "said:")]]
    assert facts(home)["interrupted"] == "true"


WAYS = {
    "default_headers": {"default_headers": {"user_id": "123"}},
    "extra_headers": {"model_kwargs": {"extra_headers": {"user_id": "123"}}},
    "extra_headers, beside default ones": {
        "model_kwargs": {"extra_headers": {"user_id": "123"}},
        "default_headers": {"user_id": "7"},
    },
    "metadata": {"metadata": {"user_id": "123"}},
}


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_headers_say_who_asks(home, server, vendor, way):
    """A user's id among the model's headers is the conversation's, called in any way."""
    model = vendor(**way)
    model.invoke("hi")
    await model.ainvoke("hi")
    list(model.stream("hi"))
    (ChatPromptTemplate.from_template("{text}") | model | StrOutputParser()).invoke({"text": "hi"})
    assert [one.user_id for one in conversations(home)] == ["123"] * 4
    assert turns(home) == [TURN] * 4


@pytest.mark.filterwarnings("ignore:.*WARNING. headers is not default parameter:UserWarning")
async def test_the_old_pages_headers_work(home, server):
    """`headers=`, as the old handler's page has it, fails in the vendor's client; wrapped it is sent and recorded."""
    old = bare(server, headers={"user_id": "123"})
    kept = dict(old.model_kwargs)
    with pytest.raises(TypeError, match="headers"):
        old.invoke("hi")
    model = wrap(old)
    assert model.invoke("hi").text == "said: hi"
    assert (await model.ainvoke("hi")).text == "said: hi"
    assert list(model.stream("hi"))
    assert [sent["user_id"] for sent in server.headers] == ["123"] * 3
    assert [one.user_id for one in conversations(home)] == ["123"] * 3
    assert old.model_kwargs == kept


def test_a_session_goes_before_headers(home, vendor):
    """A session that names the user is believed before the model's headers."""
    with session(user_id="ada"):
        vendor(default_headers={"user_id": "123"}).invoke("hi")
    assert [one.user_id for one in conversations(home)] == ["ada"]
