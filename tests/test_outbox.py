"""The outbox: what was put survives, leaves in order, and belongs to one living process."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import threading
from contextlib import closing
from dataclasses import replace

import pytest
from processes import killed, run, start

from contextwrap.errors import OutboxCorruptError, OutboxError, OutboxFullError
from contextwrap.outbox import LOCAL, Counts, Held, Outbox, Parcel, outbox_files

PUT = """
    import pathlib, sys, time
    from contextwrap.outbox import Outbox, Parcel
    outbox = Outbox.create(pathlib.Path(sys.argv[1]))
    outbox.put([
        Parcel(key=f"k{n}", address="local", lane="a", method="POST", target="/t", body=b"{}", created_at=0.0)
        for n in range(3)
    ])
    print("ready", flush=True)
    time.sleep(60)
"""


VERSION_1 = """
    CREATE TABLE parcels (
        seq INTEGER PRIMARY KEY AUTOINCREMENT, key TEXT NOT NULL UNIQUE, address TEXT NOT NULL, lane TEXT NOT NULL,
        method TEXT NOT NULL, target TEXT NOT NULL, body BLOB NOT NULL, created_at REAL NOT NULL,
        due_at REAL NOT NULL DEFAULT 0, leased_until REAL NOT NULL DEFAULT 0, attempts INTEGER NOT NULL DEFAULT 0,
        reason TEXT, dead INTEGER NOT NULL DEFAULT 0
    ) STRICT;
    CREATE INDEX parcels_by_lane ON parcels (address, lane, seq) WHERE dead = 0;
    INSERT INTO parcels VALUES
        (1, 'k1', 'local', 'a', 'POST', '/t', X'7B7D', 5, 0, 9e9, 2, 'HTTP 500', 0),
        (2, 'k2', 'local', 'a', 'POST', '/t', X'7B7D', 5, 0, 0, 1, 'HTTP 400', 1),
        (3, 'k3', 'local', 'b', 'POST', '/t', X'7B7D', 5, 0, 0, 0, NULL, 0);
    PRAGMA user_version = 1;
"""


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def parcel(key, *, lane="a", address=LOCAL, body=b"{}"):
    """A parcel with that key."""
    return Parcel(key=key, address=address, lane=lane, method="POST", target="/t", body=body, created_at=5.0)


@pytest.fixture
def clock():
    """The clock of the outbox."""
    return Clock()


@pytest.fixture
def outbox(tmp_path, clock):
    """An outbox with a clock of its own."""
    box = Outbox(tmp_path / "box.sqlite", clock=clock)
    yield box
    box.close()


def taken(outbox, address=LOCAL, **options):
    """The keys of what can be leased now."""
    return [one.key for one in outbox.lease(address, **options)]


def test_what_was_put_comes_back_whole(outbox):
    """A leased parcel is the one that was put, bytes and all."""
    mine = parcel("k", body=b"\x00\xff{}")
    outbox.put([mine])
    (back,) = outbox.lease(LOCAL)
    assert replace(back, seq=0) == mine


def test_a_lease_is_exclusive_until_it_expires(outbox, clock):
    """A leased parcel is nobody else's until its lease is over."""
    outbox.put([parcel("k1"), parcel("k2", lane="b")])
    assert taken(outbox, limit=1, seconds=10) == ["k1"]
    assert taken(outbox, seconds=10) == ["k2"]
    clock.now += 9.9
    assert taken(outbox) == []
    clock.now += 0.2
    assert taken(outbox) == ["k1", "k2"]


def test_a_lane_keeps_its_order(outbox, clock):
    """A parcel waits while an older one of its lane is leased or deferred; other lanes go on."""
    outbox.put([parcel("a1"), parcel("a2"), parcel("b1", lane="b")])
    (first,) = outbox.lease(LOCAL, limit=1)
    assert taken(outbox) == ["b1"]
    outbox.defer([first.seq], seconds=30, reason="down")
    assert taken(outbox) == []
    clock.now += 31
    assert taken(outbox) == ["a1", "a2"]


