"""kill -9 at any moment: what record had returned for arrives, once, in its thread, under its user."""

from __future__ import annotations

import time

import httpx
import pytest
from fakeserver import free_port
from processes import start

from contextwrap.boxfiles import outbox_files
from contextwrap.client import ContextWrap
from contextwrap.model import Conversation, Message
from contextwrap.outbox import Outbox
from contextwrap.settings import load

KILLS = 50
SEED = 20261123

# Importing takes longer than all the rest: a warm parent forks each process that is to be killed.
WRITER = """
    import os, random, signal, sys, time
    from pathlib import Path
    import getcontext, azure.core.rest, sqlite3, tenacity
    import contextwrap
    from contextwrap.client import ContextWrap
    from contextwrap.model import Conversation, Message

    home, prefix, kills, durability = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), sys.argv[4]
    chance = random.Random(sys.argv[5])
    for number in range(kills):
        told, tell = os.pipe()
        child = os.fork()
        if child == 0:
            client = ContextWrap(home=home, durability=durability)
            for turn in range(1_000_000):
                row = Message(role="user", message=f"{turn}")
                thread = f"{prefix}-{number}-{turn % 3}"
                client.record(Conversation(id=thread, metadata={"user_id": thread}, messages=(row,)))
                os.write(tell, b"%d\\n" % turn)
            os._exit(0)
        os.close(tell)
        with os.fdopen(told, "rb") as lines:
            said = lines.readline()
            time.sleep(chance.uniform(0, 0.01))
            os.kill(child, signal.SIGKILL)
            said += lines.read()
        os.waitpid(child, 0)
        print(number, said.split()[-1].decode(), flush=True)
"""
DELIVERER = """
    import os, random, signal, sys, time
    from pathlib import Path
    import getcontext, azure.core.rest, sqlite3, tenacity
    from contextwrap.client import ContextWrap

    home, kills = Path(sys.argv[1]), int(sys.argv[2])
    chance = random.Random(sys.argv[3])
    for number in range(kills):
        child = os.fork()
        if child == 0:
            ContextWrap(home=home).flush(60)
            os._exit(0)
        time.sleep(chance.uniform(0.005, 0.06))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print("done", flush=True)
"""
DRAIN = """
    import sys
    from contextwrap.client import ContextWrap
    with ContextWrap(home=sys.argv[1]) as client:
        print(client.flush(60))
"""


def remote(server):
    """The environment of an app that sends there."""
    return {"CONTEXTWRAP_ENDPOINT": server.url, "CONTEXT_API_TOKEN": server.key("ingest")}


def finished(script, *arguments, **environ):
    """What the script said; it has to end well."""
    process = start(script, *arguments, **environ)
    out, err = process.communicate(timeout=110)
    assert process.returncode == 0, err
    return out


def expected(told, prefix):
    """Thread -> texts, of all that was told of; one more of each process may be there."""
    threads = {}
    for line in told.splitlines():
        number, last = map(int, line.split())
        for turn in range(last + 1):
            threads.setdefault(f"{prefix}-{number}-{turn % 3}", []).append(str(turn))
    return threads


def test_a_writer_killed_at_50_moments_loses_nothing(tmp_path, server, stored):
    """All 50 processes' records arrive with the next process, none twice, none in another's thread."""
    environ = remote(server)
    told = finished(WRITER, tmp_path, "written", KILLS, "call", SEED, **environ)
    assert len(told.splitlines()) == KILLS
    finished(DRAIN, tmp_path, **environ)
    server.settle()
    threads = expected(told, "written")
    assert sum(map(len, threads.values())) > KILLS
    for thread, texts in threads.items():
        found = stored.thread(thread)
        assert found[: len(texts)] == texts
        assert len(found) <= len(texts) + 1
        assert len(set(found)) == len(found)
    assert stored.users("written") == {thread: {thread} for thread in stored.users("written")}
    assert not outbox_files(tmp_path / "outbox")


def test_a_writer_in_the_background_loses_its_window_at_most(tmp_path, server, stored):
    """With durability "background" what arrives is a beginning of what was said, and lacks only the last moments."""
    environ = remote(server)
    told = finished(WRITER, tmp_path, "window", 10, "background", SEED, **environ)
    finished(DRAIN, tmp_path, **environ)
    server.settle()
    for thread, texts in expected(told, "window").items():
        found = stored.thread(thread)
        assert found == [str(turn) for turn in range(int(texts[0]), int(texts[0]) + 3 * len(found), 3)]


