"""The window of durability "background": in order, all of it, written soon, and nobody's exception."""

from __future__ import annotations

import threading

from processes import run

from contextwrap.outbox import LOCAL, Parcel
from contextwrap.window import Window


class Shelf:
    """Where a window writes: keeps the keys of each write, fails when it is told to."""

    def __init__(self) -> None:
        self.writes: list[list[str]] = []
        self.written = threading.Event()
        self.fails = False
        self.lost: list[str] = []

    def __call__(self, parcels):
        if self.fails:
            raise OSError("no space left")
        self.writes.append([parcel.key for parcel in parcels])
        self.written.set()

    @property
    def keys(self):
        """All that was written, in order."""
        return [key for write in self.writes for key in write]


def parcel(key):
    """A parcel with that key."""
    return Parcel(key=key, address=LOCAL, lane="a", method="POST", target="/t", body=b"{}", created_at=5.0)


def window(shelf):
    """One that writes there."""
    return Window(shelf, lost=shelf.lost.append)


def test_what_is_put_is_written_without_being_asked():
    """One put alone reaches the disk."""
    shelf = Shelf()
    there = window(shelf)
    there.put(parcel("k"))
    assert shelf.written.wait(5)
    assert shelf.keys == ["k"]
    there.close()


def test_many_threads_lose_nothing_and_each_keeps_its_order():
    """Four threads put at once; every parcel is written once, and in its thread's order."""
    shelf = Shelf()
    there = window(shelf)

    def talk(name):
        for number in range(500):
            there.put(parcel(f"{name}-{number}"))

    threads = [threading.Thread(target=talk, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    there.close()
    assert len(shelf.keys) == 2000
    for name in "abcd":
        assert [key for key in shelf.keys if key.startswith(name)] == [f"{name}-{number}" for number in range(500)]


def test_emptying_writes_what_is_there_at_once():
    """When `empty` returns, all that was put before it is written, in one write or in more."""
    shelf = Shelf()
    there = window(shelf)
    for number in range(100):
        there.put(parcel(str(number)))
    there.empty()
    assert shelf.keys == [str(number) for number in range(100)]
    there.close()


def test_closing_ends_the_thread_and_writes_the_rest():
    """A closed window has written all and leaves no thread."""
    shelf = Shelf()
    there = window(shelf)
    there.put(parcel("k"))
    there.close()
    assert shelf.keys == ["k"]
    assert not [one for one in threading.enumerate() if one.name == "contextwrap-window"]


def test_a_write_that_fails_is_counted_by_parcel_and_the_next_one_goes_on():
    """What could not be written is lost with its reason, once each; what comes later is written."""
    shelf = Shelf()
    shelf.fails = True
    there = window(shelf)
    there.put(parcel("a"))
    there.put(parcel("b"))
    there.empty()
    shelf.fails = False
    there.put(parcel("c"))
    there.close()
    assert shelf.lost == ["background: OSError"] * 2
    assert shelf.keys == ["c"]


def test_a_process_that_ends_empties_it(home):
    """An exit without a word of ours, also of a child of multiprocessing, writes what is in the window."""
    said = """
        import multiprocessing, os, sys
        import contextwrap

        def work():
            contextwrap.configure(home=sys.argv[1], durability="background")
            with contextwrap.session(user_id=str(os.getpid())) as here:
                here.add_message("user", "hi")

        if __name__ == "__main__":
            child = multiprocessing.get_context("fork").Process(target=work)
            child.start()
            child.join()
            work()
    """
    run(said, home)
    from parcels import conversations

    assert len({one.user_id for one in conversations(home)}) == 2
