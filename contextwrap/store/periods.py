"""The days, ISO weeks and months, in UTC, that a series counts by."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Final, Literal, TypeAlias, get_args

Period: TypeAlias = Literal["day", "week", "month"]

PERIODS: Final = get_args(Period)


def first_day(moment: datetime, period: Period) -> date:
    """The day on which the period that `moment` is in begins; a week begins on Monday."""
    day = moment.astimezone(UTC).date()
    match period:
        case "day":
            return day
        case "week":
            return day - timedelta(days=day.weekday())
        case "month":
            return day.replace(day=1)


def spans(start: datetime, end: datetime, *, period: Period) -> int:
    """About how many periods there are from one to the other, one too many rather than too few."""
    return max(0, (end - start).days) // {"day": 1, "week": 7, "month": 28}[period] + 2


def first_days(start: datetime, end: datetime, *, period: Period) -> list[date]:
    """The first day of each period that has a moment in start ≤ moment < end, oldest first."""
    found: list[date] = []
    if start >= end:
        return found
    day, last = first_day(start, period), first_day(end - timedelta(microseconds=1), period)
    while day <= last:
        found.append(day)
        # Into the next period, whatever its length; a month has at most 31 days.
        later = day + timedelta(days={"day": 1, "week": 7, "month": 31}[period])
        day = later.replace(day=1) if period == "month" else later
    return found
