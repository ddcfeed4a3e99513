"""session(): a scope for one user's conversation; everything LangChain runs inside is recorded under it.

Nested sessions inherit what they do not say. What they set is `identity.scope_var`, and nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from contextwrap.client import default_client
from contextwrap.identity import Identity, Scope, Turn, current_scope, scope_var
from contextwrap.ids import new_id
from contextwrap.model import RATINGS

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextvars import Token
    from types import TracebackType

    from contextwrap.model import Rating


class session:  # noqa: N801  a scope, read as `with session(...)`
    """A scope for one user's conversation, as `with` or `async with`.

    Without a `thread_id` the scope is a thread of its own. `metadata` values are stored as text.
    """

    def __init__(
        self,
        *,
        user_id: str | None = None,
        thread_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        tags: Iterable[str] = (),
    ) -> None:
        self._own = Identity(
            user_id=None if user_id is None else str(user_id),
            thread_id=None if thread_id is None else str(thread_id),
            metadata={str(key): str(value) for key, value in (metadata or {}).items() if value is not None},
            tags=tuple(str(tag) for tag in tags),
        )
        self.identity = self._own
        self.turn = Turn()
        self._tokens: list[Token[Scope | None]] = []

    @property
    def user_id(self) -> str | None:
        """Whose session this is."""
        return self.identity.user_id

    @property
    def thread_id(self) -> str:
        """The thread everything inside is recorded in."""
        return self.identity.thread_id or ""

    def rate(self, rating: Rating, *, feedback: str | None = None) -> bool:
        """Rate the last answer recorded here (-1, 0, +1); before there is one, the next. Waits for nothing."""
        return _rate(Scope(identity=self.identity, turn=self.turn), rating, feedback)

    def enter(self) -> Self:
        """Begin the scope; `leave` ends it. Prefer `with`."""
        # The handler's hook into LangChain has to be in place before the first run inside.
        from contextwrap import recorder  # noqa: F401, PLC0415  LangChain, 180 ms: on first use, not on import

        outer = current_scope()
        identity = self._own.over(outer.identity) if outer is not None else self._own
        self.identity = identity if identity.thread_id else Identity(thread_id=new_id()).over(identity)
        if outer is not None and outer.identity.thread_id == self.identity.thread_id:
            self.turn = outer.turn
        self._tokens.append(scope_var.set(Scope(identity=self.identity, turn=self.turn)))
        return self

    def leave(self) -> None:
        """End the scope that `enter` began."""
        try:
            scope_var.reset(self._tokens.pop())
        except ValueError:
            # Left in another Context than entered (a framework moved the generator): there it never was set.
            return

    def __enter__(self) -> Self:
        return self.enter()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    async def __aenter__(self) -> Self:
        return self.enter()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()


def rate(rating: Rating, *, message: str | None = None, thread: str | None = None, feedback: str | None = None) -> bool:
    """Rate an answer -1, 0 or +1: the one of that message id, the newest of that thread, or the current session's.

    Returns whether it was kept; delivery is not waited for.
    """
    here = current_scope()
    if message is None and thread is None and here is not None:
        return _rate(here, rating, feedback)
    return default_client().rate(rating, message=message, thread=thread, feedback=feedback)


def _rate(scope: Scope, rating: Rating, feedback: str | None) -> bool:
    if scope.turn.answer_id is None and rating in RATINGS and not isinstance(rating, bool):
        scope.turn.early = (rating, feedback)
        return True
    return default_client().rate(
        rating, message=scope.turn.answer_id, thread=scope.identity.thread_id, feedback=feedback
    )