def test_ack_forgets(outbox):
    """What has arrived is gone."""
    outbox.put([parcel("k1"), parcel("k2")])
    outbox.ack([one.seq for one in outbox.lease(LOCAL)])
    assert outbox.counts() == Counts()


def test_defer_counts_attempts_and_keeps_the_reason(outbox, clock):
    """A deferred parcel says how often it was tried and why it failed; one that was not tried counts none."""
    outbox.put([parcel("k1")])
    (one,) = outbox.lease(LOCAL)
    outbox.defer([one.seq], seconds=2, reason="HTTP 500")
    assert outbox.next_due(LOCAL) == clock.now + 2
    clock.now += 2
    (one,) = outbox.lease(LOCAL)
    assert (one.attempts, one.reason) == (1, "HTTP 500")
    outbox.defer([one.seq], seconds=0, reason=None, attempted=False)
    (one,) = outbox.lease(LOCAL)
    assert (one.attempts, one.reason) == (1, "HTTP 500")


def test_hurry_makes_everything_due(outbox):
    """A flush does not wait for what was put off, and touches no other address."""
    outbox.put([parcel("k1"), parcel("k2", address="other")])
    for address in (LOCAL, "other"):
        outbox.defer([one.seq for one in outbox.lease(address)], seconds=100, reason=None)
    outbox.hurry(LOCAL)
    assert taken(outbox) == ["k1"]
    assert taken(outbox, "other") == []


def test_a_buried_parcel_is_a_dead_letter(outbox):
    """A dead letter stays, with its reason, in nobody's way."""
    outbox.put([parcel("k1"), parcel("k2")])
    first, _ = outbox.lease(LOCAL, seconds=0)
    outbox.bury(first.seq, reason="HTTP 400")
    assert outbox.counts() == Counts(pending=1, dead=1)
    assert [(one.key, one.reason) for one in outbox.dead_letters()] == [("k1", "HTTP 400")]
    assert taken(outbox) == ["k2"]


def test_addresses_do_not_mix(outbox):
    """Each address leases and counts its own."""
    outbox.put([parcel("k1"), parcel("k2", address="other")])
    assert taken(outbox, "other") == ["k2"]
    assert outbox.counts(LOCAL) == Counts(pending=1)
    assert outbox.counts() == Counts(pending=2)
    assert outbox.next_due("nowhere") is None


def test_put_is_all_or_nothing(outbox):
    """When one of several parcels cannot be put, none is, and the outbox goes on."""
    with pytest.raises(OutboxError):
        outbox.put([parcel("k1"), replace(parcel("k2"), lane=None)])
    assert outbox.counts() == Counts()
    outbox.put([parcel("k1")])
    assert outbox.counts() == Counts(pending=1)


def test_a_full_disk_is_an_error_that_passes(outbox):
    """A put the disk has no room for is an OutboxError; with room again the outbox works."""
    (pages,) = outbox._db.execute("PRAGMA page_count").fetchone()
    outbox._db.execute(f"PRAGMA max_page_count = {pages + 1}")
    with pytest.raises(OutboxError, match="full"):
        outbox.put([parcel("big", body=b"x" * 1_000_000)])
    outbox._db.execute("PRAGMA max_page_count = 1000000")
    outbox.put([parcel("big", body=b"x" * 1_000_000)])
    assert taken(outbox) == ["big"]


def test_what_put_returned_for_survives_kill_9(tmp_path):
    """A process killed right after put leaves every parcel on disk."""
    killed(PUT, tmp_path)
    (path,) = outbox_files(tmp_path)
    outbox = Outbox(path)
    assert taken(outbox) == ["k0", "k1", "k2"]
    outbox.close()


def test_only_a_dead_process_is_inherited(tmp_path):
    """A living process's file cannot be adopted; a dead one's can, leases and all, by one only."""
    process = start(PUT, tmp_path)
    try:
        assert process.stdout.readline() == "ready\n"
        (path,) = outbox_files(tmp_path)
        beside = Outbox(path)
        assert len(beside.lease(LOCAL)) == 3
        beside.close()
        assert Outbox.adopt(path) is None
    finally:
        process.kill()
        process.communicate(timeout=30)
    heir = Outbox.adopt(path)
    assert heir is not None
    assert taken(heir) == ["k0", "k1", "k2"]
    assert Outbox.adopt(path) is None
    heir.close()