def test_a_deliverer_killed_at_50_moments_repeats_nothing(tmp_path, server, stored):
    """A backlog that 50 killed couriers carried in turn is stored whole, once, and in order."""
    environ = remote(server)
    fill = """
        import os, sys
        from contextwrap.client import ContextWrap
        from contextwrap.model import Conversation, Message
        client = ContextWrap(home=sys.argv[1], exit_timeout=0)
        for turn in range(6000):
            row = Message(role="user", message=str(turn))
            thread = f"carried-{turn % 60}"
            client.record(Conversation(id=thread, metadata={"user_id": thread}, messages=(row,)))
        os.kill(os.getpid(), 9)
    """
    process = start(fill, tmp_path, **environ | {"CONTEXTWRAP_ENDPOINT": "http://127.0.0.1:9"})
    process.communicate(timeout=60)
    (path,) = outbox_files(tmp_path / "outbox")
    with_address = Outbox.adopt(path)
    here = load({"endpoint": server.url, "token": environ["CONTEXT_API_TOKEN"]}).address
    (there,) = {parcel.address for parcel in with_address.parcels()}
    assert with_address.readdress(there, here) == 6000
    with_address.close()
    assert "done" in finished(DELIVERER, tmp_path, KILLS, SEED, **environ)
    assert "pending=0" in finished(DRAIN, tmp_path, **environ)
    server.settle()
    for number in range(60):
        assert stored.thread(f"carried-{number}") == [str(turn) for turn in range(number, 6000, 60)]
    assert not outbox_files(tmp_path / "outbox")


def test_sigterm_in_the_middle_of_recording_loses_nothing(tmp_path, server, stored):
    """A process that is told to end while it records leaves all it said on disk or delivered."""
    script = """
        import sys
        from contextwrap.client import ContextWrap
        from contextwrap.model import Conversation, Message
        client = ContextWrap(home=sys.argv[1])
        for turn in range(100000):
            row = Message(role="user", message=str(turn))
            client.record(Conversation(id="terminated", metadata={"user_id": "terminated"}, messages=(row,)))
            print(turn, flush=True)
    """
    environ = remote(server)
    process = start(script, tmp_path, **environ)
    for _ in range(200):
        process.stdout.readline()
    process.terminate()
    rest, _ = process.communicate(timeout=30)
    last = int(rest.split()[-1]) if rest.split() else 199
    finished(DRAIN, tmp_path, **environ)
    server.settle()
    found = stored.thread("terminated")
    assert found == [str(turn) for turn in range(len(found))]
    assert len(found) - last in {1, 2}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_server_killed_while_it_takes_has_all_it_acknowledged(tmp_path, moment):
    """Kill -9 of the server, and start again: what was delivered is there once, what was not is delivered then."""
    home, app = tmp_path / "server", tmp_path / "app"
    environment = {"CONTEXTWRAP_HOME": str(home)}
    key = finished("from contextwrap.__main__ import main; main()", "keys", "create", "--scope", "admin", **environment)
    port = free_port()

    def serve():
        process = start(
            "from contextwrap.__main__ import main; main()", "serve", "--port", port, "--home", home, **environment
        )
        while "http" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        return process

    running = serve()
    url = f"http://127.0.0.1:{port}"
    client = ContextWrap(endpoint=url, token=key.strip(), home=app)
    for turn in range(3000):
        thread = f"t{turn % 30}"
        row = Message(role="user", message=str(turn))
        client.record(Conversation(id=thread, metadata={"user_id": thread}, messages=(row,)))
    if moment == "after":
        deadline = time.monotonic() + 30
        while client.stats().outbox.delivered < 500 and time.monotonic() < deadline:
            time.sleep(0.002)
    running.kill()
    running.communicate()
    running = serve()
    try:
        left = client.flush(60)
        assert (left.pending, left.dead) == (0, 0)
        client.shutdown()
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key.strip()}"}, timeout=30) as http:
            for number in range(30):
                messages = http.get(f"/api/v1/conversations/t{number}").json()["messages"]
                assert [one["message"] for one in messages] == [str(turn) for turn in range(number, 3000, 30)]
    finally:
        running.kill()
        running.communicate()
