"""The dashboard's pages as routes: read the query string, ask the store once, render.

What a page shows is decided in `views`; who may see it, in `auth`.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Final

from fastapi import APIRouter, Depends
from fastapi.responses import RedirectResponse
from starlette.requests import Request  # noqa: TC002  FastAPI reads the annotations
from starlette.responses import Response  # noqa: TC002  likewise

from contextwrap.server import views
from contextwrap.server.auth import viewer
from contextwrap.server.filters import NAMES, FilterError, filters, kept, page_number
from contextwrap.server.keys import Viewer
from contextwrap.server.render import error_page, html
from contextwrap.store.records import ConversationQuery

if TYPE_CHECKING:
    from contextwrap.store.records import Store

PER_PAGE: Final = 25

router = APIRouter(include_in_schema=False)

Reader = Annotated[Viewer, Depends(viewer)]


@router.get("/")
def home() -> Response:
    """The front door leads to the list."""
    return RedirectResponse(views.list_url(), status_code=303)


@router.get("/conversations/")
def conversations_with_slash() -> Response:
    """A slash too many."""
    return RedirectResponse(views.list_url(), status_code=303)


@router.get("/conversations")
def conversations(request: Request, reader: Reader) -> Response:
    """The list of conversations; what the form left empty, and pages beyond the end, lead to the URL without."""
    params = request.query_params
    try:
        asked, page = filters(params), page_number(params)
    except FilterError as error:
        return error_page(request, status=400, title="That filter cannot be used", text=str(error), reader=reader)
    if any(params.get(name) == "" for name in (*NAMES, "page")):
        return RedirectResponse(views.list_url(asked.query(page=page)), status_code=303)
    found = _store(request).summaries(
        ConversationQuery(
            tenant_id=reader.tenant_id,
            start=asked.start,
            end=asked.end,
            user_id=asked.user,
            rating=asked.rating,
            page=page,
            per_page=PER_PAGE,
        )
    )
    if page > found.page_count:
        return RedirectResponse(views.list_url(asked.query(page=found.page_count)), status_code=303)
    context = views.conversations_page(found, filters=asked, now=datetime.now(UTC))
    return html(request, "conversations.html", page=context, reader=reader)


@router.get("/conversations/{conversation_id:path}")
def conversation(request: Request, conversation_id: str, reader: Reader) -> Response:
    """One transcript; its query string says which list to go back to."""
    found = _store(request).conversation(conversation_id, tenant_id=reader.tenant_id)
    if found is None:
        return error_page(
            request,
            status=404,
            title="No such conversation",
            text="It may have been removed, or belong to another tenant, or not have arrived yet.",
            reader=reader,
        )
    context = views.conversation_page(found, back=kept(request.query_params))
    return html(request, "conversation.html", page=context, reader=reader)


def _store(request: Request) -> Store:
    store: Store = request.app.state.house.store
    return store
