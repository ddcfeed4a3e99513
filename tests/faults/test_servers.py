"""Whatever a server does, all arrives in the end: once, in order, and no call has waited or failed for it."""

from __future__ import annotations

import logging
import time

import pytest
from fakeserver import free_port
from hostile import Fault, HostileServer

from contextwrap import transport
from contextwrap.client import ContextWrap
from contextwrap.model import Conversation, Message

THREADS = 5
TURNS = 40

FAULTS = {
    "hangs": Fault(how="hang"),
    "hangs after it took all": Fault(how="hang", accepts=True),
    "resets": Fault(how="reset"),
    "resets after it took all": Fault(how="reset", accepts=True),
    "hangs up while it reads": Fault(how="hang up early"),
    "breaks off its answer": Fault(how="half an answer", accepts=True),
    "says a byte at a time": Fault(how="slow", accepts=True),
    "500": Fault(status=500),
    "500 after it took all": Fault(status=500, accepts=True),
    "503 with Retry-After": Fault(status=503, headers={"Retry-After": "1"}),
    "503 with a date": Fault(status=503, headers={"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}),
    "429": Fault(status=429, headers={"Retry-After": "0"}),
    "502": Fault(status=502, body=b"<html>Bad Gateway"),
    "408": Fault(status=408),
    "401": Fault(status=401),
    "garbage": Fault(status=500, body=b"\x00\xff" * 100),
}


@pytest.fixture(autouse=True)
def _short_of_patience(monkeypatch):
    """A hung server is given up sooner than in life."""
    monkeypatch.setattr(transport, "_READ_SECONDS", 0.5)
    monkeypatch.setattr(transport, "_ANSWER_SECONDS", 1.0)


def say(client, thread, turn):
    """One turn of a thread."""
    row = Message(role="user", message=f"{thread}:{turn}")
    return client.record(Conversation(id=thread, metadata={"user_id": thread}, messages=(row,)))


def talk(client, turns=TURNS):
    """Turns of all threads in turns, with a rating after the last of each; how long the slowest call took."""
    slowest = 0.0
    for turn in range(turns):
        for number in range(THREADS):
            before = time.monotonic()
            assert say(client, f"t{number}", turn) is not None
            slowest = max(slowest, time.monotonic() - before)
    for number in range(THREADS):
        assert client.rate(1, thread=f"t{number}", feedback=f"t{number}:rated")
    return slowest


def all_of_it(turns=TURNS):
    """What has to have been accepted."""
    return {
        f"t{number}": [*(f"t{number}:{turn}" for turn in range(turns)), f"t{number}:rated"] for number in range(THREADS)
    }


@pytest.mark.parametrize("batches", [True, False], ids=["batches", "one by one"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_costs_nothing(home, fault, batches):
    """Twice the fault, then a server that is well: all arrives once and in order, no call waited, nothing is lost."""
    with HostileServer(*[FAULTS[fault]] * 2, batches=batches) as server:
        client = ContextWrap(endpoint=server.url, token="t", home=home)
        slowest = talk(client, 10)
        left = client.flush(60)
        stats = client.stats()
        client.shutdown()
        assert server.threads() == all_of_it(10)
    assert slowest < 0.5
    assert (left.pending, left.dead, stats.recorded, stats.lost) == (0, 0, 10 * THREADS, {})
    assert stats.outbox == left
    assert left.delivered == 10 * THREADS + THREADS
    assert not list((home / "outbox").iterdir())


@pytest.mark.parametrize("batches", [True, False], ids=["batches", "one by one"])
@pytest.mark.parametrize("status", [400, 403, 404, 422])
def test_what_is_refused_once_is_a_dead_letter_alone(home, status, batches):
    """A refusal of one record keeps it with its reason; a batch that is refused whole is sent in smaller ones."""
    with HostileServer(Fault(status=status), batches=batches) as server:
        client = ContextWrap(endpoint=server.url, token="t", home=home)
        talk(client, 4)
        left = client.flush(60)
        client.shutdown()
    whole = THREADS * 4 + THREADS
    assert left.delivered + left.dead == whole
    assert left.dead == (server.sizes[0] == 1)
    assert (left.pending, len(server.accepted)) == (0, left.delivered)


@pytest.mark.parametrize("batches", [True, False], ids=["batches", "one by one"])
def test_a_poisonous_record_holds_up_its_own_thread_only(home, batches):
    """One record the server always fails over: all other threads arrive, its own waits, nothing is lost."""
    with HostileServer(batches=batches, poison=lambda text: text == "t1:3") as server:
        client = ContextWrap(endpoint=server.url, token="t", home=home)
        talk(client, 10)
        deadline = time.monotonic() + 60
        while len(server.accepted) < 4 * 11 + 3 and time.monotonic() < deadline:
            client.flush(1)
        client.shutdown(0)
    expected = all_of_it(10) | {"t1": [f"t1:{turn}" for turn in range(3)]}
    assert server.threads() == expected
    assert client.stats().lost == {}


def test_413_splits_a_batch_until_it_fits(home):
    """A server that takes seven at a time gets all of them, no batch larger than it has to be tried."""
    with HostileServer(batches=True) as server:
        server.largest = 7
        client = ContextWrap(endpoint=server.url, token="t", home=home)
        talk(client)
        left = client.flush(60)
        client.shutdown()
        assert server.threads() == all_of_it()
    assert (left.pending, left.dead) == (0, 0)
    assert max(server.sizes) > 7


def test_a_record_too_large_by_itself_is_a_dead_letter(home):
    """When even one alone is a 413 it is refused for good, and the others go on."""
    with HostileServer(*[Fault(status=413)] * 9, batches=True) as server:
        client = ContextWrap(endpoint=server.url, token="t", home=home)
        talk(client)
        left = client.flush(60)
        client.shutdown()
    assert left.pending == 0
    assert left.delivered + left.dead == THREADS * TURNS + THREADS
    assert 0 < left.dead <= 9


def test_a_server_that_forgets_batches_gets_single_calls(home):
    """After a rollback to a server without the batch route records go one by one, none lost."""
    with HostileServer(batches=True) as server:
        client = ContextWrap(endpoint=server.url, token="t", home=home)
        talk(client, 2)
        client.flush(20)
        server.faults.append(Fault(status=404))
        server.batches = False
        for turn in (2, 3):
            for number in range(THREADS):
                say(client, f"t{number}", turn)
        left = client.flush(20)
        client.shutdown()
        sizes = server.sizes
    assert (left.pending, left.dead) == (0, 0)
    assert sizes[-1] == 1
    assert [texts[-1] for texts in server.threads().values()] == [f"t{number}:3" for number in range(THREADS)]


@pytest.mark.parametrize("batches", [True, False], ids=["batches", "one by one"])
def test_a_server_that_is_away_is_said_once(home, caplog, batches):
    """A refused connection costs no call, one line of log in all, and none of the user's words in it."""
    with caplog.at_level(logging.WARNING, logger="contextwrap"):
        client = ContextWrap(endpoint=f"http://127.0.0.1:{free_port()}", token="secret-token", home=home)
        slowest = talk(client, 20)
        left = client.flush(3)
        client.shutdown()
    assert slowest < 0.5
    assert left.pending == 20 * THREADS + THREADS
    assert len(caplog.records) == 1
    assert "cannot deliver" in caplog.text
    assert "t1:" not in caplog.text
    assert "secret" not in caplog.text


def test_another_products_200_is_no_delivery(home):
    """A server that says 200 to a batch, and nothing of what became of it, has to be asked again."""
    welcome = Fault(status=200, body=b"<html>Welcome!")
    with HostileServer(welcome, Fault(status=200, body=b"[3]"), batches=True) as server:
        client = ContextWrap(endpoint=server.url, token="t", home=home)
        talk(client, 5)
        left = client.flush(30)
        client.shutdown()
        assert server.threads() == all_of_it(5)
    assert (left.pending, left.dead) == (0, 0)


def test_who_stops_in_the_middle_has_the_word_of_what_went_before(home):
    """A slow server without batches is sent each record once, however often the process that sends is stopped."""
    with HostileServer(batches=False) as server:
        server.pause = 0.02
        for turn in range(3):
            client = ContextWrap(endpoint=server.url, token="t", home=home)
            for number in range(40):
                say(client, f"t{number}", turn)
            left = client.shutdown(0.6)
            assert 0 < left.delivered < 120
        client = ContextWrap(endpoint=server.url, token="t", home=home)
        assert client.flush(30).pending == 0
        client.shutdown()
        # One may be under way at each stop.
        assert 120 <= len(server.sizes) <= 123
        assert server.threads() == {f"t{number}": [f"t{number}:{turn}" for turn in range(3)] for number in range(40)}


@pytest.mark.parametrize("how", ["hang", "slow"])
def test_shutdown_does_not_wait_for_a_hung_server(home, monkeypatch, how):
    """With a server that says nothing, shutdown takes exit_timeout and hardly more; all stays on disk."""
    monkeypatch.setattr(transport, "_READ_SECONDS", 30.0)
    with HostileServer(*[Fault(how=how)] * 10, batches=True) as server:
        client = ContextWrap(endpoint=server.url, token="t", home=home, exit_timeout=1.0)
        talk(client, 2)
        server.wait_for(1)
        before = time.monotonic()
        left = client.shutdown()
        assert time.monotonic() - before < 1.6
    assert (left.delivered, left.pending) == (0, 2 * THREADS + THREADS)
