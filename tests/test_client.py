"""The client: on disk when the call returns, counted when it could not be."""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import os
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime

import pytest
from fakeserver import FakeServer
from parcels import conversations, lines, ratings, sent
from processes import killed, run, start

from contextwrap import client as client_module
from contextwrap.client import ContextWrap, FlushResult, configure, default_client, flush, is_configured, reset_defaults
from contextwrap.errors import ConfigurationError, OutboxError
from contextwrap.model import Conversation, Message, Route
from contextwrap.outbox import Outbox, outbox_files
from contextwrap.sampling import sampled

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


class Odd:
    """A value that cannot be compared, as arrays cannot."""

    __hash__ = None

    def __eq__(self, other):
        raise ValueError("ambiguous")


def test_a_rating_that_cannot_be_compared_is_counted(client, monkeypatch):
    """Whatever is given as a rating, the host's call goes on."""
    monkeypatch.delenv("CONTEXTWRAP_RAISE")
    assert client.rate(Odd(), thread="t") is False
    assert client.stats().lost == {"rate: ValueError": 1}


def test_a_conversation_without_messages_is_counted(client, home):
    """No server takes one, so none is sent."""
    assert client.record(Conversation(messages=())) is None
    assert client.stats().lost == {"record: a conversation without messages": 1}
    assert sent(home) == []


@pytest.mark.parametrize("by", ["user", "thread"])
def test_who_is_not_sampled_is_left_out(home, by):
    """A share of the users, or threads, is recorded; the rest is counted, but is no loss."""
    names = [f"name-{number}" for number in range(100)]
    with ContextWrap(home=home, sample=0.3, sample_by=by) as client:
        for name in names:
            fields = {"metadata": {"user_id": name}} if by == "user" else {"id": name, "metadata": {"user_id": "one"}}
            kept = client.record(say(name, **fields))
            assert (kept is not None) is sampled(name, 0.3)
        stats = client.stats()
    inside = [name for name in names if sampled(name, 0.3)]
    assert [one.messages[0].message for one in conversations(home)] == inside
    assert (stats.recorded, stats.skipped, stats.lost) == (len(inside), {"not sampled": 100 - len(inside)}, {})


def test_consent_is_asked_for_user_and_thread(home):
    """Consent gets the app's own ids; a no leaves the conversation out, and is no loss."""
    asked = []

    def consent(user_id, thread_id):
        asked.append((user_id, thread_id))
        return user_id == "ada"

    with ContextWrap(home=home, consent=consent) as client:
        assert client.record(say("yes", id="t1", metadata={"user_id": "ada"})) is not None
        assert client.record(say("no", id="t2")) is None
        stats = client.stats()
    assert asked == [("ada", "t1"), (None, "t2")]
    assert [one.id for one in conversations(home)] == ["t1"]
    assert (stats.recorded, stats.skipped, stats.lost) == (1, {"no consent": 1}, {})


def test_consent_that_fails_is_no(home):
    """A consent callable that raises has not said yes; that is counted as a loss."""
    with ContextWrap(home=home, consent=lambda user, thread: {}[user]) as client:
        assert client.record(say("hi")) is None
        assert (client.stats().skipped, client.stats().lost) == ({}, {"consent: KeyError": 1})
    assert sent(home) == []


def test_who_is_not_sampled_is_not_asked_for(home):
    """Consent is a question about what would be recorded."""
    with ContextWrap(home=home, sample=0, consent=lambda user, thread: {}[user]) as client:
        assert client.record(say("hi")) is None
        assert (client.stats().skipped, client.stats().lost) == ({"not sampled": 1}, {})


def test_the_words_are_masked_before_they_are_written(home):
    """With `redact` no file of the home ever holds what it masks, of messages and of feedback."""
    with ContextWrap(home=home, redact="email") as client:
        kept = client.record(say("i am ada@love.org"))
        client.rate(1, message=kept.messages[0].id, feedback="write to ada@love.org")
        assert kept.messages[0].message == "i am email@example.com"
        assert held(home, b"ada@love.org") == []
    assert ratings(home)[0].marks[0].feedback == "write to email@example.com"


@pytest.mark.parametrize("redact", [lambda text: {}[text], lambda text: 5], ids=["raises", "returns no text"])
def test_a_redactor_that_fails_costs_the_words(home, redact):
    """Structure and rating are recorded, not a word is, and the failure is counted."""
    with ContextWrap(home=home, redact=redact, clock=lambda: NOON) as client:
        kept = client.record(say("secret", id="t", metadata={"user_id": "ada"}))
        assert client.rate(1, thread="t", feedback="secret")
        reasons = client.stats().lost
    (one,), (rating,) = conversations(home), ratings(home)
    assert one == kept
    assert (one.id, one.user_id, lines(one)) == ("t", "ada", [("user", "")])
    assert (rating.marks[0].rating, rating.marks[0].feedback) == (1, None)
    assert list(reasons.values()) == [2]
    assert next(iter(reasons)) in {"redact: KeyError", "redact: TypeError"}


def test_a_redactor_that_adds_cannot_break_the_bounds(home):
    """What stands for a text is cut like a text."""
    with ContextWrap(home=home, redact=lambda text: text * 3) as client:
        client.record(say("x" * 900_000))
        assert client.stats().lost == {"cut: text longer than 1000000 characters": 1}
    assert len(conversations(home)[0].messages[0].message) == 1_000_000


