"""The client: on disk when the call returns, counted when it could not be."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import threading
from datetime import UTC, datetime

import pytest
from fakeserver import FakeServer
from parcels import conversations, lines, ratings, sent
from processes import killed, run

from contextwrap import client as client_module
from contextwrap.client import ContextWrap, FlushResult, configure, default_client, flush, is_configured, reset_defaults
from contextwrap.errors import ConfigurationError, OutboxError
from contextwrap.model import Conversation, Message, Route
from contextwrap.outbox import outbox_files

NOON = datetime(2025, 3, 1, 12, tzinfo=UTC)


def say(text, **fields):
    """A conversation of one message."""
    return Conversation(messages=(Message(role="user", message=text),), **fields)


@pytest.fixture
def client(home):
    """A local client whose clock stands still."""
    with ContextWrap(home=home, clock=lambda: NOON) as made:
        yield made


def test_a_record_is_on_disk_when_record_returns(client, home):
    """What record returns is the conversation with every id filled in, and is what is on disk."""
    kept = client.record(say("hi", metadata={"user_id": "u"}))
    assert kept is not None
    assert kept.id
    assert kept.messages[0].id
    assert kept.messages[0].event_timestamp == NOON
    (log,) = sent(home)
    assert log.route is Route.THREAD
    assert log.conversation == kept
    assert client.stats().recorded == 1


def test_a_record_survives_kill_9(home):
    """A process killed right after record has lost nothing."""
    killed(
        """
        import time
        from contextwrap.client import ContextWrap
        from contextwrap.model import Conversation, Message
        client = ContextWrap()
        for number in range(100):
            client.record(Conversation(messages=(Message(role="user", message=str(number)),)))
        print("ready", flush=True)
        time.sleep(60)
        """,
        CONTEXTWRAP_HOME=home,
    )
    assert [lines(one) for one in conversations(home)] == [[("user", str(number))] for number in range(100)]


def test_the_tenant_travels_with_every_call(home):
    """A client's tenant is on its records and its ratings."""
    with ContextWrap(home=home, tenant_id="acme") as client:
        kept = client.record(say("hi"))
        client.rate(1, thread=kept.id)
    assert [log.tenant_id for log in sent(home)] == ["acme", "acme"]


def test_disabled_does_nothing_at_all(home):
    """A disabled client records nothing, rates nothing and makes no file."""
    with ContextWrap(home=home, disabled=True) as client:
        assert client.record(say("hi")) is None
        assert client.rate(1, thread="t") is False
        assert client.flush() == FlushResult(delivered=0, pending=0, dead=0)
        assert client.stats().recorded == 0
        assert client.stats().lost == {}
    assert not home.exists()


