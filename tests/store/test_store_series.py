"""What the store counts by day, week and month, against counting one by one."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saying import NOON, bot, say, thread, user

from contextwrap.store.duckdb import DuckDBStore
from contextwrap.store.periods import PERIODS, first_day, first_days, spans
from contextwrap.store.records import Bucket, SeriesQuery

DAY = timedelta(days=1)
moments = st.datetimes(datetime(2023, 11, 1), datetime(2025, 3, 31), timezones=st.just(UTC))  # noqa: DTZ001


@pytest.mark.parametrize(
    ("period", "begins"), [("day", date(2024, 2, 29)), ("week", date(2024, 2, 26)), ("month", date(2024, 2, 1))]
)
def test_a_period_is_named_by_its_first_day(period, begins):
    """A week begins on Monday, a month on its first day, all in UTC."""
    assert first_day(datetime.fromisoformat("2024-02-29T23:30:00+00:00"), period) == begins
    assert first_day(datetime.fromisoformat("2024-03-01T01:30:00+02:00"), period) == begins


@given(moments, moments, st.sampled_from(PERIODS))
def test_the_periods_of_a_span_are_those_of_its_moments(start, end, period):
    """Every moment's period is there, once, in order, and no other; their number is known before they are made."""
    found = first_days(start, end, period=period)
    hours = max(0, -(-(end - start) // timedelta(hours=1)))
    last = end - timedelta(microseconds=1)
    some = {first_day(min(start + timedelta(hours=6 * step), last), period) for step in range(hours // 6 + 2)}
    some = some if start < end else set()
    assert found == sorted(some)
    assert len(found) <= spans(start, end, period=period)


def test_a_series_counts_what_began_and_what_was_rated(store):
    """Conversations by their first message, ratings by their message's time; a period of nothing is there too."""
    say(store, thread("a", user("q"), bot("x", rating=1), bot("y", rating=-1), tenant="acme"), at=NOON)
    say(store, thread("a", user("q"), bot("z", rating=1), tenant="acme"), at=NOON + 2 * DAY, start=1)
    say(store, thread("b", user("q"), tenant="acme"), at=NOON + 2 * DAY, start=2)
    say(store, thread("c", user("q"), bot("x", rating=1)), at=NOON, start=3)
    found = store.series(SeriesQuery(start=NOON, end=NOON + 3 * DAY, tenant_id="acme"))
    day = NOON.date()
    assert found == (
        Bucket(begins=day, conversations=1, rated=2, rating=0.0),
        Bucket(begins=day + DAY),
        Bucket(begins=day + 2 * DAY, conversations=1, rated=1, rating=1.0),
        Bucket(begins=day + 3 * DAY),
    )


def test_the_end_is_not_in_it(store):
    """A span takes in its start and leaves out its end, to the microsecond."""
    say(store, thread("a", user("q"), bot("x", rating=1)), at=NOON)
    one = timedelta(microseconds=1)
    for start, end, counted in ((NOON, NOON + one, 1), (NOON - one, NOON, 0), (NOON + one, NOON + DAY, 0)):
        found = store.series(SeriesQuery(start=start, end=end))
        assert sum(bucket.conversations for bucket in found) == counted
        assert sum(bucket.rated for bucket in found) == counted
    assert store.series(SeriesQuery(start=NOON, end=NOON)) == ()


turns = st.lists(st.tuples(moments, st.sampled_from(["", "acme"]), st.sampled_from([None, -1, 0, 1])), max_size=30)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns, moments, moments, st.sampled_from(PERIODS), st.sampled_from(["", "acme"]))
def test_a_series_is_what_counting_by_hand_gives(tmp_path_factory, said, start, end, period, tenant):
    """Random conversations and ratings, counted by SQL and one by one."""
    store = DuckDBStore.open(tmp_path_factory.mktemp("series") / "store.duckdb")
    for number, (moment, whose, rating) in enumerate(said):
        say(store, thread(f"t{number}", bot("x", rating=rating), tenant=whose), at=moment, start=number)
    within = [one for one in said if start <= one[0] < end and one[1] == tenant]
    expected = []
    for begins in first_days(start, end, period=period):
        here = [rating for moment, _, rating in within if first_day(moment, period) == begins]
        rated = [rating for rating in here if rating is not None]
        mean = sum(rated) / len(rated) if rated else None
        expected.append(Bucket(begins=begins, conversations=len(here), rated=len(rated), rating=mean))
    found = store.series(SeriesQuery(start=start, end=end, period=period, tenant_id=tenant))
    store.close()
    assert found == tuple(expected)
