"""A doctor's answer: one `Check` a question, and what a list of them comes to. Knows nothing of what is asked."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Sequence

Status: TypeAlias = Literal["ok", "warn", "fail"]

_LONGEST: Final = 200


@dataclass(frozen=True, slots=True)
class Check:
    """One question's answer: `said` in a line; `todo`, a sentence, where there is something to do."""

    name: str
    status: Status
    said: str
    todo: str = ""


def works(checks: Sequence[Check]) -> bool:
    """Whether nothing failed; a warning is no failure."""
    return all(check.status != "fail" for check in checks)


def todos(checks: Sequence[Check]) -> list[str]:
    """What to do, each once, in the order it was found."""
    return list(dict.fromkeys(check.todo for check in checks if check.todo))


def one_line(foreign: object) -> str:
    """Anybody's words as one short line that no terminal takes for a command."""
    text = "".join(character if character.isprintable() else " " for character in str(foreign))
    text = " ".join(text.split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"


def ago(seconds: float) -> str:
    """A span of time as people say it."""
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def took(seconds: float) -> str:
    """How long an answer was on its way."""
    return f"{seconds * 1000:.0f} ms"