def test_a_home_that_cannot_be_is_said_at_once(tmp_path):
    """Where a file stands in the home's place, the client cannot be made, and one line says what to do."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutboxError, match="CONTEXTWRAP_HOME") as refusal:
        ContextWrap(home=tmp_path / "taken" / "home")
    assert "\n" not in str(refusal.value)


def test_nothing_is_opened_before_something_is_recorded(client, home):
    """A client that records nothing leaves no outbox file, and starts no thread."""
    assert client.flush() == FlushResult(delivered=0, pending=0, dead=0)
    assert outbox_files(home / "outbox") == []
    assert not [one for one in threading.enumerate() if one.name == "contextwrap-courier"]


def test_local_records_wait_on_disk(client):
    """In local mode flush says what waits, and shutdown leaves it there."""
    client.record(say("hi"))
    assert client.flush() == FlushResult(delivered=0, pending=1, dead=0)
    assert client.shutdown().pending == 1
    assert client.shutdown() == FlushResult(delivered=0, pending=0, dead=0)


async def test_aflush_says_what_flush_says(client):
    """The same as flush without blocking the loop."""
    client.record(say("hi"))
    assert await client.aflush() == FlushResult(delivered=0, pending=1, dead=0)


def test_a_record_after_shutdown_is_counted(client):
    """What comes after shutdown is not kept, and counted."""
    client.shutdown()
    assert client.record(say("late")) is None
    assert client.rate(1, thread="t") is False
    assert client.stats().lost == {"record: after shutdown": 1, "rate: after shutdown": 1}


def test_a_rating_names_its_answer(client, home):
    """A rating goes to the message, or else to the thread; what the user said goes with it."""
    assert client.rate(1, message="m", thread="t", feedback="nailed it")
    assert client.rate(-1, thread="t")
    assert [(log.rated, log.marks[0].rating, log.marks[0].feedback) for log in ratings(home)] == [
        ("m", 1, "nailed it"),
        ("t", -1, None),
    ]


@pytest.mark.parametrize("rating", [2, -2, 0.5, True, "1", None, [], "good"])
def test_nonsense_ratings_are_counted(client, home, rating):
    """A rating that is none is not kept: rate says so and counts it."""
    assert client.rate(rating, thread="t") is False
    assert client.stats().lost == {"rate: a rating is -1, 0 or +1": 1}
    assert sent(home) == []


def test_a_rating_of_nothing_is_counted(client):
    """A rating that names no answer is not kept, and counted."""
    assert client.rate(1) is False
    assert client.stats().lost == {"rate: there is no answer to rate": 1}


def test_a_rating_leaves_after_its_thread(home):
    """A rating shares the lane of its thread, so that it arrives after what it rates."""
    with FakeServer() as server, ContextWrap(endpoint=server.url, token="t", home=home) as client:
        for _ in range(20):
            kept = client.record(say("hi"))
            client.rate(1, message=kept.messages[0].id, thread=kept.id)
        assert client.flush(15) == FlushResult(delivered=40, pending=0, dead=0)
    for record, rating in zip(server.asked[::2], server.asked[1::2], strict=True):
        assert rating.log.rated == record.log.conversation.messages[0].id


def test_threads_record_at_once(client, home):
    """Threads that record at once, the very first time too, lose nothing and open one file."""
    start = threading.Barrier(8)

    def work(name):
        start.wait()
        for number in range(25):
            client.record(say(f"{name}-{number}"))

    workers = [threading.Thread(target=work, args=(name,)) for name in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found = sorted(one.messages[0].message for one in conversations(home))
    assert found == sorted(f"{name}-{number}" for name in range(8) for number in range(25))
    assert len(outbox_files(home / "outbox")) == 1


def _record_in_child(client):
    client.record(say("child"))
    client.flush(15)


def test_a_child_of_fork_has_an_outbox_of_its_own(home):
    """After a fork, parent and child each record and deliver for themselves, once."""
    with FakeServer() as server, ContextWrap(endpoint=server.url, token="t", home=home) as client:
        client.record(say("before"))
        client.flush(15)
        child = multiprocessing.get_context("fork").Process(target=_record_in_child, args=(client,))
        child.start()
        client.record(say("parent"))
        child.join(30)
        assert child.exitcode == 0
        client.flush(15)
        assert sorted(one.log.conversation.messages[0].message for one in server.asked) == ["before", "child", "parent"]


def test_a_forked_child_records_beside_its_parent(client, home):
    """In local mode too, the child's records are in its own file."""
    client.record(say("parent"))
    pid = os.fork()
    if pid == 0:
        client.record(say("child"))
        os._exit(0)
    assert os.waitpid(pid, 0)[1] == 0
    client.record(say("parent again"))
    assert len(outbox_files(home / "outbox")) == 2
    assert {one.messages[0].message for one in conversations(home)} == {"parent", "child", "parent again"}


def test_the_default_client_is_made_once(monkeypatch, home):
    """Without configure, the first who asks gets a client from the environment, and so do all others."""
    monkeypatch.setenv("CONTEXTWRAP_HOME", str(home))
    assert not is_configured()
    assert default_client() is default_client()
    assert default_client().settings.home == home
    reset_defaults()
    assert not is_configured()


def test_configure_makes_the_default_anew(tmp_path):
    """The new default replaces the default client and shuts the one before down."""
    before = configure(home=tmp_path / "one")
    before.record(say("hi"))
    after = configure(home=tmp_path / "two")
    assert default_client() is after
    assert before.record(say("late")) is None
    assert flush().pending == 0
    assert client_module.shutdown().pending == 0


def test_configure_refuses_what_cannot_work(home):
    """A bad setting is raised by configure, and the client of before stays."""
    before = configure(home=home)
    with pytest.raises(ConfigurationError):
        configure(token="alone")
    assert default_client() is before


def test_exit_shuts_every_client_down(home):
    """A process that ends without a word has closed its outboxes, and leaves no empty files."""
    said = run(
        """
        from contextwrap.client import ContextWrap
        from contextwrap.model import Conversation, Message
        kept, empty = ContextWrap(), ContextWrap()
        kept.record(Conversation(messages=(Message(role="user", message="hi"),)))
        empty._keep.open()
        print(empty._keep.outbox.path)
        """,
        CONTEXTWRAP_HOME=home,
    )
    assert [path for path in outbox_files(home / "outbox") if str(path) == said.strip()] == []
    assert len(conversations(home)) == 1


def test_a_forgotten_client_leaves_its_records(home):
    """A client nobody holds any more goes, and what it recorded stays."""
    ContextWrap(home=home).record(say("hi"))
    gc.collect()
    assert len(conversations(home)) == 1


async def test_tasks_record_at_once(client, home):
    """Many tasks that record at once lose nothing."""

    async def work(number):
        await asyncio.sleep(0)
        client.record(say(str(number)))

    await asyncio.gather(*(work(number) for number in range(50)))
    assert len(conversations(home)) == 50


@pytest.mark.parametrize(("host", "warned"), [("api.context.ai", True), ("context.ai", True), ("notcontext.ai", False)])
def test_the_old_services_host_is_warned_of(home, caplog, host, warned):
    """Its name answers still, but for another company's product: one line says so, and nothing is refused."""
    with ContextWrap(endpoint=f"https://{host}", token="t", home=home):
        assert (f"{host} no longer serves the Context API" in caplog.text) is warned
