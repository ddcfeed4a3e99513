"""The way of a parcel into the store: once, in order, and never lost."""

from __future__ import annotations

import json
import logging
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import pytest
from saying import bot, conversation, everything, rating, texts, thread, user

from contextwrap.analytics.pipeline import Drained, Pipeline
from contextwrap.errors import ContextwrapError
from contextwrap.outbox import LOCAL, Counts, Outbox, Parcel
from contextwrap.store.duckdb import DuckDBStore

PATIENCE = 20.0
AT = 1_777_000_000.0


@pytest.fixture
def place(tmp_path):
    """A home's folders."""
    (tmp_path / "server").mkdir()
    (tmp_path / "outbox").mkdir()
    return tmp_path


@pytest.fixture
def store(place):
    """An empty store."""
    opened = DuckDBStore.open(place / "server" / "store.duckdb")
    yield opened
    opened.close()


@pytest.fixture
def journal(place):
    """An empty journal."""
    opened = Outbox.adopt(place / "server" / "journal.sqlite")
    yield opened
    opened.close()


@pytest.fixture
def pipeline(place, store, journal):
    """A pipeline over both and the folder of outboxes; not started."""
    made = Pipeline(store=store, journal=journal, outboxes=place / "outbox")
    yield made
    made.stop()


class Failing:
    """A store that fails for as long as it is told to, or for keys it is told; else the real one."""

    def __init__(self, store):
        self.store, self.down, self.poison = store, False, set()

    def apply(self, entries):
        """Fail, or apply."""
        if self.down or self.poison & {entry.key for entry in entries}:
            raise ContextwrapError("the disk is full\nreally")
        return self.store.apply(entries)


def parcel(key, call, *, address=LOCAL, lane=""):
    """The parcel of a log call."""
    request = call.to_request()
    return Parcel(
        key=key,
        address=address,
        lane=lane,
        method=request.method,
        target=request.target,
        body=request.body,
        created_at=AT,
    )


def left_behind(folder, *parcels):
    """The outbox file of a process that is no more."""
    outbox = Outbox.create(folder)
    outbox.put(parcels)
    outbox.close()
    return outbox.path


def eventually(true):
    """Wait for something another thread or process does."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.01)


def test_the_journal_is_stored_in_order_and_acknowledged(pipeline, journal, store):
    """Parcels become conversations in the order they came, timed by when they were logged; nothing stays behind."""
    journal.put(
        [parcel("a", thread("t", user("1"))), parcel("b", thread("t", bot("2", id="m"))), parcel("c", rating("m", 1))]
    )
    assert pipeline.depth() == 3
    assert pipeline.drain() == Drained(applied=3)
    assert (journal.counts(), pipeline.depth()) == (Counts(), 0)
    found = store.conversation("t")
    assert texts(found) == ["1", "2"]
    assert (found.messages[1].rating, found.started_at.timestamp()) == (1, AT)


def test_more_than_a_batch_keeps_its_order(pipeline, journal, store):
    """A long thread cut over several batches reads as it was logged."""
    journal.put([parcel(f"k{number}", thread("t", user(str(number)))) for number in range(2500)])
    assert pipeline.drain() == Drained(applied=2500)
    assert texts(store.conversation("t")) == [str(number) for number in range(2500)]


def test_what_was_stored_but_not_acknowledged_is_a_duplicate(pipeline, journal, store):
    """A parcel that comes again under its key changes nothing and is acknowledged."""
    journal.put([parcel("a", conversation(user("1")))])
    pipeline.drain()
    journal.put([parcel("a", conversation(user("1")))])
    assert pipeline.drain() == Drained(duplicates=1)
    assert (journal.counts(), len(everything(store))) == (Counts(), 1)


@pytest.mark.parametrize(
    ("method", "target", "body", "reason"),
    [
        ("POST", "/api/v1/log/conversation", b"{", "not JSON"),
        ("POST", "/api/v1/log/conversation", b'{"conversation":{"messages":[]}}', "at least one message"),
        ("POST", "/api/v1/elsewhere", b"{}", "not a log route"),
        ("POST", "/api/v1/log/conversation", b"[" * 100_000, "not JSON"),
        ("POST", "/api/v1/log/conversation", b"\xff\xfe\xfa", ""),
        ("POST", "//[", b"{}", ""),
    ],
)
def test_what_does_not_parse_is_a_dead_letter(pipeline, journal, store, method, target, body, reason):
    """Its reason is kept, and what stands around it is stored."""
    bad = Parcel(key="bad", address=LOCAL, lane="", method=method, target=target, body=body, created_at=AT)
    journal.put([parcel("a", conversation(user("1"))), bad, parcel("b", conversation(user("2")))])
    assert pipeline.drain() == Drained(applied=2, dead=1)
    (letter,) = journal.dead_letters()
    assert letter.key == "bad"
    assert reason in letter.reason
    assert "\n" not in letter.reason
    assert len(everything(store)) == 2


def test_a_rating_of_nothing_known_is_a_dead_letter(pipeline, journal):
    """It is looked at again in case its message comes, then kept with its reason."""
    journal.put([parcel("r", rating("nobody", 1)), parcel("a", conversation(user("1")))])
    drained = pipeline.drain()
    assert (drained.applied, drained.dead, drained.failed) == (1, 1, 0)
    assert [letter.reason for letter in journal.dead_letters()] == ["rates something unknown"]


def test_a_rating_waits_for_its_message_in_an_outbox_read_later(pipeline, place, store):
    """Two processes' outboxes may be read in the wrong order; the rating still finds its message."""
    first = left_behind(place / "outbox", parcel("r", rating("m", 1)))
    second = left_behind(place / "outbox", parcel("a", thread("t", bot("x", id="m"))))
    os.utime(first, (1, 1))
    os.utime(second, (2, 2))
    drained = pipeline.drain()
    assert (drained.applied, drained.dead) == (2, 0)
    assert store.conversation("t").messages[0].rating == 1


