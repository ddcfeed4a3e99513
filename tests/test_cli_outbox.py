"""`contextwrap outbox …` as a user meets it: real files, real processes, a real server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from contextlib import closing

import pytest
from fakeserver import Answer, FakeServer, free_port
from processes import ROOT, killed, start

from contextwrap.boxfiles import outbox_files
from contextwrap.outbox import LOCAL, Outbox

LEAVE = """
    import sys, time
    import contextwrap
    from contextwrap.model import Conversation, Message
    client = contextwrap.configure()
    for name in sys.argv[1:]:
        row = Message(role="user", message=f"I am {name} \\x1b[31m[red]")
        client.record(Conversation(id=f"thread-of-{name}", metadata={"user_id": name}, messages=(row,)))
    print("ready", flush=True)
    time.sleep(60)
"""
HOSTILE = b'{"error":{"code":"no","message":"[red]bad\\u001b[31m words"}}'


def command(home, *arguments, stdin="", **variables):
    """What the command says, and how it ends."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("CONTEXT")}
    return subprocess.run(
        [sys.executable, "-m", "contextwrap", "outbox", *map(str, arguments)],
        capture_output=True,
        check=False,
        input=stdin,
        text=True,
        timeout=60,
        env=environment | {"PYTHONPATH": str(ROOT), "COLUMNS": "200", "CONTEXTWRAP_HOME": str(home)} | variables,
    )


def remote(url, token="t"):
    """The environment of an app that sends there."""
    return {"CONTEXTWRAP_ENDPOINT": url, "CONTEXT_API_TOKEN": token}


def leave(home, *names, **variables):
    """Records of these users, left by a process that was killed."""
    killed(LEAVE, *names, CONTEXTWRAP_HOME=home, **variables)


@pytest.fixture
def refused(home):
    """A home with one dead letter, of ada's."""
    with FakeServer(Answer(status=422, body=HOSTILE)) as server:
        leave(home, "ada", **remote(server.url))
        sent = command(home, "send", **remote(server.url))
        assert sent.returncode == 0, sent.stderr
        yield server


def test_nothing_waits(home):
    """Of an empty home there is nothing to say, and nothing to do."""
    assert command(home).stdout == "0 waiting for delivery\nno dead letters\n"
    assert command(home, "retry").stdout == "0 dead letters will be tried again\n"
    assert "no one parcel" in command(home, "show", "abcdef").stderr


def test_what_waits_is_shown_by_process(home):
    """Depth and age of each process's file, whether it lives, and where to; looking disturbs nobody."""
    url = f"http://127.0.0.1:{free_port()}"
    leave(home, "ada", "bob")
    living = start(LEAVE, "cyd", CONTEXTWRAP_HOME=home, **remote(url))
    try:
        assert living.stdout.readline() == "ready\n"
        shown = command(home)
        found = json.loads(command(home, "--json").stdout)
    finally:
        living.kill()
        living.communicate()
    assert shown.stdout.startswith("3 waiting for delivery\n")
    assert "this machine" in shown.stdout
    assert url in shown.stdout
    by_place = {one["to"]: one for one in found["files"]}
    assert (by_place["this machine"]["waiting"], by_place["this machine"]["lives"]) == (2, False)
    assert (by_place[url]["waiting"], by_place[url]["lives"], by_place[url]["process"]) == (1, True, str(living.pid))
    assert "(ended)" in shown.stdout


def test_a_damaged_file_is_named(home):
    """A file that was set aside is not forgotten; one that cannot be read is an error of its own line."""
    leave(home, "ada")
    (home / "outbox" / "1-x.sqlite.corrupt").write_bytes(b"x" * 10)
    (home / "outbox" / "2-x.sqlite").write_bytes(b"x" * 5000)
    shown = command(home)
    assert "set aside as damaged: 1-x.sqlite.corrupt (10 bytes)" in shown.stdout
    assert shown.stdout.startswith("1 waiting for delivery\n")
    assert "2-x.sqlite" in shown.stderr
    assert "Traceback" not in shown.stderr


def test_dead_letters_are_shown_with_their_reasons(home, refused):
    """A server's words are shown as they are, and no terminal obeys them."""
    shown = command(home)
    assert "[red]bad [31m words" in shown.stdout
    assert "\x1b" not in shown.stdout
    (letter,) = json.loads(command(home, "--json").stdout)["dead_letters"]
    assert letter["user"] == "ada"
    assert letter["reason"] == "HTTP 422: (no) [red]bad [31m words"


