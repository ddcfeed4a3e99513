"""Whatever the disk does, the call is unharmed, the loss is counted, and what can be saved is."""

from __future__ import annotations

import logging
import shutil

import pytest
from fakeserver import FakeServer, free_port
from parcels import conversations
from processes import killed, run, start
from test_outbox import VERSION_1

from contextwrap.boxfiles import damaged_files, outbox_files
from contextwrap.client import ContextWrap
from contextwrap.errors import OutboxError
from contextwrap.model import Conversation, Message

LEAVE = """
    import sys, time
    from contextwrap.client import ContextWrap
    from contextwrap.model import Conversation, Message
    client = ContextWrap()
    for turn in range(int(sys.argv[1])):
        row = Message(role="user", message=f"{turn} " + "x" * 2000)
        client.record(Conversation(id="left", metadata={"user_id": "ada"}, messages=(row,)))
    print("ready", flush=True)
    time.sleep(60)
"""


def say(client, text, thread="t"):
    """One turn."""
    return client.record(Conversation(id=thread, messages=(Message(role="user", message=text),)))


def arrived(server):
    """What was said, as it arrived."""
    return [asked.log.conversation.messages[0].message.split()[0] for asked in server.asked]


def test_a_full_disk_costs_records_and_says_so(tmp_path):
    """Where no byte more can be written each loss is counted and the app goes on; with room again it records."""
    said = run(
        """
        import resource, signal, sys
        from contextwrap.client import ContextWrap
        from contextwrap.model import Conversation, Message

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        client = ContextWrap(home=sys.argv[1])
        def say(size):
            return client.record(Conversation(id="t", messages=(Message(role="user", message="x" * size),))) is not None

        assert say(10)
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
        kept = sum(say(10_000) for _ in range(100))
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        assert say(10)
        stats = client.stats()
        print(kept, stats.recorded, sum(stats.lost.values()), stats.outbox.pending, *stats.lost)
        """,
        tmp_path,
    )
    kept, recorded, lost, pending, *reasons = said.split()
    assert 0 < int(kept) < 100
    assert int(recorded) == int(pending) == int(kept) + 2
    assert int(lost) == 100 - int(kept)
    assert reasons == ["record:", "OutboxError"]
    assert len(conversations(tmp_path)) == int(pending)


def test_a_home_that_cannot_be_written_is_told_at_once(tmp_path):
    """Where a file stands in the folder's way, configuring says so; nothing fails later."""
    (tmp_path / "home").write_text("in the way")
    with pytest.raises(OutboxError, match="cannot write to"):
        ContextWrap(home=tmp_path / "home")


def test_a_home_that_becomes_read_only_costs_no_call(tmp_path):
    """When an app loses the right to write, its calls go on and each record is counted as lost."""
    said = run(
        """
        import os, sys
        from contextwrap.client import ContextWrap
        from contextwrap.model import Conversation, Message
        home = sys.argv[1]
        # Who becomes nobody may not read the modules either.
        import contextwrap.outbox
        client = ContextWrap(home=home)
        os.chmod(os.path.join(home, "outbox"), 0o500)
        os.chmod(home, 0o500)
        if os.getuid() == 0:
            os.setuid(65534)
        for _ in range(3):
            assert client.record(Conversation(id="t", messages=(Message(role="user", message="x"),))) is None
        print(client.stats().lost)
        """,
        tmp_path / "home",
    )
    assert said.strip() == "{'record: OutboxError': 3}"


