"""The Context API: the log routes and the reads of conversations, as context-python speaks them.

A log call is in the journal, on disk, before it is answered; reads wait a little for what was in the journal
when they came, so that a client reads what it wrote.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request  # noqa: TC002  FastAPI reads the signatures
from starlette.responses import Response

from contextwrap.errors import WireError
from contextwrap.ids import new_id
from contextwrap.model import RATINGS, Log, Rating, RatingMark, Route, from_json, to_iso, to_json
from contextwrap.model import Request as LogRequest
from contextwrap.server.auth import Ingester, Reader, rater
from contextwrap.server.intake import SETTLE_SECONDS, check_known, key_of, sealed, take
from contextwrap.server.limits import check_depth, read_body
from contextwrap.server.refusals import Refusal, refusal
from contextwrap.server.times import end_of, start_of
from contextwrap.store.records import ConversationQuery
from contextwrap.tokens import MAX_FEEDBACK

if TYPE_CHECKING:
    from collections.abc import Mapping

    from contextwrap.model import Message
    from contextwrap.server.house import House
    from contextwrap.server.keys import Viewer
    from contextwrap.store.records import Page, StoredConversation

MAX_PER_PAGE: Final = 100
MAX_RATING_BODY: Final = 16 * 1024
_ANY_SITE: Final = {"Access-Control-Allow-Origin": "*"}
_PREFLIGHT: Final = _ANY_SITE | {
    "Access-Control-Allow-Methods": "POST",
    "Access-Control-Allow-Headers": "content-type",
    "Access-Control-Max-Age": "86400",
}

router = APIRouter()


@router.post("/api/v1/log/conversation", status_code=201)
@router.post("/api/v1/log/conversation/upsert", status_code=201)
async def log_conversation(request: Request, sender: Ingester) -> Response:
    """Log a conversation, or more of one that is sent whole each time."""
    await _accept(request, sender)
    return _json({"status": "ok"}, status=201)


@router.post("/api/v1/log/conversation/thread", status_code=201)
async def log_thread(request: Request, sender: Ingester) -> Response:
    """Append messages to the thread of that id, or begin it; without an id one is made."""
    log = await _accept(request, sender)
    assert log.conversation is not None
    appended = [
        {"id": item.id, "role": item.role, "message": item.message, "rating": item.rating or 0}
        for item in log.conversation.messages
    ]
    data = {"id": log.conversation.id, "appended_messages": appended}
    return _json({"status": "ok", "data": data}, status=201)


@router.patch("/api/v1/log/conversation/thread/{rated:path}")
async def rate(request: Request, sender: Ingester, rated: str) -> Response:
    """Rate a message by its id, or the newest answers of a thread by its id."""
    await run_in_threadpool(check_known, _house(request), rated, sender.tenant_id)
    await _accept(request, sender)
    return _json({"status": "ok"})


@router.options("/api/v1/rate", include_in_schema=False)
def rate_preflight() -> Response:
    """Let a page of any site ask: the token decides, and there are no cookies in it."""
    return Response(status_code=204, headers=_PREFLIGHT)


@router.post("/api/v1/rate")
async def rate_by_token(request: Request) -> Response:
    """Rate the one answer that a rating token names, without a key: `{"token", "rating", "feedback"?}`.

    The content type does not matter, so that navigator.sendBeacon may send it as text. Of feedback the first 2000
    characters are kept.
    """
    try:
        body = await read_body(request, limit=MAX_RATING_BODY)
        await run_in_threadpool(_rate_by_token, _house(request), body)
    except Refusal as refused:
        return refusal(refused.status_code, refused.detail, headers=_ANY_SITE)
    except WireError as malformed:
        return refusal(400, str(malformed), headers=_ANY_SITE)
    return _json({"status": "ok"}, headers=_ANY_SITE)


@router.get("/api/v1/conversations")
def conversations(
    request: Request,
    asker: Reader,
    start_time: str | None = None,
    end_time: str | None = None,
    page: Annotated[int, Query(ge=1, le=1_000_000)] = 1,
    per_page: Annotated[int, Query(ge=1, le=MAX_PER_PAGE)] = 20,
    user_id: str | None = None,
    rating: int | None = None,
) -> Response:
    """A page of whole conversations, newest first; of the last 6 days when no time is said."""
    if rating is not None and rating not in RATINGS:
        raise Refusal(400, "rating must be -1, 0 or 1")
    query = ConversationQuery(
        tenant_id=asker.tenant_id,
        start=start_of(start_time),
        # "until now" takes in what was logged while the question was on its way.
        end=end_of(end_time),
        user_id=user_id,
        rating=cast("Rating | None", rating),
        page=page,
        per_page=per_page,
    )
    house = _house(request)
    house.pipeline.settle(SETTLE_SECONDS)
    found = house.store.conversations(query)
    items = [_conversation(item) for item in found.items]
    return _json({"conversations": items, "pagination": _pagination(found)})


@router.get("/api/v1/conversations/{conversation_id:path}")
def conversation(request: Request, asker: Reader, conversation_id: str) -> Response:
    """One whole conversation."""
    house = _house(request)
    house.pipeline.settle(SETTLE_SECONDS)
    found = house.store.conversation(conversation_id, tenant_id=asker.tenant_id)
    if found is None:
        raise Refusal(404, "no conversation has this id")
    return _json(_conversation(found))


@router.get("/healthz")
def healthz(request: Request) -> Response:
    """Whether the server works, and how many records wait for the store."""
    return _json({"status": "ok", "journal": _house(request).pipeline.depth()})


def _rate_by_token(house: House, body: bytes) -> None:
    said = from_json(body)
    if not isinstance(said, dict):
        raise WireError("the body must be an object")
    rating, feedback = said.get("rating"), said.get("feedback")
    if type(rating) is not int or rating not in RATINGS:
        raise WireError("rating must be -1, 0 or 1")
    if not isinstance(feedback, str | None):
        raise WireError("feedback must be a string")
    allowed = rater(house, said.get("token"))
    rated = allowed.answer or allowed.thread or ""
    check_known(house, rated, allowed.tenant)
    mark = RatingMark(rating=cast("Rating", rating), feedback=None if feedback is None else feedback[:MAX_FEEDBACK])
    log = Log(route=Route.RATING, tenant_id=allowed.tenant, rated=rated, marks=(mark,))
    _journal(house, log.to_request(), allowed.tenant, new_id())


async def _accept(request: Request, sender: Viewer) -> Log:
    """Put the call into the journal under its idempotency key; the same key names the same ids."""
    body = await read_body(request)
    sent = LogRequest(
        method=cast("Literal['POST', 'PATCH']", request.method),
        target=request.scope["raw_path"].decode("latin-1"),
        body=body,
    )
    key = key_of(sender, request.headers.get("x-ms-client-request-id"))
    return await run_in_threadpool(_journal, _house(request), sent, sender.tenant_id, key)


def _journal(house: House, sent: LogRequest, tenant_id: str, key: str) -> Log:
    check_depth(sent.body)
    log, parcel = sealed(Log.from_request(sent), tenant_id=tenant_id, key=key)
    take(house, parcel)
    return log


def _conversation(stored: StoredConversation) -> dict[str, Any]:
    """ConversationResponse, with what the client's model has no room for beside it."""
    return {
        "id": stored.id,
        "metadata": dict(stored.metadata),
        "sentiment_trend": "flat",
        "topics": [],
        "suggested_topics": [],
        "feedback": stored.feedback,
        "messages": [_message(message) for message in stored.messages],
    }


def _message(message: Message) -> dict[str, Any]:
    """MessageResponse: every key the client requires is filled, on tool and event rows as well."""
    return {
        "id": message.id,
        "type": message.type,
        "event_timestamp": to_iso(message.event_timestamp) if message.event_timestamp is not None else None,
        "role": message.role,
        "message": message.message,
        "rating": message.rating or 0,
        "rated": message.rating is not None,
        "language": "und",
        "translation": None,
        "sentiment": 0.0,
        "topics": [],
        "suggested_topics": [],
        "metadata": dict(message.metadata),
        "name": message.name,
        "thought": message.thought,
        "input": message.input,
        "observation": message.observation,
    }


def _pagination(page: Page[Any]) -> dict[str, int | None]:
    return {
        "total_records": page.total,
        "per_page": page.per_page,
        "current_page": page.page,
        "previous_page": page.previous_page,
        "next_page": page.next_page,
        "page_count": page.page_count,
    }


def _json(value: object, *, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """Also what UTF-8 cannot carry, as a client may have sent it."""
    return Response(to_json(value), status_code=status, media_type="application/json", headers=headers)


def _house(request: Request) -> House:
    house: House = request.app.state.house
    return house