def test_a_dead_letter_is_tried_again(home, refused):
    """After `retry` and `send` it has arrived; a reason nobody has matches none."""
    assert command(home, "retry", "--reason", "HTTP 418").stdout == "0 dead letters will be tried again\n"
    assert command(home, "retry", "--reason", "422").stdout == "1 dead letters will be tried again\n"
    sent = command(home, "send", **remote(refused.url))
    assert (sent.returncode, sent.stdout) == (0, "1 delivered, 0 waiting, 0 dead letters\n")
    assert [asked.log.conversation.user_id for asked in refused.asked] == ["ada", "ada"]
    assert not list((home / "outbox").iterdir())


def test_a_parcel_is_shown_whole(home):
    """By the beginning of its key, as JSON; without one the newest are listed with thread and user."""
    leave(home, "ada", "bob")
    listed = command(home, "show").stdout
    assert "thread-of-ada" in listed
    assert "thread-of-bob" in listed
    (path,) = outbox_files(home / "outbox")
    with closing(Outbox(path)) as box:
        key = next(box.parcels()).key
    shown = command(home, "show", key[:30]).stdout
    assert "\x1b" not in shown
    whole = json.loads(shown)
    assert (whole["key"], whole["user"], whole["dead"]) == (key, "ada", False)
    assert whole["request"]["body"]["conversation"]["messages"][0]["message"] == "I am ada \x1b[31m[red]"
    assert "thread-of" not in command(home, "show", "--dead").stdout


def test_a_users_records_are_purged(home):
    """What waits of a user goes, words and all, after a question; others' stays."""
    leave(home, "ada", "bob")
    assert command(home, "purge", "--user", "ada", stdin="n\n").returncode == 1
    assert command(home, "purge", "--user", "ada", stdin="y\n").stdout.endswith("1 parcels dropped\n")
    kept = b"".join(path.read_bytes() for path in (home / "outbox").iterdir())
    assert (b"I am ada" in kept, b"I am bob" in kept) == (False, True)
    assert command(home, "purge", "--thread", "thread-of-bob", "--yes").stdout == "1 parcels dropped\n"
    assert command(home).stdout.startswith("0 waiting")


def test_dead_letters_are_purged(home, refused):
    """All dead letters go when that is said; nothing or everything at once is not what one can say."""
    assert command(home, "purge").returncode == 2
    assert command(home, "purge", "--dead", "--user", "ada").returncode == 2
    assert command(home, "purge", "--dead", "--yes").stdout == "1 parcels dropped\n"
    assert command(home).stdout.endswith("no dead letters\n")


def test_send_needs_an_endpoint(home):
    """In local mode there is nobody to send to, and it says what to do instead."""
    done = command(home, "send")
    assert done.returncode != 0
    assert "contextwrap serve" in done.stderr


def test_send_says_what_is_left(home):
    """A server that is away leaves all where it is: the reason is said, and the exit code is 1."""
    url = f"http://127.0.0.1:{free_port()}"
    leave(home, "ada", "bob", **remote(url))
    done = command(home, "send", "--timeout", "2", **remote(url))
    assert (done.returncode, done.stdout) == (1, "0 delivered, 2 waiting, 0 dead letters\n")
    assert "not delivered: the server cannot be reached" in done.stderr


def test_send_leaves_living_processes_their_own(home):
    """What a running process holds is its own to deliver, and is said to be."""
    url = f"http://127.0.0.1:{free_port()}"
    living = start(LEAVE, "cyd", CONTEXTWRAP_HOME=home, **remote(url))
    try:
        assert living.stdout.readline() == "ready\n"
        done = command(home, "send", **remote(url))
    finally:
        living.kill()
        living.communicate()
    assert done.returncode == 0
    assert done.stdout == (
        "0 delivered, 0 waiting, 0 dead letters\n1 more belong to running processes, which deliver them\n"
    )


def test_readdressed_records_go_where_the_settings_say(home):
    """What waits for an old endpoint, an old token or this machine goes to the new one, once that is agreed to."""
    with FakeServer() as server:
        leave(home, "ada", **remote(server.url, "old"))
        leave(home, "bob")
        assert command(home, "send", **remote(server.url)).stdout.startswith("0 delivered")
        no = command(home, "send", "--readdress", stdin="n\n", **remote(server.url))
        assert f"1 records wait for {server.url} with another token" in no.stdout
        assert "1 records wait for this machine" in no.stdout
        assert (no.returncode, server.asked) == (1, [])
        done = command(home, "send", "--readdress", "--yes", **remote(server.url))
        assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "2 delivered, 0 waiting, 0 dead letters")
        assert {asked.log.conversation.user_id for asked in server.asked} == {"ada", "bob"}
        assert {asked.headers["authorization"] for asked in server.asked} == {"Bearer t"}


def test_local_mode_is_an_address(home):
    """What waits for this machine waits for LOCAL."""
    leave(home, "ada")
    (path,) = outbox_files(home / "outbox")
    with closing(Outbox(path)) as box:
        assert [parcel.address for parcel in box.parcels()] == [LOCAL]
