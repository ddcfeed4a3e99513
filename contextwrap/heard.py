"""What each thread has heard of late, so that a turn which brings the whole history adds only what is new.

Remembers marks, not words, of a bounded number of messages in a bounded number of threads, in this process.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from contextwrap.model import Message

MAX_THREADS: Final = 10_000
MAX_MARKS: Final = 256


@dataclass(slots=True)
class Memory:
    """Marks of one thread: what is said once only (the system's words, a state's answers), and all else in order."""

    spoken: list[int] = field(default_factory=list)
    once: OrderedDict[int, None] = field(default_factory=OrderedDict)

    def first_time(self, mark: int) -> bool:
        """Whether this is said for the first time."""
        if mark in self.once:
            return False
        self.once[mark] = None
        if len(self.once) > MAX_MARKS:
            self.once.popitem(last=False)
        return True


class Heard:
    """The memories of all threads of one client; the one that is silent for longest is forgotten first."""

    def __init__(self) -> None:
        self._threads: OrderedDict[str, Memory] = OrderedDict()
        self._lock = threading.Lock()

    def news(self, thread: str, said: tuple[Message, ...], then: tuple[Message, ...]) -> tuple[Message, ...]:
        """What `said` adds to what the thread has heard; `then` is what was answered to it.

        The head of `said` may repeat the longest tail that is known: whole histories, windows and single
        turns all come out right. A summarised history is new.
        """
        with self._lock:
            memory = self._memory(thread)
            spoken = [message for message in said if message.role != "system"]
            marks = [_mark(message) for message in spoken]
            repeated = _overlap(memory.spoken, marks)
            memory.spoken += marks[repeated:]
            memory.spoken += [_mark(message) for message in then if _repeatable(message)]
            del memory.spoken[:-MAX_MARKS]
            new = {id(message) for message in spoken[repeated:]}
            new |= {id(message) for message in said if message.role == "system" and memory.first_time(_mark(message))}
        return tuple([message for message in said if id(message) in new])

    def first_time(self, thread: str, answer: str) -> bool:
        """Whether the thread gets the answer of this id for the first time."""
        with self._lock:
            return self._memory(thread).first_time(hash(answer))

    def _memory(self, thread: str) -> Memory:
        memory = self._threads.pop(thread, Memory())
        self._threads[thread] = memory
        while len(self._threads) > MAX_THREADS:
            self._threads.popitem(last=False)
        return memory


def _overlap(known: list[int], marks: list[int]) -> int:
    """How long a head of `marks` is a tail of what is known."""
    for size in range(min(len(known), len(marks)), 0, -1):
        if known[-size] == marks[0] and known[-size:] == marks[:size]:
            return size
    return 0


def _repeatable(message: Message) -> bool:
    """Whether a history may bring it again: events and calls that nobody answered are in none."""
    return message.type == "message" or (message.type == "tool" and message.observation is not None)


def _mark(message: Message) -> int:
    return hash((message.role, message.type, message.message, message.observation))
