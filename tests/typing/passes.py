"""What a user writes, with the types that have to come out of it; checked, and never run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from functools import partial
from typing import assert_type

from contextwrap import session, track_context


@track_context
def plain(question: str, *, page: int = 1) -> str:
    """Answers."""
    return question * page


@track_context(
    user_id="{user}",
    thread_id=lambda arguments: arguments["thread"],
    metadata={"page": "{page}", "release": "2.1"},
    tags=["a", "{page}", lambda arguments: arguments["page"]],
    capture="metadata",
)
async def later(user: str, thread: int | None, page: int = 1) -> bytes:
    """Answers later."""
    return user.encode() * page


@track_context(tags=lambda arguments: arguments["tags"])
def words(tags: list[str]) -> Iterator[str]:
    """Answers word by word."""
    yield from tags


@track_context(user_id="u")
async def later_words() -> AsyncIterator[int]:
    """The same, later."""
    yield 1


class Service:
    """Every kind of method."""

    @track_context(user_id="{self}")
    def method(self, question: str) -> int:
        """A method."""
        return len(question)

    @track_context
    async def coroutine(self, question: str) -> int:
        """An async method."""
        return len(question)

    @classmethod
    @track_context
    def class_below(cls, question: str) -> int:
        """A classmethod."""
        return len(question)

    @staticmethod
    @track_context(user_id="u")
    def static_below(question: str) -> int:
        """A staticmethod."""
        return len(question)

    @track_context
    @staticmethod
    def static_above(question: str) -> int:
        """A staticmethod."""
        return len(question)


@track_context(user_id="{self.name}")
@dataclass
class Desk:
    """A plain class."""

    name: str

    def answer(self, question: str) -> str:
        """A method."""
        return question


class Answerer:
    """A callable object."""

    name = "n"

    def __call__(self, question: str) -> float:
        """Answers."""
        return float(question)


async def use() -> None:
    """What comes out."""
    assert_type(plain("why?", page=2), str)
    assert_type(await later("u", 5), bytes)
    assert_type(words(["a"]), Iterator[str])
    assert_type(later_words(), AsyncIterator[int])
    service = Service()
    assert_type(service.method("why?"), int)
    assert_type(Service.method(service, question="why?"), int)
    assert_type(await service.coroutine("why?"), int)
    assert_type(Service.class_below("why?"), int)
    assert_type(Service.static_below("why?"), int)
    assert_type(service.static_above("why?"), int)
    assert_type(Desk("n"), Desk)
    assert_type(Desk("n").answer("why?"), str)
    answerer = track_context(Answerer())
    assert_type(answerer, Answerer)
    assert_type(answerer.name, str)
    assert_type(track_context(user_id="u")(Answerer())("why?"), float)
    assert_type(track_context(partial(plain, page=2))("why?"), str)
    here = session.current()
    if here is not None:
        assert_type(here.rate(1), bool)
