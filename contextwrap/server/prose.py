"""A transcript's text made ready to be shown: cut where it gets long, split at its links.

What comes out is still plain text; escaping it is the template's part and nothing here marks text as safe.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, Final

FOLD_AT: Final = 4000
_HEAD: Final = 2500
_LINKS: Final = 200
_LONGEST_LINK: Final = 2000

# No controls that hide or reorder what a link says; what usually follows a link in prose is not its end.
_LINK: Final = re.compile(
    r"""(?<![\w.@])(?:https?://|mailto:)[^\s<>"'`\x00-\x1f\u00ad\u061c\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff]+""",
    re.IGNORECASE,
)
_TRAILING: Final = ".,;:!?*_~"
_PAIRS: Final = {")": "(", "]": "[", "}": "{"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A run of text; with `href`, a link to http, https or mailto."""

    text: str
    href: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Prose:
    """A text in pieces: what is shown at once, and what is folded away because it is long."""

    head: tuple[Piece, ...]
    rest: tuple[Piece, ...] = ()
    hidden: int = 0


def prose(text: str, *, links: bool = True) -> Prose:
    """The text, split at its links (the first 200) and folded beyond 4,000 characters."""
    head, rest = _folded(text)
    split = _split if links else _whole
    return Prose(head=split(head), rest=split(rest), hidden=len(rest))


def pretty(value: Any) -> str:
    """A tool's input for reading: a string as it is, everything else as indented JSON."""
    if isinstance(value, str):
        return value
    try:
        return json.dumps(value, indent=2, ensure_ascii=False, default=str)
    except RecursionError:
        return "(nested too deep to be shown)"


def _folded(text: str) -> tuple[str, str]:
    if len(text) <= FOLD_AT:
        return text, ""
    breaks = [text.rfind(mark, _HEAD - 500, _HEAD) for mark in ("\n", " ")]
    cut = next((index + 1 for index in breaks if index >= 0), _HEAD)
    return text[:cut], text[cut:]


def _whole(text: str) -> tuple[Piece, ...]:
    return (Piece(text=text),) if text else ()


def _split(text: str) -> tuple[Piece, ...]:
    pieces: list[Piece] = []
    at = 0
    for index, match in enumerate(_LINK.finditer(text)):
        if index == _LINKS:
            break
        href = _trimmed(match[0])
        if len(href) > _LONGEST_LINK or href.lower() in {"http://", "https://", "mailto:"}:
            continue
        pieces.extend(_whole(text[at : match.start()]))
        pieces.append(Piece(text=href, href=href))
        at = match.start() + len(href)
    pieces.extend(_whole(text[at:]))
    return tuple(pieces)


def _trimmed(link: str) -> str:
    """The link without the punctuation of the sentence around it; a bracket it opened itself stays."""
    unopened = {closing: link.count(closing) - link.count(opening) for closing, opening in _PAIRS.items()}
    end = len(link)
    while end and (link[end - 1] in _TRAILING or unopened.get(link[end - 1], 0) > 0):
        end -= 1
        if link[end] in unopened:
            unopened[link[end]] -= 1
    return link[:end]
