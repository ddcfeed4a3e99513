"""The span of time that a question of the Context API is about."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Final

from contextwrap.model import from_iso

DEFAULT_DAYS: Final = 6


def start_of(start_time: str | None) -> datetime:
    """ISO 8601, or the beginning of the day six days ago in UTC; WireError when it is no time."""
    midnight = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    return from_iso(start_time, where="start_time") or midnight - timedelta(days=DEFAULT_DAYS)


def end_of(end_time: str | None) -> datetime | None:
    """ISO 8601, or None for what has not ended; WireError when it is no time."""
    return from_iso(end_time, where="end_time")
