"""Many processes, many parcels, clocks that jump: the promise holds, and nothing grows out of hand."""

from __future__ import annotations

import time
from contextlib import closing
from datetime import UTC, datetime, timedelta

import pytest
from processes import start

from contextwrap.boxfiles import outbox_files
from contextwrap.client import ContextWrap
from contextwrap.courier import Courier
from contextwrap.keeping import FlushResult
from contextwrap.model import Conversation, Log, Message, Route
from contextwrap.outbox import Counts, Outbox, Parcel
from contextwrap.transport import Delivered

PROCESSES = 8
BACKLOG = 200_000

TALK = """
    import os, signal, sys, threading
    import contextwrap
    from contextwrap.client import default_client
    from contextwrap.model import Conversation, Message

    name, end = sys.argv[1], sys.argv[2]

    def say(thread, turns):
        for turn in range(turns):
            row = Message(role="user", message=str(turn))
            default_client().record(Conversation(id=thread, metadata={"user_id": thread}, messages=(row,)))

    workers = [threading.Thread(target=say, args=(f"{name}-{number}", 50)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if end == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    if end == "flushed":
        assert contextwrap.flush(60).pending == 0
"""


class Counting:
    """A server that takes everything, and says in which order."""

    def __init__(self):
        self.keys = []

    def load(self):
        """Nothing to get ready."""

    def send(self, parcels):
        """All of them."""
        self.keys += [parcel.key for parcel in parcels]
        return [Delivered()] * len(parcels)

    def close(self):
        """Nothing is open."""


def test_eight_processes_on_one_home(tmp_path, server, stored):
    """Eight processes record in 32 threads at once and end in three ways: each thread arrives whole, under its user."""
    environ = {
        "CONTEXTWRAP_HOME": tmp_path,
        **server.environ,
        "CONTEXTWRAP_EXIT_TIMEOUT": 0.2,
    }
    ends = ["killed", "flushed", "ended"]
    some = [start(TALK, f"many-{number}", ends[number % 3], **environ) for number in range(PROCESSES)]
    for number, process in enumerate(some):
        _, err = process.communicate(timeout=100)
        assert process.returncode == (-9 if ends[number % 3] == "killed" else 0), err
    with ContextWrap(endpoint=server.url, token=server.key, home=tmp_path) as client:
        assert client.flush(60).pending == 0
    stored.settle()
    names = [f"many-{number}-{thread}" for number in range(PROCESSES) for thread in range(4)]
    assert stored.threads("many-") == {name: [str(turn) for turn in range(50)] for name in names}
    assert not outbox_files(tmp_path / "outbox")


def filled(path, number):
    """An outbox of so many parcels, in lanes of four."""
    outbox = Outbox(path, checkpoints=False)
    for begin in range(0, number, 5000):
        outbox.put(
            Parcel(
                key=f"k{one}", address="there", lane=f"lane{one // 4}", method="POST", target="/t", body=b"x" * 600,
                created_at=0.0,
            )
            for one in range(begin, min(number, begin + 5000))
        )  # fmt: skip
    outbox.checkpoint()
    return outbox


def cpu(do):
    """Seconds of CPU it takes, at best of three."""
    best = float("inf")
    for _ in range(3):
        begun = time.thread_time()
        do()
        best = min(best, time.thread_time() - begun)
    return best


def test_a_long_backlog_costs_no_more_a_parcel(tmp_path):
    """From 200,000 parcels a batch is leased and one is put about as fast as from 1,000; all are carried in order."""
    costs = {}
    for number in (1000, BACKLOG):
        with closing(filled(tmp_path / f"{number}.sqlite", number)) as outbox:

            def lease(outbox=outbox):
                leased = outbox.lease("there", limit=500)
                outbox.defer([one.seq for one in leased], seconds=0, reason=None, attempted=False)

            def put(outbox=outbox):
                for one in range(100):
                    outbox.put(
                        [Parcel(key=f"n{one}", address="x", lane="", method="", target="", body=b"", created_at=0)]
                    )

            costs[number] = cpu(lease), cpu(put)
            assert outbox.counts("there") == Counts(pending=number)
    for few, many in zip(costs[1000], costs[BACKLOG], strict=True):
        assert many < 10 * few
    (tmp_path / "outbox").mkdir()
    (tmp_path / f"{BACKLOG}.sqlite").rename(tmp_path / "outbox" / "1-left.sqlite")
    counting = Counting()
    courier = Courier(folder=tmp_path / "outbox", outbox=None, address="there", transport=counting)
    assert courier.flush(100)
    courier.stop(10)
    assert counting.keys == [f"k{one}" for one in range(BACKLOG)]
    assert courier.delivered == BACKLOG


