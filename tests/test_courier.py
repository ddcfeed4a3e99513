"""The courier: what waits arrives once and in order, and nobody waits for it."""

from __future__ import annotations

import time

import pytest
from fakeserver import HANG, OK, RESET, Answer, FakeServer, free_port, keys
from processes import killed, start

from contextwrap.client import ContextWrap
from contextwrap.courier import Courier
from contextwrap.model import Conversation, Message
from contextwrap.outbox import Counts, Outbox, Parcel
from contextwrap.transport import ContextTransport

RECORD = """
    import sys, time
    from contextwrap.client import ContextWrap
    from contextwrap.model import Conversation, Message
    client = ContextWrap()
    for text in sys.argv[1:]:
        client.record(Conversation(messages=(Message(role="user", message=text),)))
    print("ready", flush=True)
    print(time.monotonic(), flush=True)
"""
WAIT = RECORD + "    time.sleep(60)\n"


class Rig:
    """An outbox, a courier, and couriers' usual parcels."""

    def __init__(self, folder, server, *, token="secret"):
        self.address = f"{server.url}#{token}"
        self.outbox = Outbox.create(folder, checkpoints=False)
        transport = ContextTransport(endpoint=server.url, token=token)
        self.courier = Courier(folder=folder, outbox=self.outbox, address=self.address, transport=transport)

    def put(self, *names, lane="a", address=None):
        self.outbox.put(
            Parcel(
                key=name,
                address=address or self.address,
                lane=lane,
                method="POST",
                target="/api/v1/log/conversation",
                body=b"{}",
                created_at=0.0,
            )
            for name in names
        )
        self.courier.wake()

    def close(self):
        self.courier.stop(5)
        self.outbox.close()


