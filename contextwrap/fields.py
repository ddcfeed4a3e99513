"""What a decorator says of the calls to come: constants, format fields over their arguments, callables.

Checked against the signature once, where the decorator stands; looked up at each call, where a value that cannot be
found is left out and counted. Knows arguments by name, nothing of how a function is called.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypeAlias

from contextwrap.client import default_client
from contextwrap.errors import ConfigurationError
from contextwrap.identity import CAPTURES
from contextwrap.sessions import session

if TYPE_CHECKING:
    from contextwrap.identity import Capture

Value: TypeAlias = str | Callable[[Mapping[str, Any]], Any] | None
"""A constant, a format field over the arguments ("{request.user.id}"), or a callable over them by name."""

Labels: TypeAlias = Iterable[Value] | Callable[[Mapping[str, Any]], Iterable[Any]]
"""Tags, each a `Value`, or a callable over the arguments that gives them all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fields:
    """All that a decorator says. Raises ConfigurationError for another `capture` or what is no format string."""

    user_id: Value = None
    thread_id: Value = None
    metadata: Mapping[str, Value] = field(default_factory=dict)
    tags: tuple[Value, ...] | Callable[[Mapping[str, Any]], Iterable[Any]] = ()
    capture: Capture = "content"

    def __post_init__(self) -> None:
        if self.capture not in CAPTURES:
            raise ConfigurationError(f"@track_context: capture is one of {', '.join(CAPTURES)}, not {self.capture!r}")
        for value in self.values():
            _parsed(value)

    def values(self) -> tuple[Value, ...]:
        """Every value of it."""
        tags = self.tags if isinstance(self.tags, tuple) else ()
        return (self.user_id, self.thread_id, *self.metadata.values(), *tags)

    def unknown(self, names: Iterable[str]) -> tuple[Value, ...]:
        """The values that speak of an argument which is not among `names`."""
        known = set(names)
        return tuple(value for value in self.values() if not _arguments(value) <= known)

    def known(self, names: Iterable[str]) -> Fields:
        """What can be said of a function that has these arguments only."""
        unknown = set(self.unknown(names))
        return replace(
            self,
            user_id=None if self.user_id in unknown else self.user_id,
            thread_id=None if self.thread_id in unknown else self.thread_id,
            metadata={key: value for key, value in self.metadata.items() if value not in unknown},
            tags=tuple(tag for tag in self.tags if tag not in unknown) if isinstance(self.tags, tuple) else self.tags,
        )

    def whole(self) -> frozenset[str]:
        """The arguments that are a value as they are ("{user}", not "{request.user}"): they say who, not what."""
        return frozenset(name for value in self.values() for name in _parsed(value) if name.isidentifier())

    def constant(self) -> bool:
        """Whether nothing of it depends on the arguments."""
        values = (*self.values(), None if isinstance(self.tags, tuple) else self.tags)
        return not any(callable(value) or _arguments(value) for value in values)

    def session(self, arguments: Mapping[str, Any]) -> session:
        """The session of a call with these arguments."""
        return session(
            user_id=_found(self.user_id, arguments),
            thread_id=_found(self.thread_id, arguments),
            metadata={key: _found(value, arguments) for key, value in self.metadata.items()},
            tags=self._found_tags(arguments),
            capture=self.capture,
        )

    def _found_tags(self, arguments: Mapping[str, Any]) -> tuple[str, ...]:
        if isinstance(self.tags, tuple):
            found = [_found(tag, arguments) for tag in self.tags]
            return tuple(tag for tag in found if tag is not None)
        with default_client().guard("track_context"):
            tags = self.tags(arguments)
            return (tags,) if isinstance(tags, str) else tuple(str(tag) for tag in tags or () if tag is not None)
        return ()


def labels(tags: Labels) -> tuple[Value, ...] | Callable[[Mapping[str, Any]], Iterable[Any]]:
    """Tags as `Fields` has them; a string is one tag."""
    if isinstance(tags, str):
        return (tags,)
    return tags if callable(tags) else tuple(tags)


def _parsed(value: object) -> tuple[str, ...]:
    """The fields of a format string as they stand in it, those inside a format specification too."""
    if not isinstance(value, str) or "{" not in value:
        return ()
    try:
        parts = list(string.Formatter().parse(value))
    except ValueError as error:
        raise ConfigurationError(f"@track_context: {value!r} is no format string: {error}") from None
    found = [part[1] for part in parts if part[1] is not None]
    return (*found, *(name for part in parts for name in _parsed(part[2])))


def _arguments(value: object) -> set[str]:
    """The arguments that a format string speaks of."""
    return {name.split(".")[0].split("[")[0] for name in _parsed(value)}


def _found(value: Value, arguments: Mapping[str, Any]) -> str | None:
    """What `value` says, as text; None, and counted, when it cannot be found."""
    with default_client().guard("track_context"):
        found = _looked_up(value, arguments)
        return None if found is None else str(found)
    return None


def _looked_up(value: Value, arguments: Mapping[str, Any]) -> Any:
    if callable(value):
        return value(arguments)
    if not isinstance(value, str) or "{" not in value:
        return value
    match list(string.Formatter().parse(value)):
        case [("", str(name), "" | None, None)]:
            # A field alone is the value itself: format would make a user called "None" out of nobody.
            return string.Formatter().get_field(name, (), arguments)[0]
    return value.format_map(arguments)
