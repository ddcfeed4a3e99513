"""How numbers, times and sizes are said to a reader. Pure; every time is aware, in UTC."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime, timedelta

_MINUTE: Final = 60
_HOUR: Final = 60 * _MINUTE
_DAY: Final = 24 * _HOUR
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A time as a page says it: `text` to read, `exact` to be sure, `iso` for machines."""

    text: str
    exact: str
    iso: str


def relative(moment: datetime, *, now: datetime) -> Moment:
    """How long ago it was; a date once that is easier to read, "just now" for what a skewed clock puts ahead."""
    return _moment(moment, _ago(moment, now))


def clock(moment: datetime) -> Moment:
    """The time of day, for a page that says the day elsewhere."""
    moment = moment.astimezone(UTC)
    return _moment(moment, f"{moment:%H:%M}")


def full(moment: datetime) -> Moment:
    """Day and time of day."""
    moment = moment.astimezone(UTC)
    return _moment(moment, f"{day(moment)}, {moment:%H:%M}")


def day(moment: datetime) -> str:
    """The day in UTC: "5 Mar 2026"."""
    moment = moment.astimezone(UTC)
    return f"{moment.day} {_MONTHS[moment.month - 1]} {moment.year}"


def number(value: int) -> str:
    """With thousands separators: "12,345"."""
    return f"{value:,}"


def counted(value: int, noun: str) -> str:
    """A number with its noun: "1 message", "2,000 messages"."""
    return f"{value:,} {noun}{'' if value == 1 else 's'}"


def lasted(span: timedelta) -> str:
    """How long something took, in its two largest units: "2 h 5 min"."""
    seconds = max(0, round(span.total_seconds()))
    if seconds < _MINUTE:
        return f"{seconds} s"
    if seconds < _HOUR:
        return _two(seconds, (_MINUTE, "min"), (1, "s"))
    if seconds < _DAY:
        return _two(seconds, (_HOUR, "h"), (_MINUTE, "min"))
    return _two(seconds, (_DAY, "d"), (_HOUR, "h"))


def milliseconds(value: int) -> str:
    """A latency: "840 ms", "3.2 s", "2 min 5 s"."""
    if value < 1000:  # noqa: PLR2004  a second
        return f"{value} ms"
    if value < _MINUTE * 1000:
        return f"{value / 1000:.1f} s"
    return _two(value // 1000, (_MINUTE, "min"), (1, "s"))


def _two(value: int, large: tuple[int, str], small: tuple[int, str]) -> str:
    whole, rest = divmod(value, large[0])
    rest //= small[0]
    return f"{whole:,} {large[1]} {rest} {small[1]}" if rest else f"{whole:,} {large[1]}"


def _ago(moment: datetime, now: datetime) -> str:
    seconds = (now - moment).total_seconds()
    if seconds < 45:  # noqa: PLR2004  nearer to now than to a minute
        return "just now"
    if seconds < _HOUR:
        return f"{max(1, int(seconds // _MINUTE))} min ago"
    if seconds < _DAY:
        return f"{int(seconds // _HOUR)} h ago"
    if seconds < 7 * _DAY:
        return f"{int(seconds // _DAY)} d ago"
    said = day(moment)
    return said.removesuffix(f" {now.astimezone(UTC).year}")


def _moment(moment: datetime, text: str) -> Moment:
    moment = moment.astimezone(UTC)
    iso = moment.replace(microsecond=0, tzinfo=None).isoformat()
    return Moment(text=text, exact=f"{iso.replace('T', ' ')} UTC", iso=f"{iso}Z")
