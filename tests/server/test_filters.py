from __future__ import annotations

from datetime import UTC, date, datetime
from urllib.parse import parse_qsl

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextwrap.server.filters import FilterError, Filters, filters, kept, page_number

DAYS = st.none() | st.dates()


@given(
    user=st.none() | st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
    rating=st.sampled_from([None, 1, -1]),
    days=st.tuples(DAYS, DAYS),
    page=st.integers(1, 10**6),
)
def test_a_query_string_reads_back_as_what_it_says(user, rating, days, page):
    """Filters to URL to filters changes nothing, whatever the user's id is made of."""
    since, until = days
    if since and until and since > until:
        since, until = until, since
    asked = Filters(user=user, rating=rating, since=since, until=until)
    params = dict(parse_qsl(asked.query(page=page).removeprefix("?"), keep_blank_values=True))
    assert (filters(params), page_number(params)) == (asked, page)
    assert kept(params) == asked.query(page=page)


def test_what_is_not_said_is_not_in_the_url():
    """No filter and the first page leave no query string at all."""
    assert Filters().query() == ""
    assert Filters(rating=-1).query(page=2) == "?rating=-1&page=2"
    assert filters({"user": "", "rating": "", "from": "", "to": ""}) == Filters()


def test_days_are_whole_and_in_utc():
    """A range holds its last day to the end, also where the calendar ends."""
    asked = filters({"from": "2026-05-04", "to": "2026-05-04"})
    assert asked.start == datetime(2026, 5, 4, tzinfo=UTC)
    assert asked.end == datetime(2026, 5, 5, tzinfo=UTC)
    assert Filters(until=date.max).end is None


@pytest.mark.parametrize(
    "params",
    [
        {"rating": "5"},
        {"rating": "0"},
        {"rating": "up"},
        {"from": "nonsense"},
        {"to": "2026-02-30"},
        {"from": "2026-05-05", "to": "2026-05-04"},
    ],
)
def test_what_cannot_be_meant_is_said_to_the_reader(params):
    """A bad filter is an error that names it, and no list to go back to."""
    with pytest.raises(FilterError, match=r"is not a|The range"):
        filters(params)
    assert kept(params) == ""


@pytest.mark.parametrize(
    ("text", "page"), [("", 1), ("0", 1), ("-7", 1), ("3", 3), (" 3 ", 3), ("9" * 5000, 999_999_999)]
)
def test_a_page_number_is_at_least_one(text, page):
    """Numbers out of range lead to the nearest page."""
    assert page_number({"page": text}) == page


@pytest.mark.parametrize("text", ["abc", "1.5", "٣", "1e3", "--1", "-"])
def test_what_is_no_number_is_no_page(text):
    """Only plain whole numbers count."""
    with pytest.raises(FilterError, match="is not a page number"):
        page_number({"page": text})


def test_each_chip_removes_its_own_filter_only():
    """The list without a filter keeps the others and starts at the first page."""
    asked = Filters(user="u&1", rating=1, since=date(2026, 5, 4), until=date(2026, 5, 6))
    assert {chip.label: chip.without for chip in asked.chips()} == {
        "User": "?rating=1&from=2026-05-04&to=2026-05-06",
        "Rating": "?user=u%261&from=2026-05-04&to=2026-05-06",
        "From": "?user=u%261&rating=1&to=2026-05-06",
        "To": "?user=u%261&rating=1&from=2026-05-04",
    }
