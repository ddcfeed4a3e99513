"""Who is speaking, and where: the identity of the current scope, in one ContextVar.

`sessions` sets it, `recorder` reads it once at the start of each root run. Everything here is immutable but
`Turn`, which remembers the last answer so that it can be rated.
"""

from __future__ import annotations

from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

    from contextwrap.model import Rating


@dataclass(frozen=True, slots=True, kw_only=True)
class Identity:
    """Who and where: what a session says of the conversations inside it."""

    user_id: str | None = None
    thread_id: str | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    tags: tuple[str, ...] = ()

    def over(self, outer: Identity) -> Identity:
        """This identity, with what it does not say taken from `outer`."""
        return Identity(
            user_id=self.user_id or outer.user_id,
            thread_id=self.thread_id or outer.thread_id,
            metadata={**outer.metadata, **self.metadata},
            tags=tuple(dict.fromkeys((*outer.tags, *self.tags))),
        )


@dataclass(slots=True)
class Turn:
    """The last answer recorded in a session, and a rating that came before it."""

    answer_id: str | None = None
    early: tuple[Rating, str | None] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """An identity and the turn its answers are remembered in."""

    identity: Identity
    turn: Turn


def current_scope() -> Scope | None:
    """The innermost scope of this context, or None."""
    return scope_var.get()


scope_var: ContextVar[Scope | None] = ContextVar("contextwrap_scope", default=None)
