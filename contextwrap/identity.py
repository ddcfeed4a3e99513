"""Who is speaking, and where: the identity of the current scope, in one ContextVar.

`sessions` sets it, `recorder` reads it once at the start of each root run. Everything here is immutable but
`Turn`, which remembers the last answer so that it can be rated, and `Activity`, which says whether anything was
recorded.
"""

from __future__ import annotations

from contextlib import suppress
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from contextwrap.ids import new_id

if TYPE_CHECKING:
    from collections.abc import Mapping

    from contextwrap.model import Rating

Capture: TypeAlias = Literal["content", "metadata", "off"]
"""What is kept of a conversation: all, all but the words, or nothing."""

CAPTURES: Final = ("content", "metadata", "off")


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who and where: what a session says of the conversations inside it.

    `fallback` is the thread of a session that names none: a run that does, such as a graph's, is in its own.
    """

    user_id: str | None = None
    thread_id: str | None = None
    fallback: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    capture: Capture = "content"

    @property
    def thread(self) -> str | None:
        """Where it is recorded; None where every turn is a thread of its own."""
        return self.thread_id or self.fallback

    def over(self, outer: Identity) -> Identity:
        """This identity, with what it does not say taken from `outer`; the one that captures less decides on that."""
        if outer is NOBODY:
            return self
        if self is NOBODY:
            return outer
        return Identity(
            user_id=self.user_id or outer.user_id,
            thread_id=self.thread_id or outer.thread_id,
            fallback=self.fallback or outer.fallback,
            metadata={**outer.metadata, **self.metadata},
            tags=tuple(dict.fromkeys((*outer.tags, *self.tags))),
            capture=max(self.capture, outer.capture, key=CAPTURES.index),
        )


NOBODY: Final = Identity()
"""Says nothing."""


@dataclass(slots=True)
class Turn:
    """The last answer recorded in a session, the id promised to the next, and a rating that came before it.

    An answer in a session inside another is also the `outer` one's last, and takes what that one has promised.
    """

    outer: Turn | None = None
    answer_id: str | None = None
    thread: str | None = None
    early: tuple[Rating, str | None] | None = None
    _promised: list[str] = field(default_factory=list)

    def promise(self) -> str:
        """The id of the last answer; before there is one, the id that it will have."""
        return self.answer_id or self.promise_next()

    def promise_next(self) -> str:
        """The id that the next answer will have, so that it can be told before the answer is there."""
        if not self._promised:
            self._promised.append(new_id())
        return self._promised[-1]

    def answer_takes(self) -> str:
        """The id for the answer that is recorded now; a promised one goes to one answer only."""
        if self._promised:
            # Another thread may take it in between.
            with suppress(IndexError):
                return self._promised.pop()
        return self.outer.answer_takes() if self.outer is not None else new_id()

    def answered(self, answer_id: str, thread: str) -> list[tuple[Rating, str | None]]:
        """Remember the answer; the ratings that came before it."""
        early = [] if self.early is None else [self.early]
        self.answer_id, self.thread, self.early = answer_id, thread, None
        return early if self.outer is None else [*early, *self.outer.answered(answer_id, thread)]


@dataclass(slots=True)
class Activity:
    """Whether anything was recorded in a scope, or in one inside it."""

    outer: Activity | None = None
    any: bool = False

    def note(self) -> None:
        """Something is recorded here."""
        node: Activity | None = self
        while node is not None and not node.any:
            node.any = True
            node = node.outer


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """An identity and the turn its answers are remembered in.

    `parent` is the number of the run around it, in another thread. One that was not `asked` for, by a session, only
    carries that.
    """

    identity: Identity
    turn: Turn
    activity: Activity = field(default_factory=Activity)
    parent: int | None = None
    asked: bool = True

    def below(self, parent: int | None) -> Scope:
        """The same scope, as seen from a thread that LangChain's own context does not reach."""
        return replace(self, parent=parent or self.parent)


def current_scope() -> Scope | None:
    """The innermost scope of this context, or None."""
    return scope_var.get()


scope_var: ContextVar[Scope | None] = ContextVar("contextwrap_scope", default=None)
