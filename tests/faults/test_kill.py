"""kill -9 at any moment: what record had returned for arrives, once, in its thread, under its user."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

import httpx
import pytest
from drains import CONTEXTWRAP, SEED, created_key, drain, finished, until
from fakeserver import free_port
from hostile import HostileServer
from processes import start
from serving import serving
from stores import Real, Stored

from contextwrap.boxfiles import outbox_files
from contextwrap.client import ContextWrap
from contextwrap.model import Conversation, Message
from contextwrap.outbox import Outbox
from contextwrap.settings import load

if TYPE_CHECKING:
    from pathlib import Path

KILLS = 50

# Importing takes longer than all the rest: a warm parent forks each process that is to be killed.
WRITER = """
    import os, random, signal, sys, time
    import getcontext, azure.core.rest, tenacity
    import contextwrap.courier, contextwrap.window
    from contextwrap.client import ContextWrap
    from contextwrap.model import Conversation, Message

    home, prefix, kills, durability, longest, seed = sys.argv[1:]
    chance = random.Random(seed)
    for number in range(int(kills)):
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
            # Every fifth before it has said anything, if chance will have it.
            said = b"" if number % 5 == 0 else lines.readline()
            time.sleep(chance.uniform(0, float(longest)))
            os.kill(child, signal.SIGKILL)
            said += lines.read()
        assert os.waitpid(child, 0)[1] == signal.SIGKILL
        print(number, said.split()[-1].decode() if said else -1, flush=True)
"""
FILL = """
    import os, sys
    from contextwrap.client import ContextWrap
    from contextwrap.model import Conversation, Message
    # Waits for a server that is not the one of the environment: nothing goes before it is readdressed.
    client = ContextWrap(home=sys.argv[1])
    for turn in range(int(sys.argv[3])):
        row = Message(role="user", message=f"{sys.argv[2]}-{turn % 60}:{turn}")
        thread = f"{sys.argv[2]}-{turn % 60}"
        client.record(Conversation(id=thread, metadata={"user_id": thread}, messages=(row,)))
    os.kill(os.getpid(), 9)
"""
DELIVERER = """
    import os, random, signal, sys, time
    import getcontext, azure.core.rest, tenacity
    import contextwrap.courier
    from contextwrap.client import ContextWrap

    home, kills, seed = sys.argv[1:]
    chance = random.Random(seed)
    struck = 0
    for number in range(int(kills)):
        child = os.fork()
        if child == 0:
            ContextWrap(home=home).flush(60)
            os._exit(0)
        time.sleep(chance.uniform(0.005, 0.06))
        os.kill(child, signal.SIGKILL)
        struck += os.waitpid(child, 0)[1] == signal.SIGKILL
    print(struck, flush=True)