@pytest.mark.parametrize("what", ["header", "middle", "cut", "garbage"])
def test_a_damaged_file_of_a_dead_process_is_set_aside(home, what):
    """What SQLite cannot read is kept under another name and said; the rest, and what is new, arrives."""
    port = free_port()
    environ = {
        "CONTEXTWRAP_HOME": home, "CONTEXTWRAP_ENDPOINT": f"http://127.0.0.1:{port}", "CONTEXT_API_TOKEN": "t",
    }  # fmt: skip
    killed(LEAVE, 5, **environ)
    (whole,) = outbox_files(home / "outbox")
    damaged = whole.with_name("1-damaged.sqlite")
    run(
        "import sqlite3, sys; sqlite3.connect(sys.argv[1]).execute('PRAGMA wal_checkpoint(TRUNCATE)').fetchall()", whole
    )
    content = whole.read_bytes()
    damage = {
        "header": b"\xff" * 100 + content[100:],
        "middle": content[:4096] + b"\xff" * (len(content) - 4096),
        "cut": content[: len(content) // 2],
        "garbage": b"whatever " * 1000,
    }
    damaged.write_bytes(damage[what])
    with FakeServer(port=port) as server, ContextWrap(endpoint=server.url, token="t", home=home) as client:
        say(client, "new")
        left = client.flush(20)
        assert (left.delivered, left.pending, left.dead) == (6, 0, 0)
        assert sorted(arrived(server)) == ["0", "1", "2", "3", "4", "new"]
    (aside,) = damaged_files(home / "outbox")
    assert aside.read_bytes() == damage[what]
    assert not outbox_files(home / "outbox")


@pytest.mark.parametrize("what", ["cut", "overwritten", "gone"])
def test_a_damaged_log_costs_its_end_at_most(home, what):
    """A write-ahead log that is cut, overwritten or gone leaves a beginning of what was said, and never a crash."""
    port = free_port()
    environ = {
        "CONTEXTWRAP_HOME": home, "CONTEXTWRAP_ENDPOINT": f"http://127.0.0.1:{port}", "CONTEXT_API_TOKEN": "t",
    }  # fmt: skip
    killed(LEAVE, 50, **environ)
    (path,) = outbox_files(home / "outbox")
    log = path.with_name(f"{path.name}-wal")
    content = log.read_bytes()
    if what == "gone":
        log.unlink()
    else:
        half = len(content) // 2
        log.write_bytes(content[:half] + (b"" if what == "cut" else b"\xff" * half))
    with FakeServer(port=port) as server, ContextWrap(endpoint=server.url, token="t", home=home) as client:
        say(client, "new", "other")
        left = client.flush(20)
        client.flush(20)
        found = [text for text in arrived(server) if text != "new"]
        assert "new" in arrived(server)
    assert (left.pending, left.dead) == (0, 0)
    assert found == [str(turn) for turn in range(len(found))]
    assert len(found) < 50
    if what != "gone":
        assert len(found) > 10


def test_a_file_damaged_under_a_running_process_is_replaced(home, caplog):
    """The next record goes into a new file; the damaged one is kept, and said once."""
    client = ContextWrap(home=home)
    say(client, "before")
    (path,) = outbox_files(home / "outbox")
    client._keep.outbox._db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    # What SQLite has in memory it does not read again.
    client._keep.outbox._db.execute("PRAGMA shrink_memory")
    with caplog.at_level(logging.ERROR, logger="contextwrap"):
        for number in range(3):
            say(client, f"after{number}")
    assert client.stats().lost == {}
    assert [one.messages[0].message for one in conversations(home)] == ["after0", "after1", "after2"]
    assert len(damaged_files(home / "outbox")) == 1
    assert len(caplog.records) == 1
    client.shutdown()


def test_at_the_limit_the_newest_is_refused_until_there_is_room(home, caplog):
    """An outbox that is full refuses and counts, with one line of log; what was delivered makes room again."""
    port = free_port()
    client = ContextWrap(endpoint=f"http://127.0.0.1:{port}", token="t", home=home, outbox_limit=500_000)
    kept = sum(say(client, f"{turn} " + "x" * 2000) is not None for turn in range(400))
    assert 100 < kept < 130
    assert client.stats().lost == {"record: OutboxFullError": 400 - kept}
    assert sum("outbox_limit" in record.message for record in caplog.records) == 1
    with FakeServer(port=port) as server:
        left = client.flush(60)
        assert (left.delivered, left.pending) == (kept, 0)
        assert arrived(server) == [str(turn) for turn in range(kept)]
        assert say(client, "again") is not None
        client.shutdown()


def test_a_home_that_is_deleted_costs_no_call(home):
    """Somebody removes the folder of a running app: no call fails, that is counted, and all that follows arrives."""
    with FakeServer() as server, ContextWrap(endpoint=server.url, token="t", home=home) as client:
        say(client, "before")
        shutil.rmtree(home)
        for number in range(3):
            say(client, f"after{number}")
        client.flush(10)
        stats = client.stats()
        assert (stats.recorded, stats.lost) == (4, {"outbox: its file was deleted": 1})
        assert arrived(server)[-3:] == ["after0", "after1", "after2"]


def test_a_file_of_an_older_contextwrap_is_delivered(home):
    """What a dead process of the first schema left arrives with the next one's own."""
    (home / "outbox").mkdir(parents=True)
    path = home / "outbox" / "1-old.sqlite"
    with FakeServer() as server:
        client = ContextWrap(endpoint=server.url, token="t", home=home)
        old = VERSION_1.replace("'local'", f"'{client.settings.address}'").replace("'/t'", "'/api/v1/log/conversation'")
        run("import sqlite3, sys; sqlite3.connect(sys.argv[1]).executescript(sys.argv[2])", path, old)
        say(client, "new")
        left = client.flush(10)
        assert (left.delivered, left.pending) == (3, 0)
        client.shutdown()
    assert [asked.key for asked in server.asked if asked.body == b"{}"] == ["k1", "k3"]


def test_processes_that_open_and_close_at_once_leave_nothing(home):
    """Twenty processes that come and go on one home leave no file and lose no record."""
    with FakeServer() as server:
        environ = {"CONTEXTWRAP_HOME": home, "CONTEXTWRAP_ENDPOINT": server.url, "CONTEXT_API_TOKEN": "t"}
        script = """
            import sys
            import contextwrap
            from contextwrap.model import Conversation, Message
            client = contextwrap.configure(exit_timeout=20)
            client.record(Conversation(id=sys.argv[1], messages=(Message(role="user", message=sys.argv[1]),)))
        """
        for wave in range(2):
            some = [start(script, f"p{wave}-{number}", **environ) for number in range(10)]
            for process in some:
                _, err = process.communicate(timeout=60)
                assert (process.returncode, err) == (0, "")
        assert sorted({asked.key for asked in server.asked}) == sorted(asked.key for asked in server.asked)
        assert len(arrived(server)) == 20
    assert not list((home / "outbox").iterdir())


def test_a_backup_of_an_outbox_can_be_read(home):
    """A closed file is one file: copied away and back it is delivered like any other."""
    client = ContextWrap(home=home)
    say(client, "kept")
    client.shutdown()
    (path,) = outbox_files(home / "outbox")
    copied = home / "copied" / "outbox"
    copied.mkdir(parents=True)
    shutil.copy(path, copied / path.name)
    assert [one.messages[0].message for one in conversations(copied.parent)] == ["kept"]
