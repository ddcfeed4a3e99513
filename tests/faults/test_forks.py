"""fork at any time, in every order: parent and child each deliver their own, once, and neither hangs."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap

import pytest
from drains import drain, end_all_of
from processes import ROOT

from contextwrap.boxfiles import outbox_files

TALK = """
    import multiprocessing, os, sys, threading, time
    import contextwrap
    from contextwrap.client import default_client
    from contextwrap.model import Conversation, Message

    order, prefix = sys.argv[1], sys.argv[2]

    def say(name, turns=20):
        client = default_client()
        for turn in range(turns):
            row = Message(role="user", message=str(turn))
            thread = f"{prefix}-{name}"
            assert client.record(Conversation(id=thread, metadata={"user_id": thread}, messages=(row,))) is not None

    def ended(pid):
        _, status = os.waitpid(pid, 0)
        assert status == 0, status

    def child(name, end=os._exit):
        pid = os.fork()
        if pid == 0:
            say(name)
            if end is not None:
                assert contextwrap.flush(20).pending == 0
                end(0)
            sys.exit(0)
        return pid

    def main():
        if order == "record, then fork":
            say("parent")
            ended(child("child"))
        elif order == "fork, then record":
            pid = child("child")
            say("parent")
            ended(pid)
        elif order == "configured, then forked four times":
            contextwrap.configure(exit_timeout=20)
            say("parent", 3)
            pids = [child(f"worker{number}") for number in range(4)]
            for pid in pids:
                ended(pid)
        elif order == "preloaded, then each ends in its way":
            contextwrap.configure(exit_timeout=20)
            say("parent", 3)
            pids = [child(f"worker{number}", end=os._exit if number % 2 else None) for number in range(4)]
            for pid in pids:
                ended(pid)
        elif order == "inside a session":
            # Both go on in the session's own thread, so each has a message of its own there.
            with contextwrap.session(user_id=f"{prefix}-shared", thread_id=f"{prefix}-shared") as here:
                assert here.add_message("user", "0")
                pid = os.fork()
                assert here.add_message("user", "1" if pid else "2")
                if pid == 0:
                    say("child")
                    assert contextwrap.flush(20).pending == 0
                    os._exit(0)
                say("parent")
                ended(pid)
        elif order == "while threads record":
            workers = [threading.Thread(target=say, args=(f"thread{number}", 200)) for number in range(4)]
            for worker in workers:
                worker.start()
            pids = [child(f"child{number}") for number in range(5)]
            for worker in workers:
                worker.join()
            for pid in pids:
                ended(pid)
        elif order == "while the courier delivers":
            say("parent", 2000)
            time.sleep(0.4)
            pids = [child(f"child{number}") for number in range(3)]
            say("parent2", 100)
            for pid in pids:
                ended(pid)
        elif order == "child of child":
            say("parent")
            pid = os.fork()
            if pid == 0:
                say("child")
                ended(child("grandchild"))
                sys.exit(0)
            ended(pid)
        elif order == "a child that ends without a word":
            say("parent")
            pid = os.fork()
            if pid == 0:
                say("child")
                os._exit(0)
            ended(pid)
        elif order == "a child that outlives its parent":
            say("parent")
            pid = os.fork()
            if pid == 0:
                time.sleep(0.5)
                say("child")
                sys.exit(0)
            sys.exit(0)
        elif order in {"fork", "spawn", "forkserver"}:
            say("parent")
            context = multiprocessing.get_context(order)
            workers = [context.Process(target=say, args=(f"worker{number}",)) for number in range(2)]
            for worker in workers:
                worker.start()
            for worker in workers:
                worker.join()
                assert worker.exitcode == 0

    if __name__ == "__main__":
        main()
        assert contextwrap.flush(20).pending == 0
"""
NAMES = {
    "record, then fork": {"parent": 20, "child": 20},
    "fork, then record": {"parent": 20, "child": 20},
    "configured, then forked four times": {"parent": 3} | {f"worker{number}": 20 for number in range(4)},
    "preloaded, then each ends in its way": {"parent": 3} | {f"worker{number}": 20 for number in range(4)},
    "inside a session": {"shared": 3, "parent": 20, "child": 20},
    "while threads record": {f"thread{n}": 200 for n in range(4)} | {f"child{n}": 20 for n in range(5)},
    "while the courier delivers": {"parent": 2000, "parent2": 100} | {f"child{number}": 20 for number in range(3)},
    "child of child": {"parent": 20, "child": 20, "grandchild": 20},
    "a child that ends without a word": {"parent": 20, "child": 20},
    "a child that outlives its parent": {"parent": 20, "child": 20},
    "fork": {"parent": 20, "worker0": 20, "worker1": 20},
    "spawn": {"parent": 20, "worker0": 20, "worker1": 20},
    "forkserver": {"parent": 20, "worker0": 20, "worker1": 20},
}


@pytest.mark.parametrize("durability", ["call", "background"])
@pytest.mark.parametrize("order", NAMES)
def test_nobody_loses_or_repeats_anything(tmp_path, server, stored, order, durability):
    """Whoever forks when, each record arrives once, in its thread; whoever was left with some leaves it to the next."""
    prefix = f"{durability}-{order.replace(' ', '').replace(',', '')}"
    script = tmp_path / "app.py"
    script.write_text(textwrap.dedent(TALK))
    environ = {
        "CONTEXTWRAP_HOME": tmp_path / "home",
        **server.environ,
        "CONTEXTWRAP_DURABILITY": durability,
        "CONTEXTWRAP_EXIT_TIMEOUT": 20,
        # Python 3.12 warns of every fork beside threads: https://docs.python.org/3/library/os.html#os.fork
        "PYTHONWARNINGS": "ignore::DeprecationWarning",
    }
    # A module in a file: spawn imports it again.
    process = subprocess.Popen(
        [sys.executable, script, order, prefix],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | {name: str(value) for name, value in environ.items()},
        start_new_session=True,
    )
    try:
        # Ends when the last child has let go of stderr.
        _, err = process.communicate(timeout=30)
    finally:
        end_all_of(process)
    assert (process.returncode, err) == (0, "")
    drain(tmp_path / "home", **environ)
    stored.settle()
    found = stored.threads(f"{prefix}-")
    assert found.keys() <= {f"{prefix}-{name}" for name in NAMES[order]}
    window = {"child"} if (order, durability) == ("a child that ends without a word", "background") else set()
    for name, turns in NAMES[order].items():
        whole = [str(turn) for turn in range(turns)]
        there = found.get(f"{prefix}-{name}", [])
        if name == "shared":
            # Whose comes first is nobody's promise.
            there = sorted(there)
        assert there == (whole[: len(there)] if name in window else whole)
    assert not outbox_files(tmp_path / "home" / "outbox")
