"""Whatever breaks on our side, the host's call is what it would have been, and the loss is counted."""

from __future__ import annotations

import logging
import shutil
import threading
from uuid import uuid4

import pytest
from fakemodels import Echo
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from parcels import conversations, lines

from contextwrap import ContextCallbackHandler, configure, rate, session, track_context, wrap
from contextwrap.client import ContextWrap, default_client
from contextwrap.errors import OutboxError
from contextwrap.guard import Guard
from contextwrap.model import Conversation, Message
from contextwrap.recorder import Recorder

ASKED = {"question": "hi"}


@pytest.fixture(autouse=True)
def as_in_production(isolated_environment, monkeypatch):
    """Here our failures stay ours, as they do for a host; and no run stays open for them."""
    monkeypatch.delenv("CONTEXTWRAP_RAISE")
    yield
    assert (Recorder.runs.roots, Recorder.runs.of) == ({}, {})


@pytest.fixture
def bot():
    """A wrapped chain."""
    return wrap(ChatPromptTemplate.from_template("{question}") | Echo() | StrOutputParser())


def losses(client):
    """How much was lost, for whatever reason."""
    return sum(client.stats().lost.values())


async def ask_in_every_way(bot):
    """The answers of a wrapped chain, called in every way inside a session that rates them."""
    with session(user_id="u") as here:
        answers = [
            bot.invoke(ASKED),
            await bot.ainvoke(ASKED),
            "".join(bot.stream(ASKED)),
            "".join([part async for part in bot.astream(ASKED)]),
            bot.batch([ASKED])[0],
        ]
        here.rate(1)
        rate(1, thread="t")
    return answers


async def test_a_closed_outbox_costs_the_record_only(bot, home):
    """An outbox that was closed under us loses the records, counted, and nothing else."""
    client = configure(home=home)
    client._keep.open().close()
    assert await ask_in_every_way(bot) == ["echo: hi"] * 5
    assert losses(client) >= 5
    assert client.stats().recorded == 0


async def test_a_broken_disk_costs_the_record_only(bot, home):
    """A home that becomes unwritable after configure loses the records, counted, and nothing else."""
    client = configure(home=home)
    shutil.rmtree(home)
    home.write_text("a file in its place")
    assert await ask_in_every_way(bot) == ["echo: hi"] * 5
    assert losses(client) >= 5
    assert client.flush().pending == 0


async def test_a_full_disk_costs_the_record_only(bot, home):
    """A disk without room loses the records, counted, and later ones are kept again."""
    client = configure(home=home)
    outbox = client._keep.open()
    outbox._db.execute("PRAGMA max_page_count = 1")
    assert client.record(Conversation(messages=(Message(role="user", message="x" * 1_000_000),))) is None
    assert client.stats().lost == {"record: OutboxError": 1}
    outbox._db.execute("PRAGMA max_page_count = 1000000")
    assert bot.invoke(ASKED) == "echo: hi"
    assert [lines(one) for one in conversations(home)] == [[("user", "hi"), ("assistant", "echo: hi")]]


async def test_a_raising_clock_costs_the_record_only(bot, home):
    """A clock of the host's that fails loses the records, counted, and nothing else."""

    def clock():
        raise OSError("no time")

    client = configure(home=home, clock=clock)
    assert await ask_in_every_way(bot) == ["echo: hi"] * 5
    assert losses(client) >= 5


async def test_a_clock_that_fails_once_leaves_nothing_behind(bot, home):
    """A failure in the midst of a run leaves no half of it in the next."""
    calls = iter(range(1000))

    def clock():
        if next(calls) % 3 == 1:
            raise OSError("no time")
        return ContextWrap(home=home, disabled=True).now()

    client = configure(home=home, clock=clock)
    for _ in range(10):
        assert bot.invoke(ASKED) == "echo: hi"
    assert client.stats().recorded + losses(client) >= 10
    assert all(lines(one) == [("user", "hi"), ("assistant", "echo: hi")] for one in conversations(home))


async def test_a_client_after_shutdown_costs_the_record_only(bot, home):
    """What is called after shutdown goes unrecorded, counted, and nothing else."""
    client = configure(home=home)
    client.shutdown()
    assert await ask_in_every_way(bot) == ["echo: hi"] * 5
    assert client.stats().lost["record: after shutdown"] == 5


@pytest.mark.parametrize(
    "environ",
    [
        {"CONTEXT_API_TOKEN": "alone"},
        {"CONTEXTWRAP_ENDPOINT": "http://elsewhere.example", "CONTEXT_API_TOKEN": "t"},
        {"CONTEXTWRAP_EXIT_TIMEOUT": "soon", "CONTEXTWRAP_TENANT_ID": "x" * 50, "CONTEXTWRAP_ALLOW_HTTP": "?"},
        {"CONTEXTWRAP_HOME": "/dev/null/home"},
    ],
)
async def test_a_bad_environment_costs_the_record_only(bot, monkeypatch, caplog, environ):
    """An environment that cannot work is logged in one line that says what to do, and the calls go on."""
    for variable, text in environ.items():
        monkeypatch.setenv(variable, text)

    @track_context(user_id="{user}")
    def answer(user):
        return bot.invoke(ASKED)

    with caplog.at_level(logging.WARNING, logger="contextwrap"):
        assert answer("u") == "echo: hi"
        assert await ask_in_every_way(bot) == ["echo: hi"] * 5
    assert len(caplog.records) == 1
    assert "alone" not in caplog.text
    assert losses(default_client()) == 1