@pytest.mark.parametrize("feedback", ["x" * 6_000_000, "\N{GRINNING FACE}" * 2_000_000, 5])
def test_feedback_is_what_a_call_can_carry(client, home, feedback):
    """Feedback is text, and cut to what a server takes."""
    assert client.rate(1, thread="t", feedback=feedback)
    (rating,) = ratings(home)
    assert str(feedback).startswith(rating.marks[0].feedback)
    assert client.stats().lost == ({} if feedback == 5 else {"cut: text longer than 1000000 characters": 1})


def held(home, word):
    """The names of the outbox's files that hold `word`."""
    return [path.name for path in (home / "outbox").iterdir() if word in path.read_bytes()]


def of(user, thread):
    """A conversation of that user's in that thread, whose words can be looked for."""
    return say(f"words of {user}", id=thread, metadata={"user_id": user})


def test_a_forgotten_user_is_gone_from_the_disk(client, home):
    """All that waits of the user goes, later turns and ratings of their threads too, and not a byte stays."""
    client.record(of("ada", "t1"))
    client.record(say("words of ada, later", id="t1"))
    client.rate(1, thread="t1", feedback="words of ada")
    client.record(of("bob", "t2"))
    assert held(home, b"words of ada") != []
    assert client.forget("ada") == 3
    assert held(home, b"words of ada") == []
    assert held(home, b"words of bob") != []
    assert [one.user_id for one in conversations(home)] == ["bob"]
    assert client.forget("ada") == 0
    assert client.record(of("ada", "t3")) is not None
    assert client.stats().lost == {}


def test_what_was_delivered_is_forgotten_too(home):
    """The pages a delivered record leaves behind in the file are wiped as well."""
    with FakeServer() as server, ContextWrap(endpoint=server.url, token="t", home=home) as client:
        client.record(of("ada", "t1"))
        assert client.flush(15).pending == 0
        assert client.forget("ada") == 0
        assert held(home, b"words of ada") == []


RECORD = """
    import sys, time
    from contextwrap.client import ContextWrap
    from contextwrap.model import Conversation, Message
    client = ContextWrap()
    user, thread = sys.argv[1:]
    metadata = {"user_id": user} if user else {}
    client.record(
        Conversation(messages=(Message(role="user", message="words of ada"),), id=thread, metadata=metadata)
    )
    client.rate(1, thread=thread, feedback="words of ada")
    print("ready", flush=True)
    sys.stdin.read()
"""


def test_other_processes_files_are_searched(client, home):
    """Files of the living and the dead are searched, and a thread is the user's in whichever its turns wait."""
    killed(RECORD, "ada", "t1", CONTEXTWRAP_HOME=home)
    living = start(RECORD, "", "t1", CONTEXTWRAP_HOME=home)
    try:
        assert living.stdout.readline() == "ready\n"
        client.record(of("bob", "t2"))
        assert len(outbox_files(home / "outbox")) == 3
        assert client.forget("ada") == 4
        assert held(home, b"words of ada") == []
    finally:
        living.kill()
        living.communicate(timeout=30)
    assert [one.user_id for one in conversations(home)] == ["bob"]


def test_dead_letters_are_forgotten(client, home):
    """What was refused, and what waits for another address, is the user's still."""
    client.record(of("ada", "t1"))
    with closing(Outbox(outbox_files(home / "outbox")[0])) as outbox:
        outbox.bury(outbox.lease("local")[0].seq, reason="HTTP 400")
    assert client.forget("ada") == 1
    assert held(home, b"words of ada") == []


def test_who_records_nothing_can_forget(home):
    """Forgetting works with recording switched off, and after shutdown."""
    with ContextWrap(home=home) as client:
        client.record(of("ada", "t1"))
        client.record(of("bob", "t2"))
    assert client.forget("ada") == 1
    assert ContextWrap(home=home, disabled=True).forget("bob") == 1
    assert sent(home) == []


def test_a_file_that_cannot_be_read_stops_no_forgetting(client, home):
    """The other files are purged all the same, and the one is counted by its name."""
    client.record(of("ada", "t1"))
    (home / "outbox" / "bad.sqlite").write_bytes(b"no database " * 500)
    os.utime(home / "outbox" / "bad.sqlite", (1, 1))
    assert client.forget("ada") == 1
    (reason,) = client.stats().lost
    assert reason.startswith("forget: cannot open the outbox")
    assert "bad.sqlite" in reason


def test_words_that_somebody_reads_are_told_of(client, home):
    """While another reader holds the old pages they stay: that is counted, and the next time they go."""
    client.record(of("ada", "t1"))
    with closing(sqlite3.connect(outbox_files(home / "outbox")[0], isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM parcels").fetchall()
        assert client.forget("ada") == 1
    assert client.stats().lost == {
        "forget: the words are still in a file that is in use, forget once more": 1,
    }
    assert client.forget("ada") == 0
    assert held(home, b"words of ada") == []


def test_the_default_client_forgets(home):
    """`contextwrap.forget` is the default client's."""
    configure(home=home).record(of("ada", "t1"))
    assert client_module.forget("ada") == 1


def test_an_environment_that_cannot_work_forgets_nothing(monkeypatch):
    """Where no home is known nothing is looked for, opened or raised."""
    monkeypatch.delenv("CONTEXTWRAP_RAISE")
    monkeypatch.setenv("CONTEXTWRAP_SAMPLE", "most")
    assert client_module.forget("ada") == 0
    assert default_client().stats().lost == {"start: ConfigurationError": 1}