def test_a_dead_processs_outbox_is_taken_over_and_removed(pipeline, place, store):
    """Nothing of an emptied file stays."""
    left_behind(place / "outbox", parcel("a", conversation(user("1"))))
    assert pipeline.drain() == Drained(applied=1)
    assert list((place / "outbox").iterdir()) == []
    assert len(everything(store)) == 1


def test_what_goes_elsewhere_is_left_alone(pipeline, place, store):
    """Parcels for an endpoint stay untouched in their file, which stays free for whoever delivers them."""
    path = left_behind(
        place / "outbox",
        parcel("a", conversation(user("1"))),
        parcel("b", conversation(user("2")), address="https://x#1"),
    )
    assert pipeline.drain() == Drained(applied=1)
    assert pipeline.drain() == Drained()
    outbox = Outbox.adopt(path)
    assert [(left.key, left.attempts) for left in outbox.lease("https://x#1")] == [("b", 0)]
    outbox.close()
    assert len(everything(store)) == 1


def test_a_dead_letter_keeps_its_file(pipeline, place):
    """A file with a dead letter in it is not removed."""
    bad = Parcel(key="bad", address=LOCAL, lane="", method="POST", target="/", body=b"", created_at=AT)
    path = left_behind(place / "outbox", bad)
    assert pipeline.drain() == Drained(dead=1)
    outbox = Outbox.adopt(path)
    assert outbox.counts() == Counts(dead=1)
    outbox.close()


def test_a_living_outbox_is_read_where_it_lies(pipeline, place, store):
    """The file of a process that goes on stays its own, also while more comes in, and goes when its owner goes."""
    outbox = Outbox.create(place / "outbox")
    outbox.put([parcel("a", thread("t", user("1")))])
    assert pipeline.drain() == Drained(applied=1)
    outbox.put([parcel("b", thread("t", bot("2")))])
    assert pipeline.drain() == Drained(applied=1)
    assert (outbox.counts(), texts(store.conversation("t"))) == (Counts(), ["1", "2"])
    outbox.close()
    assert pipeline.drain() == Drained()
    assert list((place / "outbox").iterdir()) == []