def test_a_failing_lookup_costs_its_value_only(home):
    """A user id that cannot be found is counted; the call goes on, with all else that was found."""
    client = configure(home=home)

    def fails(_):
        raise LookupError("no user")

    @track_context(user_id=fails, thread_id="{thread}", metadata={"page": "{page.path}", "n": "{n}"})
    def answer(thread, page, n):
        return Echo().invoke("hi").text

    assert answer("t", None, 3) == "echo: hi"
    assert client.stats().lost == {"track_context: LookupError": 1, "track_context: AttributeError": 1}
    (one,) = conversations(home)
    assert (one.id, dict(one.metadata)) == ("t", {"n": "3", "model": "echo-1"})


def test_a_wrong_call_fails_as_it_would(home):
    """A call that does not fit the signature raises the function's own TypeError."""
    configure(home=home)

    @track_context(user_id="{user}")
    def answer(user):
        return user

    with pytest.raises(TypeError, match=r"answer\(\) missing 1 required positional argument"):
        answer()


def test_odd_inputs_and_outputs_cost_the_record_only(home):
    """Objects that answer no question pass through a wrapped chain untouched."""
    from langchain_core.runnables import RunnableLambda

    class Hostile(dict):
        def get(self, *_):
            raise RuntimeError("no")

        __getitem__ = keys = items = get

    configure(home=home)
    thing = Hostile()
    assert wrap(RunnableLambda(lambda given: given)).invoke(thing) is thing


def test_rates_never_raise(home):
    """Whatever rate is given, it answers whether that was kept; an id no URL can carry is replaced, and counted."""
    client = configure(home=home)
    assert not client.rate("great", thread="t")
    assert client.rate(1, thread="\ud800")
    assert not rate(1)
    # The id is both what is rated and the lane it goes in.
    assert losses(client) == 4


def test_losses_are_counted_by_reason_and_logged_once(caplog):
    """Each reason is logged the first time, in one line that quotes no foreign error, and counted every time."""
    guard = Guard()
    with caplog.at_level(logging.WARNING, logger="contextwrap"):
        for _ in range(3):
            with guard("record"):
                raise ValueError("what ada said\nERROR forged")
        with guard("rate"):
            raise OutboxError("cannot write to the outbox x.sqlite: full")
    assert guard.counts() == {"record: ValueError": 3, "rate: OutboxError": 1}
    assert [record.getMessage() for record in caplog.records] == [
        "contextwrap: not recorded: record: ValueError",
        "contextwrap: not recorded: rate: OutboxError (cannot write to the outbox x.sqlite: full)",
    ]


def test_what_ends_a_program_is_not_held_up():
    """KeyboardInterrupt and its like pass through the guard."""
    guard = Guard()
    with pytest.raises(KeyboardInterrupt), guard("record"):
        raise KeyboardInterrupt
    assert guard.counts() == {}


def test_our_own_tests_see_failures(monkeypatch):
    """With CONTEXTWRAP_RAISE=1 a failure of ours is raised."""
    monkeypatch.setenv("CONTEXTWRAP_RAISE", "1")
    with pytest.raises(ValueError, match="bad"), Guard()("record"):
        raise ValueError("bad")


def test_losses_are_counted_in_threads():
    """Losses in many threads at once are all counted."""
    guard = Guard()

    def lose():
        for _ in range(500):
            guard.lost("x")

    workers = [threading.Thread(target=lose) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert guard.counts() == {"x": 4000}


async def test_a_raising_redactor_costs_the_words_only(bot, home):
    """A redactor that fails has the structure recorded without a word, counted, and the host sees nothing."""

    def redact(text):
        raise RuntimeError(text)

    client = configure(home=home, redact=redact)
    assert await ask_in_every_way(bot) == ["echo: hi"] * 5
    assert [lines(one) for one in conversations(home)] == [[("user", ""), ("assistant", "")]] * 5
    assert client.stats().lost == {"redact: RuntimeError": 5}
    assert not any(b"hi" in path.read_bytes() for path in (home / "outbox").glob("*.sqlite*"))


async def test_a_newer_langchain_with_unknown_arguments_is_understood(home):
    """Arguments and events that no LangChain sends yet cost nothing."""
    configure(home=home)
    handler, run = ContextCallbackHandler(), uuid4()
    new = {"run_id": run, "brand_new": object(), "parent_run_id": None, "tags": None, "metadata": None}
    handler.on_chain_start({}, {"input": "hi"}, **new)
    handler.on_chat_model_start({}, [[]], **{**new, "run_id": uuid4(), "parent_run_id": run})
    handler.on_llm_start({}, [], **{**new, "run_id": uuid4(), "parent_run_id": run})
    for event in ("on_tool_start", "on_retriever_start"):
        getattr(handler, event)(None, "x", **{**new, "run_id": uuid4(), "parent_run_id": run})
    handler.on_llm_new_token(["new", "kind"], **new)
    for event in ("on_llm_end", "on_tool_end", "on_retriever_end", "on_text", "on_retry", "on_agent_action"):
        getattr(handler, event)(object(), **{**new, "run_id": uuid4()})
    for event in ("on_llm_error", "on_tool_error", "on_retriever_error", "on_chain_error"):
        getattr(handler, event)(ValueError("x"), **{**new, "run_id": uuid4()})
    handler.on_chain_end({"output": "hello"}, **new)
    assert [lines(one) for one in conversations(home)] == [[("user", "hi"), ("assistant", "hello")]]
