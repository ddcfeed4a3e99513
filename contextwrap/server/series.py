"""The Context API's series: what happened by day, week or month.

Buckets are named by their first day, in UTC. Volume is the number of conversations that began, also 0; rating is the
mean of the ratings given, and a period in which nothing was rated has none. Sentiment is none of them until it is
scored.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final, cast

from fastapi import APIRouter, Depends
from starlette.requests import Request  # noqa: TC002  FastAPI reads the signatures
from starlette.responses import JSONResponse

from contextwrap.model import to_iso
from contextwrap.server.auth import Reader  # noqa: TC001  FastAPI reads the signatures
from contextwrap.server.intake import SETTLE_SECONDS
from contextwrap.server.refusals import Refusal
from contextwrap.server.times import end_of, start_of
from contextwrap.store.periods import PERIODS, Period, spans
from contextwrap.store.records import Bucket, SeriesQuery

if TYPE_CHECKING:
    from collections.abc import Callable

    from contextwrap.server.house import House

AVAILABLE: Final = ("rating", "volume")
MAX_BUCKETS: Final = 1000

router = APIRouter()


def asked(
    asker: Reader, start_time: str | None = None, end_time: str | None = None, period: str | None = None
) -> SeriesQuery:
    """What is asked for: by day, and the last 6 days until now, unless it is said."""
    if period is not None and period not in PERIODS:
        raise Refusal(400, f"period must be one of {', '.join(PERIODS)}")
    query = SeriesQuery(
        start=start_of(start_time),
        end=end_of(end_time) or datetime.now(UTC),
        period=cast("Period", period or "day"),
        tenant_id=asker.tenant_id,
    )
    if spans(query.start, query.end, period=query.period) > MAX_BUCKETS:
        raise Refusal(400, f"that is more than {MAX_BUCKETS} buckets: ask for less time, or by a longer period")
    return query


Asked = Annotated[SeriesQuery, Depends(asked)]


@router.get("/api/v1/conversations/series")
def available(asker: Reader) -> JSONResponse:  # noqa: ARG001  who may not read may not ask
    """Which series there are."""
    return JSONResponse({"available": list(AVAILABLE)})


@router.get("/api/v1/conversations/series/volume")
def volume(request: Request, query: Asked) -> JSONResponse:
    """How many conversations began in each period."""
    return _series(request, query, "Volume", lambda bucket: bucket.conversations)


@router.get("/api/v1/conversations/series/rating")
def rating(request: Request, query: Asked) -> JSONResponse:
    """The mean rating, from -1 to 1, of each period in which something was rated."""
    return _series(request, query, "Rating", lambda bucket: bucket.rating)


@router.get("/api/v1/conversations/series/{name}", include_in_schema=False)
def unknown(asker: Reader, name: str) -> JSONResponse:  # noqa: ARG001  likewise
    """No conversation, whatever its id: the API keeps these addresses for series."""
    raise Refusal(404, f"there is no series of this name, but {' and '.join(AVAILABLE)}")


def _series(request: Request, query: SeriesQuery, name: str, value: Callable[[Bucket], float | None]) -> JSONResponse:
    house: House = request.app.state.house
    house.pipeline.settle(SETTLE_SECONDS)
    found = [(bucket.begins.isoformat(), value(bucket)) for bucket in house.store.series(query)]
    return JSONResponse(
        {
            "series": [{"name": name, "data": {day: number for day, number in found if number is not None}}],
            "type": name.lower(),
            "period": query.period,
            "start_time": to_iso(query.start),
            "end_time": to_iso(query.end),
        }
    )
