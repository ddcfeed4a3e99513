"""What a reader of the conversation list asked for, and the URL that says so: the one place that knows both."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from typing import TYPE_CHECKING, Final, Literal
from urllib.parse import urlencode

if TYPE_CHECKING:
    from collections.abc import Mapping

    from contextwrap.model import Rating

NAMES: Final = ("user", "rating", "from", "to")
_RATINGS: Final[dict[str, Rating]] = {"1": 1, "-1": -1}
_RATED: Final = {1: "Thumbs up", -1: "Thumbs down"}
_SHOWN: Final = 40


class FilterError(ValueError):
    """A query string that says nothing usable; its text tells the reader what would."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Chip:
    """One filter in force: what it is, its value, and the list without it."""

    label: str
    value: str
    without: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Filters:
    """The list's filters; `since` and `until` are whole days in UTC, both included."""

    user: str | None = None
    rating: Rating | None = None
    since: date | None = None
    until: date | None = None

    @property
    def start(self) -> datetime | None:
        """The first moment of `since`."""
        return None if self.since is None else datetime.combine(self.since, time(), UTC)

    @property
    def end(self) -> datetime | None:
        """The first moment after `until`."""
        if self.until is None or self.until == date.max:
            return None
        return datetime.combine(self.until + timedelta(days=1), time(), UTC)

    def query(self, *, page: int = 1) -> str:
        """The query string, with its "?", that says this and nothing superfluous; "" for everything."""
        pairs = {
            "user": self.user,
            "rating": None if self.rating is None else str(self.rating),
            "from": None if self.since is None else self.since.isoformat(),
            "to": None if self.until is None else self.until.isoformat(),
            "page": None if page == 1 else str(page),
        }
        said = {name: value for name, value in pairs.items() if value is not None}
        return f"?{urlencode(said)}" if said else ""

    def chips(self) -> tuple[Chip, ...]:
        """The filters in force, each with the way to be rid of it."""
        chips = []
        if self.user is not None:
            chips.append(Chip(label="User", value=self.user, without=replace(self, user=None).query()))
        if self.rating is not None:
            chips.append(Chip(label="Rating", value=_RATED[self.rating], without=replace(self, rating=None).query()))
        if self.since is not None:
            chips.append(Chip(label="From", value=self.since.isoformat(), without=replace(self, since=None).query()))
        if self.until is not None:
            chips.append(Chip(label="To", value=self.until.isoformat(), without=replace(self, until=None).query()))
        return tuple(chips)


def filters(params: Mapping[str, str]) -> Filters:
    """The filters in a query's parameters, empty ones unsaid; FilterError for one that cannot be meant."""
    asked = Filters(
        user=params.get("user") or None,
        rating=_rating(params.get("rating", "")),
        since=_day(params.get("from", ""), "from"),
        until=_day(params.get("to", ""), "to"),
    )
    if asked.since and asked.until and asked.since > asked.until:
        raise FilterError(f"The range ends ({asked.until}) before it begins ({asked.since}).")
    return asked


def page_number(params: Mapping[str, str]) -> int:
    """Which page is asked for: at least the first; FilterError for what is no whole number."""
    text = params.get("page", "").strip()
    if not text:
        return 1
    digits = text.removeprefix("-")
    if not (digits.isascii() and digits.isdigit()):
        raise FilterError(f"page={_short(text)} is not a page number.")
    # More digits than any list has pages: a number beyond the end, without the cost of reading it.
    return 1 if text.startswith("-") else max(1, int(digits[:9]))


def kept(params: Mapping[str, str]) -> str:
    """The list a transcript was opened from, as a query string; "" when that cannot be made out."""
    try:
        return filters(params).query(page=page_number(params))
    except FilterError:
        return ""


def _rating(text: str) -> Rating | None:
    if not text:
        return None
    if text not in _RATINGS:
        raise FilterError(f"rating={_short(text)} is not a rating: it is 1 (thumbs up) or -1 (thumbs down).")
    return _RATINGS[text]


def _day(text: str, name: Literal["from", "to"]) -> date | None:
    if not text:
        return None
    try:
        return date.fromisoformat(text)
    except ValueError:
        raise FilterError(f"{name}={_short(text)} is not a day: write it as 2026-03-05.") from None


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
