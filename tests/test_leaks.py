"""Clients that come and go leave nothing: no thread, no descriptor, no file."""

from __future__ import annotations

import gc
import threading
import time
from pathlib import Path

import pytest
from chains import ASKED, chain
from fakeserver import FakeServer, free_port

import contextwrap
from contextwrap import session, wrap
from contextwrap.client import ContextWrap
from contextwrap.model import Conversation, Message

# A server that is away is asked three times before a client ends without it.
ROUNDS = {"local": 30, "up": 30, "down": 2}
ROW = Message(role="user", message="hi")


def left_like(before):
    """Until there are as many threads and descriptors as before; the server here needs a moment to see a client go."""
    deadline = time.monotonic() + 5
    while held() != before and time.monotonic() < deadline:
        time.sleep(0.01)
    return held()


def held():
    """The threads and descriptors of this process."""
    gc.collect()
    return sorted(thread.name for thread in threading.enumerate()), len(list(Path("/dev/fd").iterdir()))


@pytest.fixture(params=["local", "up", "down"])
def where(request):
    """The settings of a client without a server, with one, and with one that is away."""
    if request.param == "local":
        yield {}
    elif request.param == "down":
        yield {"endpoint": f"http://127.0.0.1:{free_port()}", "token": "t"}
    else:
        with FakeServer() as server:
            yield {"endpoint": server.url, "token": "t"}


@pytest.fixture
def rounds(where, request):
    """How often to come and go."""
    return range(ROUNDS[request.node.callspec.params["where"]])


@pytest.mark.parametrize("durability", ["call", "background"])
def test_configuring_again_and_again_leaves_nothing(home, where, rounds, durability):
    """Each default client takes its thread, its connections and its files with it when it is shut down."""
    bot = wrap(chain())

    def once():
        client = contextwrap.configure(home=home, durability=durability, exit_timeout=5.0, **where)
        bot.invoke(ASKED)
        contextwrap.shutdown()
        return client.stats()

    once()
    before = held()
    stats = [once() for _ in rounds]
    assert left_like(before) == before
    assert [(one.recorded, one.lost) for one in stats] == [(1, {})] * len(rounds)


def test_a_configuration_replaces_the_one_before_it(home, where, rounds):
    """Who configures without shutting down leaves no more behind: the client that is replaced is shut down."""
    bot = wrap(chain())

    def once():
        contextwrap.configure(home=home, exit_timeout=5.0, **where)
        bot.invoke(ASKED)

    once()
    contextwrap.shutdown()
    before = held()
    for _ in rounds:
        once()
    contextwrap.shutdown()
    assert left_like(before) == before


def test_a_client_of_ones_own_leaves_nothing_when_its_block_ends(home, where, rounds):
    """`with ContextWrap(…)` closes what it opened."""
    before = held()
    for number in rounds:
        with ContextWrap(home=home, exit_timeout=5.0, **where) as client:
            assert client.record(Conversation(id=f"t{number}", messages=(ROW,))) is not None
    assert left_like(before) == before


def test_what_was_delivered_leaves_no_file(home):
    """After a shutdown that delivered everything the outbox has no file, lock or log left in it."""
    with FakeServer() as server:
        for number in range(3):
            with ContextWrap(home=home, endpoint=server.url, token="t") as client:
                client.record(Conversation(id=f"t{number}", messages=(ROW,)))
                assert client.flush(10).pending == 0
    assert list((home / "outbox").iterdir()) == []


def test_sessions_that_record_nothing_open_nothing(home):
    """A client that is never asked to keep anything opens no file and starts no thread."""
    before = held()
    contextwrap.configure(home=home)
    with session(user_id="ada"):
        pass
    assert left_like(before) == before
    assert list((home / "outbox").iterdir()) == []


@pytest.mark.parametrize("durability", ["call", "background"])
def test_a_client_that_nobody_holds_any_more_leaves_nothing(home, where, durability):
    """A client that is dropped without a word takes its threads and its files' descriptors with it."""
    before = held()
    for number in range(4):
        assert ContextWrap(home=home, durability=durability, **where).record(
            Conversation(id=f"t{number}", messages=(ROW,))
        )
    assert left_like(before) == before
