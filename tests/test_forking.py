"""Forks: one waits for what a child could never end, and never for long."""

from __future__ import annotations

import os
import threading
import time

from contextwrap import forking


def ended(pid):
    """How the child ended."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def test_a_fork_waits_for_what_is_being_imported_or_opened():
    """While a thread of ours is in the middle of such a thing there is no child; afterwards there is."""
    holds, over, forked = threading.Event(), threading.Event(), []

    def hold():
        with forking.settled:
            holds.set()
            over.wait(10)

    def fork():
        pid = os.fork()
        if pid == 0:
            os._exit(0)
        forked.append(pid)

    holder, forker = threading.Thread(target=hold), threading.Thread(target=fork)
    holder.start()
    assert holds.wait(5)
    forker.start()
    forker.join(0.2)
    assert not forked
    over.set()
    forker.join(5)
    holder.join(5)
    assert [ended(pid) for pid in forked] == [0]


def test_a_child_finds_every_lock_free():
    """What a fork took is given back on both sides, also a registered thing's locks."""

    class Thing:
        def __init__(self) -> None:
            self.locks = (threading.RLock(), threading.Lock())

    thing = Thing()
    with forking.settled:
        forking.register(thing)
    pid = os.fork()
    free = [lock.acquire(timeout=5) for lock in (forking.settled, *thing.locks)]
    if pid == 0:
        os._exit(0 if all(free) else 1)
    for lock in (forking.settled, *thing.locks):
        lock.release()
    assert all(free)
    assert ended(pid) == 0


def test_a_disk_that_hangs_does_not_hang_the_hosts_fork(monkeypatch):
    """A lock that is never given back costs a fork so much and no more."""
    monkeypatch.setattr(forking, "_LONGEST_WAIT", 0.2)
    holds, over = threading.Event(), threading.Event()

    def hold():
        with forking.settled:
            holds.set()
            over.wait(30)

    holder = threading.Thread(target=hold)
    holder.start()
    assert holds.wait(5)
    before = time.monotonic()
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    took = time.monotonic() - before
    over.set()
    holder.join(5)
    assert ended(pid) == 0
    assert took < 5
