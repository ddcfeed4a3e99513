"""The API's series, asked by context-python's own client."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from azure.core.pipeline.policies import AzureKeyCredentialPolicy
from getcontext.generated.aio import ContextAPI as AsyncContextAPI
from getcontext.generated.models import Message, Thread
from getcontext.token import AsyncCredential
from serving import context_client

if TYPE_CHECKING:
    from collections.abc import Iterator

    from getcontext import ContextAPI
    from serving import Served

TODAY = datetime.now(UTC).date()


@pytest.fixture
def client(server: Served) -> Iterator[ContextAPI]:
    """The unmodified client with a key that may do everything."""
    with context_client(server.url, server.key()) as made:
        yield made


def _say(client: ContextAPI, *ratings: int | None, days_ago: int = 0, tenant: str | None = None) -> None:
    """A conversation of so long ago, with an answer for each rating."""
    at = datetime.now(UTC) - timedelta(days=days_ago)
    rows = [Message(role="user", message="hi", event_timestamp=at)]
    rows += [Message(role="assistant", message="hello", rating=one, event_timestamp=at) for one in ratings]
    more: dict[str, Any] = {} if tenant is None else {"tenant_id": tenant}
    client.log.conversation_thread(body={"conversation": Thread(messages=rows)}, **more)


def _day(days_ago: int) -> str:
    return (TODAY - timedelta(days=days_ago)).isoformat()


def test_the_index_names_the_series_there_are(client: ContextAPI) -> None:
    """Only what the server can count: sentiment is not scored yet."""
    assert client.conversation_series().available == ["rating", "volume"]
    with pytest.raises(ResourceNotFoundError, match="no series of this name, but rating and volume"):
        client.sentiment()


def test_volume_by_day_for_the_last_week_unless_told_otherwise(client: ContextAPI) -> None:
    """Days on which nothing began count 0; what is older than the beginning of six days ago is left out."""
    for days_ago in (0, 0, 2, 6, 8):
        _say(client, 1, days_ago=days_ago)
    found = client.volume()
    (series,) = found.series
    assert (series.name, found.type, found.period) == ("Volume", "volume", "day")
    assert series.data == {_day(6): 1, _day(5): 0, _day(4): 0, _day(3): 0, _day(2): 1, _day(1): 0, _day(0): 2}
    assert datetime.fromisoformat(found.start_time).date() == TODAY - timedelta(days=6)
    assert datetime.fromisoformat(found.end_time).date() == TODAY


def test_the_rating_of_a_day_is_the_mean_of_what_was_rated(client: ContextAPI) -> None:
    """Answers nobody rated do not count, and a day without ratings has no number."""
    _say(client, 1, 1, None, -1, days_ago=1)
    _say(client, None, days_ago=2)
    (series,) = client.rating().series
    assert series.name == "Rating"
    assert series.data == {_day(1): pytest.approx(1 / 3)}


@pytest.mark.parametrize("period", ["day", "week", "month"])
def test_periods_and_bounds_may_be_said(client: ContextAPI, period: str) -> None:
    """A span is [start, end), and its buckets are named by their first day."""
    _say(client, 1, days_ago=40)
    _say(client, 1, days_ago=3)
    midnight = datetime.combine(TODAY, datetime.min.time(), UTC)
    begins, ends = midnight - timedelta(days=50), midnight - timedelta(days=10)
    found = client.volume(start_time=begins.isoformat(), end_time=ends.isoformat(), period=period)
    (series,) = found.series
    assert (found.period, sum(series.data.values())) == (period, 1)
    days = [datetime.fromisoformat(day) for day in series.data]
    assert days == sorted(days)
    assert all(day.weekday() == 0 for day in days) or period != "week"
    assert all(day.day == 1 for day in days) or period != "month"


def test_a_tenants_series_are_its_own(client: ContextAPI) -> None:
    """What another tenant logged counts nowhere else."""
    _say(client, 1, tenant="acme")
    _say(client, -1, -1)
    assert client.rating(tenant_id="acme").series[0].data == {_day(0): 1.0}
    assert client.volume(tenant_id="acme").series[0].data[_day(0)] == 1
    assert client.rating().series[0].data == {_day(0): -1.0}


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ({"period": "year"}, "period must be one of day, week, month"),
        ({"start_time": "soon"}, "start_time is not an ISO 8601 time"),
        ({"end_time": "2026-13-01"}, "end_time is not an ISO 8601 time"),
        ({"start_time": "0001-01-01"}, "more than 1000 buckets"),
        ({"start_time": "0001-01-01T00:00:00-23:00", "end_time": "9999-12-31T23:59:59+23:00"}, "ISO 8601|buckets"),
    ],
)
def test_what_cannot_be_counted_is_refused(client: ContextAPI, query: dict[str, str], message: str) -> None:
    """With the reason, and before anything is counted."""
    with pytest.raises(HttpResponseError, match=message) as caught:
        client.volume(**query)
    assert caught.value.status_code == 400


def test_a_span_that_ends_before_it_begins_is_empty(client: ContextAPI) -> None:
    """Nothing happened in no time."""
    found = client.volume(start_time="2026-02-01", end_time="2026-01-01")
    assert found.series[0].data == {}


@pytest.mark.parametrize("path", ["", "/volume", "/rating", "/nonsense"])
def test_series_are_for_readers(server: Served, path: str) -> None:
    """No key, and a key that may only send, read nothing."""
    url = f"{server.url}/api/v1/conversations/series{path}"
    assert httpx.get(url).status_code == 401
    said = {"Authorization": f"Bearer {server.key('ingest')}"}
    assert httpx.get(url, headers=said).status_code == 403


async def test_the_async_client_asks_the_same(server: Served, client: ContextAPI) -> None:
    """The same through context-python's async client, and nothing without a key."""
    _say(client, 1)
    key = server.key("read")
    policy = AzureKeyCredentialPolicy(AzureKeyCredential(key), "Authorization", prefix="Bearer")
    async with AsyncContextAPI(
        AsyncCredential(key), endpoint=server.url, authentication_policy=policy, retry_total=0
    ) as made:
        assert (await made.volume()).series[0].data[_day(0)] == 1
        assert (await made.rating()).series[0].data == {_day(0): 1.0}
    with context_client(server.url, "cw_read_nonsense") as stranger, pytest.raises(ClientAuthenticationError):
        stranger.volume()
