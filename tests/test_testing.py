"""captured(): what the app records, in memory, for the app's own tests."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

import pytest
from chains import ASKED, chain
from fakemodels import Echo
from fakeserver import FakeServer
from parcels import lines
from processes import run

import contextwrap
from contextwrap import ContextCallbackHandler, configure, rate, session, track_context, wrap
from contextwrap.client import default_client, is_configured, reset_defaults
from contextwrap.model import Conversation, Message
from contextwrap.testing import EPOCH, captured, fixed_clock


def said(one):
    return [(row.role, row.message) for row in one.messages]


def test_what_is_wrapped_is_captured_before_or_inside():
    """Whatever is wrapped, before or inside, is in the log, in order of completion, with all there is to know."""
    before = wrap(chain())
    with captured() as log:
        before.invoke(ASKED)
        with session(user_id="ada", thread_id="t", metadata={"plan": "pro"}, tags=["a", "b"]):
            wrap(Echo()).invoke("again")
    first, second = log.conversations
    assert said(first) == [("user", "hi"), ("assistant", "echo: hi")]
    assert (first.user_id, first.tags, first.error) == (None, (), None)
    assert said(second) == [("user", "again"), ("assistant", "echo: again")]
    assert (second.user_id, second.thread_id, second.tags) == ("ada", "t", ("a", "b"))
    assert second.metadata["plan"] == "pro"
    assert second.metadata["model"] == "echo-1"
    assert int(second.metadata["latency_ms"]) >= 0
    assert second.metadata["total_tokens"] == "5"


def test_a_turn_is_an_item_with_only_what_is_new():
    """Of a thread each turn is an item, and holds its new messages only."""
    with captured() as log, session(thread_id="t"):
        wrap(Echo()).invoke([("user", "one")])
        wrap(Echo()).invoke([("user", "one"), ("ai", "echo: one"), ("user", "two")])
    assert [said(one) for one in log.conversations] == [
        [("user", "one"), ("assistant", "echo: one")],
        [("user", "two"), ("assistant", "echo: two")],
    ]
    assert {one.thread_id for one in log.conversations} == {"t"}


def test_an_error_is_said():
    """What failed says so in `error`, and its event is among the messages."""
    with captured() as log, pytest.raises(RuntimeError):
        wrap(Echo(failures=["boom"])).invoke("hi")
    (one,) = log.conversations
    assert one.error == "RuntimeError: boom"
    assert [row.type for row in one.messages] == ["message", "event"]


async def test_async_threads_and_conversations_recorded_whole():
    """It is also `async with`, hears other threads, and takes conversations that are recorded whole."""
    bot = wrap(chain())
    async with captured() as log:
        await bot.ainvoke(ASKED)
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(bot.invoke, [ASKED] * 8))
        default_client().record(Conversation(messages=(Message(role="user", message="whole"),), metadata={"k": "v"}))
    assert len(log.conversations) == 10
    assert said(log.conversations[-1]) == [("user", "whole")]
    assert log.conversations[-1].metadata == {"k": "v"}


def test_nothing_of_the_outside_is_touched(isolated_environment, tmp_path, monkeypatch):
    """No file, no thread, no setting of the environment; the client of before, or none, is back afterwards."""
    monkeypatch.setenv("CONTEXTWRAP_DISABLED", "1")
    monkeypatch.setenv("CONTEXT_API_TOKEN", "alone")
    monkeypatch.chdir(tmp_path)
    threads = threading.active_count()
    with captured() as log:
        wrap(chain()).invoke(ASKED)
        assert threading.active_count() == threads
        assert contextwrap.flush().pending == 0
    assert len(log.conversations) == 1
    assert not is_configured()
    assert list(tmp_path.iterdir()) == list(isolated_environment.iterdir()) == []


def test_it_nests(home):
    """The innermost log hears, and each gives back what was before, also when the body fails."""
    client = contextwrap.configure(home=home)
    bot = wrap(chain())
    with captured() as outer:
        bot.invoke(ASKED)
        with suppress(ZeroDivisionError), captured() as inner:
            bot.invoke(ASKED)
            _ = 1 / 0
        bot.invoke(ASKED)
    assert (len(outer.conversations), len(inner.conversations)) == (2, 1)
    assert default_client() is client
    bot.invoke(ASKED)
    assert client.stats().recorded == 1


def test_a_thread_is_new_to_each_log():
    """What one log has heard of a thread another has not."""
    for _ in range(2):
        with captured() as log, session(thread_id="t"):
            wrap(Echo()).invoke("hi")
        assert said(log.conversations[0]) == [("user", "hi"), ("assistant", "echo: hi")]


def test_ratings_are_captured():
    """Ratings name the message they rate, and its thread."""
    with captured() as log:
        with session(thread_id="t") as here:
            wrap(Echo()).invoke("hi")
            here.rate(1, feedback="good")
        rate(-1, thread="u")
    first, second = log.ratings
    assert (first.rating, first.rated, first.thread, first.feedback) == (
        1, log.conversations[0].messages[-1].id, "t", "good",
    )  # fmt: skip
    assert (second.rating, second.rated, second.feedback) == (-1, "u", None)


def test_options_apply_and_losses_are_told():
    """Redaction, consent and sampling work as in the app; what is left out or lost is in the log."""
    with captured(redact="email", consent=lambda user, _: user != "bob", clock=fixed_clock()) as log:
        for user in ("ada", "bob"):
            with session(user_id=user):
                wrap(Echo()).invoke("i am x@y.org")
        rate(1)
    assert [said(one)[0] for one in log.conversations] == [("user", "i am email@example.com")]
    assert log.skipped == {"no consent": 1}
    assert log.lost == {"rate: there is no answer to rate": 1}
    assert log.conversations[0].messages[0].event_timestamp >= EPOCH


def test_a_fixed_clock_ticks():
    """It begins where it is told and moves on by its step."""
    clock = fixed_clock(step=timedelta(minutes=1))
    assert [clock(), clock()] == [EPOCH, EPOCH + timedelta(minutes=1)]


def test_clear_and_forget():
    """A log can be emptied, and forgets a user as an outbox does."""
    with captured() as log:
        for user in ("ada", "bob"):
            with session(user_id=user) as here:
                wrap(Echo()).invoke("hi")
                here.rate(1)
        assert contextwrap.forget("ada") == 2
        assert [one.user_id for one in log.conversations] == ["bob"]
        assert len(log.ratings) == 1
        log.clear()
        assert log.conversations == []


def test_tracked_functions_are_captured():
    """A tracked function that asks no model is captured too."""

    @track_context(user_id="{user}")
    def answer(user, question):
        return f"{question}!"

    with captured() as log:
        answer("ada", "hi")
    assert [(one.user_id, said(one)) for one in log.conversations] == [
        ("ada", [("user", "hi"), ("assistant", "hi!")]),
    ]


PLUGIN_TEST = """
    import sys
    LOADED = sorted({"contextwrap.client", "langchain_core", "wrapt"} & sys.modules.keys())

    def test_nothing_is_loaded_for_who_does_not_ask():
        assert LOADED == []

    def test_first(contextwrap_log):
        from contextwrap import track_context
        track_context(lambda question: "fine")("how?")
        assert [row.message for row in contextwrap_log.conversations[0].messages] == ["how?", "fine"]

    def test_second(contextwrap_log):
        assert contextwrap_log.conversations == []