def test_a_corrupt_outbox_does_not_stop_the_others(pipeline, place, store, caplog):
    """It is named once and left as it is."""
    (place / "outbox" / "0-bad.sqlite").write_bytes(b"not a database, certainly not" * 100)
    left_behind(place / "outbox", parcel("a", conversation(user("1"))))
    with caplog.at_level(logging.WARNING, logger="contextwrap"):
        assert pipeline.drain() == Drained(applied=1)
        left_behind(place / "outbox", parcel("b", conversation(user("2"))))
        assert pipeline.drain() == Drained(applied=1)
    assert len([record for record in caplog.records if "0-bad.sqlite" in record.getMessage()]) == 1
    assert len(everything(store)) == 2


def test_a_file_that_breaks_while_open_is_let_go(pipeline, place, store, caplog):
    """A table that is gone is one file's trouble."""
    path = left_behind(place / "outbox", parcel("a", conversation(user("1"))))
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("DROP TABLE parcels")
    left_behind(place / "outbox", parcel("b", conversation(user("2"))))
    assert pipeline.drain() == Drained(applied=1)
    assert path.name in caplog.text


def test_a_store_that_fails_loses_nothing(place, store, journal, caplog):
    """The batch goes back, one line is logged, and it is stored when the store is well again."""
    failing = Failing(store)
    pipeline = Pipeline(store=failing, journal=journal, outboxes=None)
    failing.down = True
    journal.put([parcel(f"k{number}", thread("t", user(str(number)))) for number in range(3)])
    assert pipeline.drain() == Drained(failed=3)
    assert journal.counts() == Counts(pending=3)
    assert [record.getMessage() for record in caplog.records] == [
        "contextwrap: 3 parcels not stored yet: ContextwrapError: the disk is full"
    ]
    failing.down = False
    assert pipeline.drain() == Drained(applied=3)
    assert texts(store.conversation("t")) == ["0", "1", "2"]


def test_one_parcel_the_store_refuses_does_not_hold_up_the_rest(store, journal):
    """What fails again and again while others are stored becomes a dead letter."""
    failing = Failing(store)
    failing.poison = {"k1"}
    pipeline = Pipeline(store=failing, journal=journal, outboxes=None)
    journal.put([parcel("k1", conversation(user("bad")))])
    for round_ in range(3):
        journal.put([parcel(f"good{round_}", conversation(user("x")))])
        assert pipeline.drain().applied == 1
    assert journal.counts() == Counts(dead=1)
    (letter,) = journal.dead_letters()
    assert (letter.key, letter.reason) == ("k1", "the store refuses it: ContextwrapError: the disk is full")


def test_the_thread_carries_what_comes(pipeline, journal, place, store):
    """Once started, journal and outboxes are read by themselves; stopping twice is stopping once."""
    pipeline.start()
    journal.put([parcel("a", thread("t", user("1")))])
    assert pipeline.settle(PATIENCE)
    assert texts(store.conversation("t")) == ["1"]
    outbox = Outbox.create(place / "outbox")
    outbox.put([parcel("b", thread("u", user("2")))])
    eventually(lambda: store.conversation("u") is not None)
    pipeline.stop()
    pipeline.stop()
    outbox.close()


def test_who_settles_reads_what_was_written(pipeline, journal, store):
    """After each settle the journal's parcels are there, while another writer never pauses."""
    pipeline.start()
    for number in range(20):
        journal.put([parcel(f"noise{number}-{index}", conversation(user("n"))) for index in range(5)])
        journal.put([parcel(f"k{number}", thread(f"t{number}", user("x")))])
        assert pipeline.settle(PATIENCE)
        assert store.conversation(f"t{number}") is not None


def test_settling_fails_in_time_when_the_store_does(store, journal):
    """A store that is down makes settle say so after its timeout; the thread lives on and makes up for it."""
    failing = Failing(store)
    failing.down = True
    pipeline = Pipeline(store=failing, journal=journal, outboxes=None)
    pipeline.start()
    journal.put([parcel("a", conversation(user("1")))])
    assert not pipeline.settle(0.2)
    failing.down = False
    eventually(lambda: pipeline.depth() == 0)
    assert pipeline.settle(0)
    pipeline.stop()
    assert len(everything(store)) == 1