def test_an_empty_file_goes_and_a_full_one_stays(tmp_path):
    """Closing leaves nothing behind but what is still to be carried."""
    empty, full, dead = (Outbox.create(tmp_path) for _ in range(3))
    full.put([parcel("k")])
    dead.put([parcel("k")])
    dead.bury(dead.lease(LOCAL)[0].seq, reason="HTTP 400")
    for outbox in (empty, full, dead):
        outbox.close(discard_if_empty=True)
        outbox.close(discard_if_empty=True)
    assert set(outbox_files(tmp_path)) == {full.path, dead.path}
    assert not list(tmp_path.glob(f"{empty.path.stem}*"))


def test_a_newer_file_is_refused(tmp_path):
    """A file of a newer schema is left alone."""
    path = tmp_path / "box.sqlite"
    Outbox(path).close()
    with closing(sqlite3.connect(path)) as db, db:
        db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(OutboxError, match=f"{path} was written by a newer contextwrap"):
        Outbox(path)
    with pytest.raises(OutboxError):
        Outbox.adopt(path)
    with pytest.raises(OutboxError):
        Outbox.adopt(path)


def test_what_is_no_database_is_refused(tmp_path):
    """A file that is none of ours is an OutboxError that names it."""
    path = tmp_path / "box.sqlite"
    path.write_bytes(b"not a database, however long one reads on " * 50)
    with pytest.raises(OutboxCorruptError, match=f"cannot open the outbox {path}"):
        Outbox(path)