@pytest.mark.parametrize("batches", [True, False], ids=["batches", "one by one"])
def test_a_rating_that_another_process_sends_first_waits_for_its_message(tmp_path, server, stored, batches):
    """Feedback taken by another worker than the answer's is applied when the answer has arrived, whoever was first."""
    name = f"early-{batches}"
    settings = {"endpoint": server.url, "token": server.key}
    with ContextWrap(home=tmp_path / "rates", **settings) as rates:
        assert rates.rate(-1, message=f"{name}-answer", feedback="no")
        if batches:
            assert rates.rate(1, message=f"{name}-other")
        # It is not a reason to keep whoever ends waiting.
        assert rates.flush(0.5).pending == 1 + batches
        rows = (Message(role="assistant", message=text, id=f"{name}-{text}") for text in ("answer", "other"))
        with ContextWrap(home=tmp_path / "says", **settings) as says:
            says.record(Conversation(id=name, metadata={"user_id": name}, messages=tuple(rows)))
            assert says.flush(20).pending == 0
        assert rates.flush(20) == FlushResult(delivered=1 + batches, pending=0, dead=0)
    stored.settle()
    assert stored.ratings(name) == [-1, 1 if batches else 0]


def test_a_rating_of_what_nobody_has_ever_said_becomes_a_dead_letter(tmp_path, server):
    """After ten minutes it is refused for good, with the server's reason; until then it holds up no exit."""
    now = datetime.now(UTC)
    clocks = {"then": now - timedelta(minutes=11), "now": now}
    left = {}
    for name, at in clocks.items():
        client = ContextWrap(endpoint=server.url, token=server.key, home=tmp_path / name, clock=lambda at=at: at)
        assert client.rate(1, message="nobody-said-this")
        before = time.monotonic()
        left[name] = client.shutdown()
        assert time.monotonic() - before < 1.5
    assert (left["then"].dead, left["then"].pending) == (1, 0)
    assert (left["now"].dead, left["now"].pending) == (0, 1)


@pytest.mark.parametrize("jump", [-86_400.0, -3000.0, 3000.0, 86_400.0])
def test_a_clock_that_was_wrong_delays_nobody_for_long(tmp_path, server, stored, jump):
    """What was left under another clock, held back and leased, is delivered by who flushes under the right one."""
    name = f"clock{jump:+.0f}"
    with ContextWrap(endpoint=server.url, token=server.key, home=tmp_path) as client:
        address = client.settings.address
        settings = client.settings
    (tmp_path / "outbox").mkdir(exist_ok=True)
    with closing(Outbox(tmp_path / "outbox" / "1-left.sqlite", clock=lambda: time.time() + jump)) as outbox:
        for turn in range(3):
            row = Message(role="user", message=str(turn))
            log = Log(
                route=Route.THREAD, conversation=Conversation(id=name, metadata={"user_id": "u"}, messages=(row,))
            )
            request = log.to_request()
            outbox.put(
                [
                    Parcel(
                        key=f"{name}-{turn}", address=address, lane=name, method=request.method,
                        target=request.target, body=request.body, created_at=time.time() + jump,
                    )
                ]
            )  # fmt: skip
        leased = outbox.lease(address, limit=1)
        outbox.defer([one.seq for one in leased], seconds=300, reason="down")
        outbox.hold(address, seconds=300, reason="down")
    with ContextWrap(endpoint=server.url, token=settings.token, home=tmp_path) as client:
        left = client.flush(30)
        assert (left.delivered, left.pending) == (3, 0)
    stored.settle()
    assert stored.thread(name) == ["0", "1", "2"]
