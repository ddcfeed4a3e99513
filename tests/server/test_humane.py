from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from contextwrap.server import humane

NOON = datetime(2026, 5, 4, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("ago", "text"),
    [
        (timedelta(seconds=-90), "just now"),
        (timedelta(seconds=0), "just now"),
        (timedelta(seconds=44), "just now"),
        (timedelta(seconds=45), "1 min ago"),
        (timedelta(minutes=59, seconds=59), "59 min ago"),
        (timedelta(hours=1), "1 h ago"),
        (timedelta(hours=23, minutes=59), "23 h ago"),
        (timedelta(days=1), "1 d ago"),
        (timedelta(days=6, hours=23), "6 d ago"),
        (timedelta(days=7), "27 Apr"),
        (timedelta(days=200), "16 Oct 2025"),
    ],
)
def test_a_recent_time_is_a_distance_and_an_old_one_a_date(ago, text):
    """Minutes, hours and days up to a week; then the date, with its year when that is another."""
    assert humane.relative(NOON - ago, now=NOON).text == text


def test_every_moment_carries_its_exact_time_in_utc():
    """Whatever zone a time comes in, title and datetime attribute say it in UTC."""
    local = datetime(2026, 5, 4, 14, 30, 5, 999, tzinfo=timezone(timedelta(hours=2)))
    for moment in (humane.relative(local, now=NOON), humane.clock(local), humane.full(local)):
        assert (moment.exact, moment.iso) == ("2026-05-04 12:30:05 UTC", "2026-05-04T12:30:05Z")
    assert humane.clock(local).text == "12:30"
    assert humane.full(local).text == "4 May 2026, 12:30"


@pytest.mark.parametrize(
    ("span", "text"),
    [
        (timedelta(seconds=-1), "0 s"),
        (timedelta(seconds=59), "59 s"),
        (timedelta(seconds=60), "1 min"),
        (timedelta(seconds=61), "1 min 1 s"),
        (timedelta(hours=2, minutes=5), "2 h 5 min"),
        (timedelta(days=3, hours=4, minutes=5), "3 d 4 h"),
        (timedelta(days=2000), "2,000 d"),
    ],
)
def test_a_span_is_said_in_its_two_largest_units(span, text):
    """No reader needs the seconds of three days."""
    assert humane.lasted(span) == text


def test_numbers_have_separators_and_their_noun_agrees():
    """12,345 messages, but 1 message."""
    assert humane.number(1234567) == "1,234,567"
    assert [humane.counted(value, "message") for value in (0, 1, 12345)] == [
        "0 messages",
        "1 message",
        "12,345 messages",
    ]


@pytest.mark.parametrize(("value", "text"), [(0, "0 ms"), (999, "999 ms"), (1000, "1.0 s"), (125_000, "2 min 5 s")])
def test_a_latency_is_said_in_the_unit_that_fits(value, text):
    """Milliseconds below a second, minutes above sixty."""
    assert humane.milliseconds(value) == text