@pytest.mark.parametrize("damage", ["header", "middle", "cut"])
def test_a_damaged_file_is_set_aside_when_it_is_adopted(tmp_path, damage, caplog):
    """What SQLite cannot read is kept whole under another name, said once, and an empty file takes its place."""
    path = tmp_path / "box.sqlite"
    with closing(Outbox(path)) as outbox:
        outbox.put([parcel(f"k{number}", body=b"x" * 3000) for number in range(50)])
    whole = path.read_bytes()
    page = 4096
    damaged = {
        "header": b"\xff" * 100 + whole[100:],
        "middle": whole[:page] + b"\xff" * 40 * page + whole[41 * page :],
        "cut": whole[: len(whole) // 2],
    }[damage]
    path.write_bytes(damaged)
    heir = Outbox.adopt(path)
    assert heir is not None
    heir.put([parcel("new")])
    assert taken(heir) == ["new"]
    heir.close()
    assert (tmp_path / "box.sqlite.corrupt").read_bytes() == damaged
    assert len(caplog.records) == 1
    assert "box.sqlite.corrupt" in caplog.text


def test_a_folder_that_cannot_be_is_refused(tmp_path):
    """Where a file stands in the folder's place, the error names it in one line."""
    (tmp_path / "taken").write_text("")
    with pytest.raises(OutboxError, match="taken") as refusal:
        Outbox.create(tmp_path / "taken" / "outbox")
    assert "\n" not in str(refusal.value)


def test_a_closed_outbox_says_so(outbox):
    """Whatever is asked of a closed outbox is an OutboxError."""
    outbox.close()
    for ask in (lambda: outbox.put([parcel("k")]), lambda: outbox.lease(LOCAL), lambda: outbox.ack([1]), outbox.counts):
        with pytest.raises(OutboxError):
            ask()


def test_threads_share_an_outbox(outbox):
    """Threads that put and lease at once lose and repeat nothing."""
    found: list[str] = []

    def put(name):
        for number in range(50):
            outbox.put([parcel(f"{name}-{number}", lane=str(name))])

    def lease():
        for _ in range(100):
            leased = outbox.lease(LOCAL, limit=5)
            found.extend(one.key for one in leased)
            outbox.ack([one.seq for one in leased])

    workers = [threading.Thread(target=put, args=(name,)) for name in range(4)]
    workers += [threading.Thread(target=lease) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    found += taken(outbox, limit=1000)
    assert sorted(found) == sorted(f"{name}-{number}" for name in range(4) for number in range(50))


def test_two_processes_on_one_file(outbox):
    """Another process may lease and ack from a living process's file, as the server does."""
    outbox.put([parcel(f"k{n}", lane=str(n)) for n in range(10)])
    said = run(
        """
        import pathlib, sys
        from contextwrap.outbox import Outbox
        outbox = Outbox(pathlib.Path(sys.argv[1]), clock=lambda: 1000.0)
        found = outbox.lease("local", limit=6)
        outbox.ack([one.seq for one in found[:4]])
        print(*[one.key for one in found])
        outbox.close()
        """,
        outbox.path,
    )
    assert said.split() == [f"k{n}" for n in range(6)]
    assert outbox.counts() == Counts(pending=6)
    assert taken(outbox) == [f"k{n}" for n in range(4, 10)]


def test_one_carrier_at_a_time(outbox, clock):
    """While somebody leases to an address nobody else does; another address and a lapsed lease are free."""
    outbox.put([parcel("k1"), parcel("k2", address="other")])
    with closing(Outbox(outbox.path, clock=clock)) as beside:
        assert taken(outbox, seconds=10) == ["k1"]
        assert taken(beside) == []
        assert beside.next_due(LOCAL) == clock.now + 10
        assert taken(beside, "other") == ["k2"]
        clock.now += 11
        assert taken(beside) == ["k1"]
        assert taken(outbox) == []


def test_an_ack_that_comes_too_late_is_none(outbox, clock):
    """Who lost a lease cannot acknowledge, defer or bury what somebody else now carries, or what came in its place."""
    outbox.put([parcel("k1")])
    (late,) = outbox.lease(LOCAL, seconds=10)
    clock.now += 11
    with closing(Outbox(outbox.path, clock=clock)) as beside:
        (again,) = beside.lease(LOCAL)
        beside.ack([again.seq])
        beside.put([parcel("k2")])
        outbox.ack([late.seq])
        outbox.bury(late.seq, reason="no")
        assert (beside.counts(), taken(beside)) == (Counts(pending=1), ["k2"])


@pytest.mark.parametrize("jump", [-86_400, -7200, 7200, 86_400])
def test_a_clock_that_jumps_stops_nobody(outbox, clock, jump):
    """Leases, deferrals and holds written under a clock that was wrong do not outlast an hour."""
    outbox.put([parcel("k1"), parcel("k2", lane="b"), parcel("k3", lane="c")])
    first, second, _ = outbox.lease(LOCAL, limit=3)
    outbox.defer([first.seq], seconds=300, reason="down")
    outbox.hold(LOCAL, seconds=300, reason="down")
    clock.now += jump
    assert taken(outbox) == ["k1", "k2", "k3"]
    assert second.key == "k2"


def test_an_address_that_is_held_is_not_asked(outbox, clock):
    """Nothing is leased for it until the hold is over; it says since how many attempts and why; a flush lifts it."""
    outbox.put([parcel("k1"), parcel("k2", address="other")])
    assert outbox.held(LOCAL) == Held()
    for _ in range(2):
        outbox.hold(LOCAL, seconds=30, reason="HTTP 503")
    assert outbox.held(LOCAL) == Held(due_at=clock.now + 30, attempts=2, reason="HTTP 503")
    assert outbox.next_due(LOCAL) == clock.now + 30
    assert (taken(outbox), taken(outbox, "other")) == ([], ["k2"])
    outbox.hurry(LOCAL)
    assert taken(outbox) == ["k1"]
    outbox.reached(LOCAL)
    assert outbox.held(LOCAL) == Held()


def test_a_hold_survives_a_restart(tmp_path, clock):
    """Whoever opens the file next waits as long as its last carrier meant to."""
    path = tmp_path / "box.sqlite"
    with closing(Outbox(path, clock=clock)) as outbox:
        outbox.put([parcel("k1")])
        outbox.hold(LOCAL, seconds=30, reason="down")
    with closing(Outbox(path, clock=clock)) as outbox:
        assert taken(outbox) == []
        clock.now += 31
        assert taken(outbox) == ["k1"]


def test_a_full_outbox_refuses_the_newest(tmp_path):
    """At its limit a put is an OutboxFullError; what is in it can still be carried, and then there is room again."""
    with closing(Outbox(tmp_path / "box.sqlite", limit=400_000)) as outbox:
        put = 0

        def fill():
            nonlocal put
            for put in range(1000):
                outbox.put([parcel(f"k{put}", lane=str(put), body=b"x" * 5000)])

        with pytest.raises(OutboxFullError, match="limit of 397312 bytes"):
            fill()
        assert 50 < put < 90
        leased = outbox.lease(LOCAL, limit=1000)
        assert [one.key for one in leased] == [f"k{number}" for number in range(put)]
        for one in leased[:20]:
            outbox.bury(one.seq, reason="no")
        outbox.ack([one.seq for one in leased[20:]])
        assert outbox.counts() == Counts(dead=20)
        outbox.put([parcel("again", body=b"x" * 5000)])
    assert (tmp_path / "box.sqlite").stat().st_size < 600_000


def test_a_full_disk_is_not_taken_for_the_limit(outbox):
    """Where no limit was set, no room is the disk's."""
    outbox._db.execute("PRAGMA max_page_count = 20")
    with pytest.raises(OutboxError, match="full") as refusal:
        outbox.put([parcel("big", body=b"x" * 1_000_000)])
    assert not isinstance(refusal.value, OutboxFullError)


def test_readdressed_parcels_go_to_the_new_address(outbox):
    """All that waits for one address waits for another, in its order; dead letters stay where they are."""
    outbox.put([parcel("k1", address="old"), parcel("k2", address="old"), parcel("k3", address="new", lane="b")])
    outbox.bury(outbox.lease("old", limit=1)[0].seq, reason="no")
    assert outbox.readdress("old", "new") == 1
    assert taken(outbox, "new") == ["k2", "k3"]
    assert outbox.counts("old") == Counts(dead=1)


def test_a_revived_letter_waits_again(outbox):
    """A dead letter that is tried again comes behind what waits, as if never tried."""
    outbox.put([parcel("k1"), parcel("k2")])
    outbox.bury(outbox.lease(LOCAL, limit=1)[0].seq, reason="no")
    assert outbox.revive() == 1
    found = outbox.lease(LOCAL)
    assert [(one.key, one.attempts, one.reason) for one in found] == [("k2", 0, None), ("k1", 0, None)]
    assert outbox.counts() == Counts(pending=2)


def test_a_file_of_version_1_is_taken_over(tmp_path):
    """What an older contextwrap left waits on, tries, reasons and dead letters too; a living one's is left alone."""
    path = tmp_path / "box.sqlite"
    with closing(sqlite3.connect(path)) as db, db:
        db.executescript(VERSION_1)
    with pytest.raises(OutboxError, match="older contextwrap"):
        Outbox(path)
    heir = Outbox.adopt(path)
    assert heir is not None
    with closing(heir):
        tried, fresh = heir.lease(LOCAL)
        assert (tried.key, tried.body, tried.attempts, tried.reason) == ("k1", b"{}", 2, "HTTP 500")
        assert (fresh.key, fresh.attempts) == ("k3", 0)
        (letter,) = heir.dead_letters()
        assert (letter.key, letter.reason, letter.attempts) == ("k2", "HTTP 400", 1)


def test_a_child_of_fork_leaves_its_parents_file_alone(tmp_path):
    """A child that forsakes its parent's outbox takes neither its lock nor its file with it."""
    outbox = Outbox.create(tmp_path)
    outbox.put([parcel("before")])

    def child():
        outbox.forsake()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 0
    assert Outbox.adopt(outbox.path) is None
    outbox.put([parcel("after")])
    assert taken(outbox) == ["before", "after"]
    assert outbox._db.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    outbox.close()
    heir = Outbox.adopt(outbox.path)
    assert heir is not None
    heir.close()


def test_files_come_oldest_first(tmp_path):
    """The file that was written longest ago is the first to be looked at; one that goes meanwhile is no error."""
    boxes = [Outbox(tmp_path / f"{name}.sqlite") for name in "ab"]
    for box in boxes:
        box.close()
    os.utime(tmp_path / "b.sqlite", (1, 1))
    (tmp_path / "gone.sqlite").symlink_to(tmp_path / "nowhere")
    assert [path.name for path in outbox_files(tmp_path)] == ["b.sqlite", "a.sqlite"]


def test_every_parcel_can_be_looked_through(outbox):
    """Waiting and leased, of every address, oldest first, more than one page of them; then the dead."""
    keys = [f"k{number}" for number in range(250)]
    outbox.put([parcel(key, lane=key, address=LOCAL if number % 2 else "other") for number, key in enumerate(keys)])
    first, *_ = outbox.lease(LOCAL, limit=5)
    outbox.bury(first.seq, reason="HTTP 400")
    assert [one.key for one in outbox.parcels()] == [*(key for key in keys if key != first.key), first.key]


def test_the_outbox_works_while_it_is_looked_through(outbox):
    """What is put and what goes meanwhile disturbs nobody."""
    outbox.put([parcel(f"k{number}") for number in range(150)])
    leased = outbox.lease(LOCAL, limit=150)
    found = []
    for one in outbox.parcels():
        if not found:
            outbox.put([parcel("late")])
            outbox.ack([leased[148].seq])
        found.append(one.key)
    assert found == [*(f"k{number}" for number in range(150) if number != 148), "late"]


def test_a_purged_lane_is_gone_whole(outbox, tmp_path):
    """All parcels of a lane go, dead ones and those for other addresses too; other lanes stay."""
    outbox.put([parcel("a1"), parcel("a2"), parcel("a3", address="other"), parcel("b1", lane="b")])
    outbox.bury(outbox.lease(LOCAL, limit=1)[0].seq, reason="HTTP 400")
    assert outbox.purge({"a", "unknown"}) == 3
    assert outbox.counts() == Counts(pending=1)
    assert outbox.purge(set()) == 0
    assert taken(outbox) == ["b1"]


def test_a_scrubbed_file_holds_only_what_waits(outbox, tmp_path):
    """The bytes of what was purged or delivered are in no file any more; what waits, waits on."""
    bodies = {name: name.encode() * 2000 for name in ("purged", "delivered", "waiting")}
    outbox.put([parcel(name, lane=name, body=body) for name, body in bodies.items()])
    outbox.checkpoint()
    outbox.ack([one.seq for one in outbox.lease(LOCAL, seconds=0) if one.key == "delivered"])
    outbox.purge({"purged"})
    assert outbox.scrub()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    assert [name for name in bodies if name.encode() * 3 in kept] == ["waiting"]
    assert taken(outbox) == ["waiting"]


def test_a_scrub_says_when_somebody_reads(outbox):
    """While another connection holds the old pages the answer is False, and nothing is lost."""
    outbox.put([parcel("a1"), parcel("b1", lane="b")])
    with closing(sqlite3.connect(outbox.path, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM parcels").fetchall()
        outbox.purge({"a"})
        assert not outbox.scrub()
    assert outbox.scrub()
    assert taken(outbox) == ["b1"]


def test_a_scrub_waits_for_another_checkpoint(outbox, tmp_path):
    """Somebody who checkpoints all the time, as a courier does when idle, is waited for."""
    stop = threading.Event()

    def courier():
        while not stop.wait(0.001):
            outbox.lease(LOCAL)
            outbox.checkpoint()

    worker = threading.Thread(target=courier)
    worker.start()
    try:
        with closing(Outbox(outbox.path)) as beside:
            for number in range(50):
                outbox.put([parcel(f"k{number}", body=b"words of ada")])
                beside.purge({"a"})
                assert beside.scrub(seconds=10)
                assert not [path for path in tmp_path.iterdir() if b"words of ada" in path.read_bytes()]
    finally:
        stop.set()
        worker.join()