def test_a_stopped_pipeline_can_still_be_drained(pipeline, journal, store):
    """What came after the stop is carried by whoever asks."""
    pipeline.start()
    pipeline.stop()
    journal.put([parcel("a", conversation(user("1")))])
    assert pipeline.drain() == Drained(applied=1)


WRITER = """
import sys
from pathlib import Path
from contextwrap.outbox import LOCAL, Outbox, Parcel
outbox = Outbox.create(Path(sys.argv[1]))
for number in range(int(sys.argv[2])):
    body = b'{"conversation":{"id":"t%d","messages":[{"role":"user","message":"x"}]}}' % (number % 50)
    outbox.put([Parcel(key=f"{sys.argv[3]}-{number}", address=LOCAL, lane=str(number % 50), method="POST",
                       target="/api/v1/log/conversation/thread", body=body, created_at=1.0)])
print("done", flush=True)
sys.stdin.read()
"""


def test_living_processes_write_while_it_drains(pipeline, place, store):
    """Several processes append as fast as they can; everything arrives once, and their files stay theirs."""
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(place / "outbox"), "1000", str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for number in range(2)
    ]
    pipeline.start()
    try:
        for writer in writers:
            assert writer.stdout.readline() == b"done\n"
        eventually(lambda: store.totals().messages == 2000)
        assert len(list((place / "outbox").glob("*.sqlite"))) == 2
    finally:
        for writer in writers:
            writer.kill()
            writer.communicate()
    eventually(lambda: list((place / "outbox").iterdir()) == [])
    assert store.totals().messages == 2000


DRAINER = """
import sys
from pathlib import Path
from contextwrap.analytics import pipeline as module
from contextwrap.outbox import Outbox
from contextwrap.store.duckdb import DuckDBStore
module.BATCH = 7
home = Path(sys.argv[1])
store = DuckDBStore.open(home / "server" / "store.duckdb")
made = module.Pipeline(store=store, journal=Outbox.adopt(home / "server" / "journal.sqlite"), outboxes=home / "outbox")
apply = store.apply
def counted(entries):
    result = apply(entries)
    print(result.applied, flush=True)
    return result
store.apply = counted
made.drain()
"""


def test_a_killed_server_stores_everything_once(place):
    """Killed with -9 in the middle of draining, again and again: at the end all is there exactly once and in order."""
    journal = Outbox.adopt(place / "server" / "journal.sqlite")
    journal.put([parcel(f"j{number}", thread(f"t{number % 9}", user(f"{number}"))) for number in range(300)])
    journal.close()
    left_behind(
        place / "outbox", *(parcel(f"o{number}", thread(f"u{number % 9}", user(f"{number}"))) for number in range(300))
    )
    for after in (1, 5, 20, 25):
        process = subprocess.Popen([sys.executable, "-c", DRAINER, str(place)], stdout=subprocess.PIPE)
        for _ in range(after):
            process.stdout.readline()
        process.send_signal(signal.SIGKILL)
        process.communicate()
    store = DuckDBStore.open(place / "server" / "store.duckdb")
    journal = Outbox.adopt(place / "server" / "journal.sqlite")
    assert store.totals().messages < 600
    pipeline = Pipeline(store=store, journal=journal, outboxes=place / "outbox")
    drained = pipeline.drain()
    assert (drained.dead, drained.failed) == (0, 0)
    for prefix in "tu":
        for number in range(9):
            assert texts(store.conversation(f"{prefix}{number}")) == [str(n) for n in range(number, 300, 9)]
    assert store.totals().messages == 600
    pipeline.stop()
    journal.close()
    store.close()


def test_bodies_of_any_client_are_read(pipeline, journal, store):
    """A body written by hand, without ids and times, is sealed by its key alone."""
    body = json.dumps({"conversation": {"messages": [{"role": "user", "message": "\ud800"}]}}).encode()
    journal.put(
        [
            Parcel(
                key="a",
                address=LOCAL,
                lane="",
                method="POST",
                target="/api/v1/log/conversation",
                body=body,
                created_at=AT,
            )
        ]
    )
    assert pipeline.drain() == Drained(applied=1)
    (found,) = everything(store)
    assert (found.messages[0].message, found.messages[0].event_timestamp.timestamp()) == ("\ufffd", AT)