@pytest.fixture
def rig(tmp_path):
    """Makes rigs, and takes them down."""
    made = []

    def make(server, **options):
        made.append(Rig(tmp_path / "outbox", server, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


def say(text):
    """A conversation of one message."""
    return Conversation(messages=(Message(role="user", message=text),))


def texts(asked):
    """What was said in each request."""
    return [one.log.conversation.messages[0].message for one in asked]


def test_parcels_arrive_in_order_with_their_keys(rig):
    """What was put arrives in order, each with its own key, and is then forgotten."""
    with FakeServer() as server:
        one = rig(server)
        names = [f"k{number}" for number in range(250)]
        one.put(*names)
        assert one.courier.flush(20)
        assert keys(server.asked) == names
        assert one.outbox.counts() == Counts()
        assert one.courier.delivered == 250


def test_a_failed_attempt_is_made_again(rig):
    """After a 500 the same parcel is sent again under the same key, and arrives once."""
    with FakeServer(Answer(status=500), RESET) as server:
        one = rig(server)
        one.put("k1", "k2")
        assert one.courier.flush(15)
        assert keys(server.asked) == ["k1", "k1", "k1", "k2"]


def test_a_server_that_stays_down_is_left_in_peace(rig):
    """After a few attempts the parcel waits; those behind it are not tried, and are none the worse for it."""
    with FakeServer(always=Answer(status=500)) as server:
        one = rig(server)
        one.put("k1", "k2")
        server.wait_for(3)
        assert not one.courier.flush(1.0)
        assert set(keys(server.asked)) == {"k1"}
        one.courier.stop(5)
        one.outbox.hurry(one.address)
        first, second = one.outbox.lease(one.address)
    assert (first.attempts >= 1, first.reason) == (True, "HTTP 500")
    assert (second.attempts, second.reason) == (0, None)


def test_retry_after_is_respected(rig):
    """A server that asks for time gets it, and then everything in order."""
    with FakeServer(Answer(status=503, headers={"Retry-After": "2"})) as server:
        one = rig(server)
        one.put("k1", "k2")
        asked = server.wait_for(3)
        assert keys(asked) == ["k1", "k1", "k2"]
        assert asked[1].at - asked[0].at >= 1.95


@pytest.mark.parametrize("status", [400, 403, 413])
def test_what_is_refused_is_kept_as_a_dead_letter(rig, status):
    """A parcel the server will never take becomes a dead letter with its reason; those behind it go on."""
    error = Answer(status=status, body=b'{"error":{"code":"no","message":"not this one"}}')
    with FakeServer(error) as server:
        one = rig(server)
        one.put("k1", "k2")
        assert one.courier.flush(10)
        assert keys(server.asked) == ["k1", "k2"]
        assert one.outbox.counts() == Counts(dead=1)
        (dead,) = one.outbox.dead_letters()
        assert (dead.key, dead.reason) == ("k1", f"HTTP {status}: (no) not this one")


def test_an_accepted_parcel_is_not_sent_again_for_its_answer(rig):
    """A 201 whose body is garbage is still a 201."""
    with FakeServer(Answer(body=b"\xff<garbage>")) as server:
        one = rig(server)
        one.put("k1")
        assert one.courier.flush(10)
        assert keys(server.asked) == ["k1"]


def test_other_addresses_are_never_sent(rig):
    """Parcels for another server or another token stay where they are."""
    with FakeServer() as server:
        one = rig(server)
        one.put("k1", address=f"{server.url}#another-token")
        one.put("k2", address="local")
        one.put("k3")
        assert one.courier.flush(10)
        assert keys(server.asked) == ["k3"]
        assert one.outbox.counts() == Counts(pending=2)


def test_flush_returns_in_time_when_the_server_hangs(rig):
    """A flush waits no longer than it was told to."""
    with FakeServer(always=HANG) as server:
        one = rig(server)
        one.put("k1")
        server.wait_for(1)
        before = time.monotonic()
        assert not one.courier.flush(0.5)
        assert 0.4 <= time.monotonic() - before < 1.0


def test_a_stop_gives_back_what_was_not_carried(rig):
    """What a stopped courier held is back in its outbox, and what arrived is not sent twice."""
    with FakeServer(OK, OK, HANG) as server:
        one = rig(server)
        one.put("k1", "k2", "k3", "k4")
        server.wait_for(3)
        one.courier.stop(0)
    one.courier.stop(10)
    one.outbox.hurry(one.address)
    assert [parcel.key for parcel in one.outbox.lease(one.address)] == ["k3", "k4"]


def test_a_stopped_courier_is_gone_soon(rig):
    """A stop between two parcels ends the thread at once."""
    with FakeServer() as server:
        one = rig(server)
        one.put("k1")
        assert one.courier.flush(10)
        before = time.monotonic()
        one.courier.stop(10)
        assert time.monotonic() - before < 1.0
        one.put("k2")
        assert one.outbox.counts() == Counts(pending=1)


def test_recording_does_not_wait_for_the_server(home):
    """A hung server does not make record slower."""
    with FakeServer(always=HANG) as server:
        client = ContextWrap(endpoint=server.url, token="t", home=home, exit_timeout=0)
        client.record(say("first"))
        server.wait_for(1)
        before = time.monotonic()
        for number in range(20):
            client.record(say(str(number)))
        assert time.monotonic() - before < 0.5
        assert client.shutdown().pending == 21


def test_exit_is_bounded_when_the_server_hangs(home):
    """Interpreter exit waits no longer than exit_timeout and a little, and what was not delivered stays on disk."""
    with FakeServer(always=HANG) as server:
        process = start(
            RECORD, "hi", CONTEXTWRAP_HOME=home, CONTEXTWRAP_ENDPOINT=server.url, CONTEXT_API_TOKEN="t",
            CONTEXTWRAP_EXIT_TIMEOUT="0.5",
        )  # fmt: skip
        out, err = process.communicate(timeout=30)
        ended = time.monotonic()
    assert process.returncode == 0, err
    assert "Traceback" not in err
    assert ended - float(out.split()[-1]) < 2.0
    (path,) = (home / "outbox").glob("*.sqlite")
    outbox = Outbox(path)
    assert outbox.counts() == Counts(pending=1)
    outbox.close()


def test_exit_delivers_what_waits(home):
    """A process that records and ends has delivered, when the server is there."""
    with FakeServer() as server:
        process = start(
            RECORD, "hi", CONTEXTWRAP_HOME=home, CONTEXTWRAP_ENDPOINT=server.url, CONTEXT_API_TOKEN="t",
            CONTEXTWRAP_EXIT_TIMEOUT="20",
        )  # fmt: skip
        _, err = process.communicate(timeout=30)
        assert err == ""
        assert texts(server.asked) == ["hi"]
    assert not list((home / "outbox").iterdir())


def test_the_next_process_delivers_what_a_dead_one_left(home):
    """What a killed process could not deliver arrives with the next process's own, and its file goes."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    killed(WAIT, "one", "two", CONTEXTWRAP_HOME=home, CONTEXTWRAP_ENDPOINT=url, CONTEXT_API_TOKEN="t")
    with FakeServer(port=port) as server, ContextWrap(endpoint=url, token="t", home=home) as client:
        client.record(say("three"))
        asked = server.wait_for(3)
        client.flush(5)
        assert sorted(texts(asked)) == ["one", "three", "two"]
        assert texts(asked).index("one") < texts(asked).index("two")
    assert not list((home / "outbox").iterdir())


def test_another_tokens_leftovers_stay(home):
    """What a dead process left for another token is not sent with this one's."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    killed(WAIT, "theirs", CONTEXTWRAP_HOME=home, CONTEXTWRAP_ENDPOINT=url, CONTEXT_API_TOKEN="other")
    with FakeServer(port=port) as server, ContextWrap(endpoint=url, token="t", home=home) as client:
        client.record(say("ours"))
        client.flush(10)
        client.flush(1)
        assert texts(server.asked) == ["ours"]
    assert len(list((home / "outbox").glob("*.sqlite"))) == 1
