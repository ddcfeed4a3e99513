"""What a fork waits for: that no thread of ours is in the middle of what a child could never end.

A child of fork has every lock as it was, and of the threads that held them only its own: a module that was being
imported, SQLite's own mutexes. Whoever imports or opens there would wait for ever. The host forks when it likes; so
`settled` is held over such things, and a fork takes it, and all locks of those `registered`, before it goes on.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from typing import TYPE_CHECKING, Any, Final, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterator

# A disk that hangs is no reason for the host's fork to hang.
_LONGEST_WAIT: Final = 5.0


class Quietable(Protocol):
    """What has locks of its own, in the order they are taken."""

    @property
    def locks(self) -> tuple[Any, ...]:
        """Each is a threading lock."""
        ...


settled: Final = threading.RLock()
"""Held while something of ours is imported or opened."""


def register(thing: Quietable) -> None:
    """From now on a fork waits for its locks. Call it with `settled` held."""
    _registered.add(thing)


def _locks() -> Iterator[Any]:
    yield settled
    # Nobody registers now.
    for thing in list(_registered):
        yield from thing.locks


def _before() -> None:
    deadline = time.monotonic() + _LONGEST_WAIT
    held = _held[threading.get_ident()] = []
    held.extend(lock for lock in _locks() if lock.acquire(timeout=max(0.0, deadline - time.monotonic())))


def _after() -> None:
    for lock in reversed(_held.pop(threading.get_ident(), [])):
        lock.release()


_registered: weakref.WeakSet[Quietable] = weakref.WeakSet()
_held: dict[int, list[Any]] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before, after_in_parent=_after, after_in_child=_after)