"""


def told_of(said: str, prefix: str) -> dict[str, list[str]]:
    """Thread -> texts, of all that was told of, and which one more of each process may be there."""
    threads: dict[str, list[str]] = {}
    for line in said.splitlines():
        number, last = map(int, line.split())
        for turn in range(last + 1):
            threads.setdefault(f"{prefix}-{number}-{turn % 3}", []).append(str(turn))
    return threads


def one_more(said: str, prefix: str) -> dict[str, str]:
    """Thread -> the text that may be there or not: killed between the write and the word of it."""
    lasts = (map(int, line.split()) for line in said.splitlines())
    return {f"{prefix}-{number}-{(last + 1) % 3}": str(last + 1) for number, last in lasts}


def check_killed_writers(said: str, prefix: str, found: dict[str, list[str]]) -> None:
    """All that was told of is there, in order, once; besides that, of each process at most the next one."""
    told, more = told_of(said, prefix), one_more(said, prefix)
    assert len(said.splitlines()) == KILLS
    assert sum(map(len, told.values())) > KILLS
    for thread in told.keys() | found.keys():
        whole = told.get(thread, [])
        assert found.get(thread, []) in (whole, [*whole, more.get(thread)]), (thread, SEED)


def test_a_writer_killed_at_50_moments_loses_nothing(tmp_path, server, stored):
    """All 50 processes' records arrive with the next process, none twice, none in another's thread."""
    said = finished(WRITER, tmp_path, "written", KILLS, "call", 0.012, SEED, **server.environ)
    drain(tmp_path, **server.environ)
    stored.settle()
    check_killed_writers(said, "written", stored.threads("written"))
    assert not outbox_files(tmp_path / "outbox")


def test_a_local_writer_killed_at_50_moments_loses_nothing(tmp_path):
    """Without an endpoint it is the server of the same home that takes what 50 killed processes left."""
    said = finished(WRITER, tmp_path, "local", KILLS, "call", 0.012, SEED)
    key = created_key(tmp_path)
    for _ in range(2):
        # The second start finds nothing more, and has nothing twice.
        with serving(tmp_path) as running:
            until(lambda: not outbox_files(tmp_path / "outbox"))
            stored = Stored(Real(running.url, key))
            stored.settle()
            check_killed_writers(said, "local", stored.threads("local"))
            stored.close()


def test_a_writer_in_the_background_loses_its_window_at_most(tmp_path, server, stored):
    """With durability "background" what arrives is a beginning of what was said, and lacks only the last moments."""
    # Long enough for several windows, and for the file to be made.
    said = finished(WRITER, tmp_path, "window", KILLS, "background", 0.06, SEED, **server.environ)
    drain(tmp_path, **server.environ)
    stored.settle()
    found, told, more = stored.threads("window"), told_of(said, "window"), one_more(said, "window")
    assert found
    for thread, texts in found.items():
        whole = [*told.get(thread, []), more.get(thread)]
        assert texts == whole[: len(texts)]


def readdress(home: Path, environ: dict[str, str], whole: int) -> None:
    """What waits for a server that is away waits for this one from now on."""
    here = load({"endpoint": environ["CONTEXTWRAP_ENDPOINT"], "token": environ["CONTEXT_API_TOKEN"]}).address
    (path,) = outbox_files(home / "outbox")
    outbox = Outbox.adopt(path)
    assert outbox is not None
    there = next(outbox.parcels()).address
    assert outbox.readdress(there, here) == whole
    outbox.close()


@pytest.mark.parametrize("batches", [True, False], ids=["batches", "one by one"])
def test_a_deliverer_killed_at_50_moments_repeats_nothing(tmp_path, server, stored, batches):
    """A backlog that 50 killed couriers carried in turn is there whole, once, and in order."""
    whole = 8000 if batches else 1500
    prefix = f"carried{whole}"
    with HostileServer(batches=False) as classic:
        environ = server.environ if batches else {"CONTEXTWRAP_ENDPOINT": classic.url, "CONTEXT_API_TOKEN": "t"}
        filling = start(FILL, tmp_path, prefix, whole, **environ | {"CONTEXTWRAP_ENDPOINT": "http://127.0.0.1:9"})
        filling.communicate(timeout=60)
        assert filling.returncode == -signal.SIGKILL
        readdress(tmp_path, environ, whole)
        struck = int(finished(DELIVERER, tmp_path, KILLS, SEED, **environ))
        assert struck > KILLS // 2, SEED
        drain(tmp_path, **environ)
        expected = {
            f"{prefix}-{number}": [f"{prefix}-{number}:{turn}" for turn in range(number, whole, 60)]
            for number in range(60)
        }
        if batches:
            stored.settle()
        assert (stored.threads(f"{prefix}-") if batches else classic.threads()) == expected
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
    process = start(script, tmp_path, **server.environ)
    for turn in range(200):
        assert process.stdout.readline() == f"{turn}\n"
    process.terminate()
    # Not communicate: it would not see what readline has read ahead.
    rest = process.stdout.read().split()
    last = int(rest[-1]) if rest else 199
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGTERM
    drain(tmp_path, **server.environ)
    stored.settle()
    found = stored.threads("terminated")["terminated"]
    assert found == [str(turn) for turn in range(len(found))]
    assert len(found) - 1 - last in {0, 1}


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_server_killed_while_it_takes_has_all_it_acknowledged(tmp_path, moment):
    """Kill -9 of the server, and start again: what was delivered is there once, what was not is delivered then."""
    home, app = tmp_path / "server", tmp_path / "app"
    key = created_key(home)
    port = free_port()

    def serve():
        process = start(CONTEXTWRAP, "serve", "--port", port, "--home", home)
        while "http" not in (line := process.stdout.readline()):
            assert line, process.stderr.read()
        return process

    running = serve()
    url = f"http://127.0.0.1:{port}"
    client = ContextWrap(endpoint=url, token=key, home=app)
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
        with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=30) as http:
            for number in range(30):
                messages = http.get(f"/api/v1/conversations/t{number}").json()["messages"]
                assert [one["message"] for one in messages] == [str(turn) for turn in range(number, 3000, 30)]
    finally:
        running.kill()
        running.communicate()