"""


def test_the_pytest_fixture(tmp_path):
    """The plugin gives each test that asks a log of its own, and costs the others nothing."""
    (tmp_path / "test_app.py").write_text(textwrap.dedent(PLUGIN_TEST))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "contextwrap.pytest_plugin", "-p", "no:langsmith_plugin"]
    environ = {**os.environ, "PYTHONPATH": str(Path.cwd()), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, capture_output=True, check=False, cwd=tmp_path, env=environ, text=True)
    assert "3 passed" in done.stdout, done.stdout + done.stderr


def test_an_app_that_configures_stays_in_memory(home, monkeypatch):
    """What `configure` says inside of what is recorded applies, where the test says nothing else; no file is made."""
    monkeypatch.delenv("CONTEXTWRAP_RAISE")
    before = configure(home=home / "before")
    with captured(clock=fixed_clock()) as log:
        # Without its token, which only the deployment has, an endpoint would be refused outside.
        configure(endpoint="https://context.example", home=home / "inside", redact="email", disabled=True)
        with session(user_id="ada", thread_id="t"):
            wrap(Echo()).invoke("i am x@y.org")
        configure(consent=lambda user, thread: {}[user])
        wrap(Echo()).invoke("hi")
        reset_defaults()
        with session():
            wrap(Echo()).invoke("again")
    assert [said(one)[0] for one in log.conversations] == [("user", "i am email@example.com"), ("user", "again")]
    assert log.conversations[1].messages[0].event_timestamp.year == EPOCH.year
    assert log.lost == {"consent: KeyError": 1}
    assert default_client() is before
    assert not (home / "inside").exists()
    assert configure(home=home / "after").settings.home == home / "after"


def test_a_test_says_more_than_the_app():
    """What captured() was given wins over what the app configures inside."""
    with captured(redact=False, tenant_id="test") as log:
        client = configure(redact="email", tenant_id="acme", sample=0.0)
        assert (client.settings.tenant_id, client.settings.sample) == ("test", 0.0)
        configure(redact="email")
        wrap(Echo()).invoke("i am x@y.org")
    assert said(log.conversations[0])[0] == ("user", "i am x@y.org")


def test_sampling_is_told():
    """Who is not sampled is in the log as skipped."""
    with captured(sample=0.0) as log:
        wrap(Echo()).invoke("hi")
    assert (log.conversations, log.skipped, log.lost) == ([], {"not sampled": 1}, {})


def test_a_process_that_is_switched_off_is_captured():
    """In a process that starts with recording switched off, as test runs do, captured() records all the same."""
    assert run(
        """
        from langchain_core.runnables import RunnableLambda
        from contextwrap import session, wrap
        from contextwrap.testing import captured

        bot = wrap(RunnableLambda(str.upper))
        bot.invoke("before")
        with captured() as log:
            bot.invoke("inside")
            with session():
                RunnableLambda(str.upper).invoke("bare")
        bot.invoke("after")
        print([row.message for one in log.conversations for row in one.messages])
        """,
        CONTEXTWRAP_DISABLED=1,
    ).strip() == str(["inside", "INSIDE", "bare", "BARE"])


def test_a_handler_with_an_endpoint_of_its_own_is_not_captured(home, monkeypatch):
    """Whoever says where to send is sent there, inside captured() too."""
    monkeypatch.setenv("CONTEXTWRAP_HOME", str(home))
    with FakeServer() as server, captured() as log:
        handler = ContextCallbackHandler("token", endpoint=server.url)
        Echo().invoke("hi", {"callbacks": [handler]})
        handler.client.flush(15)
        assert [lines(one.log.conversation) for one in server.asked] == [[("user", "hi"), ("assistant", "echo: hi")]]
        handler.client.shutdown()
    assert log.conversations == []


async def test_flush_says_that_nothing_waits():
    """Inside, flush and shutdown work, and nothing is left waiting."""
    with captured():
        wrap(Echo()).invoke("hi")
        client = default_client()
        assert (client.flush().delivered, client.flush().pending, client.flush().dead) == (1, 0, 0)
        assert (await client.aflush()).pending == 0
        assert client.shutdown().pending == 0
