"""session(): a scope for one user's conversation; everything LangChain runs inside is recorded under it.

Nested sessions inherit what they do not say. What they set is `identity.scope_var`, and nothing else.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from contextwrap.client import default_client, is_configured
from contextwrap.errors import ConfigurationError
from contextwrap.identity import CAPTURES, Activity, Identity, Scope, Turn, current_scope, scope_var
from contextwrap.ids import new_id
from contextwrap.model import RATINGS, ROLES, Message
from contextwrap.turns import Spoken, log_turn

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from contextvars import Token
    from types import TracebackType

    from contextwrap.identity import Capture
    from contextwrap.model import Rating, Role


class session:  # noqa: N801  a scope, read as `with session(...)`
    """A scope for one user's conversation, as `with` or `async with`.

    Without a `thread_id` the scope is a thread of its own, but for runs that name theirs (a graph's `thread_id`).
    `metadata` values are stored as text. `capture` says what is kept: "content" everything, "metadata" all but the
    words, "off" nothing; inside another session the one that keeps less decides. Raises ConfigurationError for another
    `capture`.
    """

    def __init__(
        self,
        *,
        user_id: str | None = None,
        thread_id: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        tags: Iterable[str] = (),
        capture: Capture = "content",
    ) -> None:
        if capture not in CAPTURES:
            raise ConfigurationError(f"capture is one of {', '.join(CAPTURES)}, not {capture!r}")
        self._own = Identity(
            user_id=None if user_id is None else str(user_id),
            thread_id=None if thread_id is None else str(thread_id),
            metadata={str(key): str(value) for key, value in metadata.items() if value is not None} if metadata else {},
            tags=(tags,) if isinstance(tags, str) else tuple(map(str, tags)),
            capture=capture,
        )
        self._scope = Scope(identity=self._own, turn=Turn())
        self._tokens: list[Token[Scope | None]] = []

    @staticmethod
    def current() -> session | None:
        """The innermost session of this context, to rate or add to; None outside of any."""
        scope = current_scope()
        if scope is None:
            return None
        here = session()
        here._scope = scope
        return here

    @property
    def user_id(self) -> str | None:
        """Whose session this is."""
        return self._scope.identity.user_id

    @property
    def thread_id(self) -> str:
        """The thread everything inside is recorded in."""
        return self._scope.identity.thread or ""

    @property
    def answer_id(self) -> str:
        """The message id of the last answer recorded here; before there is one, the id it will have."""
        return self._scope.turn.promise()

    def rate(self, rating: Rating, *, feedback: str | None = None) -> bool:
        """Rate the last answer recorded here (-1, 0, +1); before there is one, the next. Waits for nothing."""
        return _rate(self._scope, rating, feedback)

    def add_message(self, role: Role, message: str) -> str | None:
        """Record a message that LangChain does not know of; returns its id, or None when it cannot be kept.

        One of the role "assistant" is the last answer from now on.
        """
        with default_client().guard("add_message"):
            if role not in ROLES:
                default_client().guard.lost(f"add_message: a role is one of {', '.join(ROLES)}")
                return None
            if role == "assistant":
                log_turn(Spoken(answer=Message(role=role, message=str(message))), self._scope)
                self._scope.activity.note()
                return self._scope.turn.answer_id
            row = Message(role=role, message=str(message), id=new_id())
            log_turn(Spoken(between=(row,)), self._scope)
            self._scope.activity.note()
            return row.id
        return None

    def event(self, name: str, metadata: Mapping[str, Any] | None = None) -> None:
        """Record that something happened in the conversation: `name`, and what is to be known of it as text."""
        with default_client().guard("event"):
            noted = {str(key): str(value) for key, value in (metadata or {}).items() if value is not None}
            row = Message(role="system", type="event", name=str(name), id=new_id(), metadata=noted)
            log_turn(Spoken(between=(row,)), self._scope)

    def enter(self) -> Self:
        """Begin the scope; `leave` ends it. Prefer `with`."""
        self._tokens.append(scope_var.set(self.scope()))
        return self

    def scope(self) -> Scope:
        """What the session is here, for whoever enters its scope step by step and says itself when it is over."""
        # The hook into LangChain has to be in place before the first run inside.
        import contextwrap.streams  # noqa: F401, PLC0415  LangChain, 180 ms: on first use, not on import

        outer = current_scope()
        identity = self._own.over(outer.identity) if outer is not None else self._own
        if not identity.thread:
            # Entered again it is the same conversation.
            identity = replace(identity, fallback=self._scope.identity.fallback or new_id())
        turn = self._scope.turn
        if outer is not None and outer.identity.thread == identity.thread:
            turn = outer.turn
        elif outer is not None:
            turn.outer = outer.turn
        activity = Activity(outer=outer.activity if outer is not None else None)
        parent = outer.parent if outer is not None else None
        self._scope = Scope(identity=identity, turn=turn, activity=activity, parent=parent)
        return self._scope

    def leave(self) -> None:
        """End the scope that `enter` began."""
        if self._left():
            default_client().call_over()

    def _left(self) -> bool:
        """Whether it was the outermost one, that something may have been recorded in."""
        for token in reversed(self._tokens):
            try:
                scope_var.reset(token)
            except ValueError:
                # Entered in another Context (a framework moved the generator, tasks share the session).
                continue
            self._tokens.remove(token)
            break
        else:
            # Left in another Context than entered: there it never was set.
            self._tokens.pop()
        return current_scope() is None and is_configured()

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
        if self._left():
            await default_client().acall_over()


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
        rating,
        message=scope.turn.answer_id,
        thread=scope.turn.thread or scope.identity.thread,
        feedback=feedback,
    )
