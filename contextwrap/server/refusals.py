"""The one shape of every refusal: `{"error": {"code", "message"}}`, which context-python shows as its error's text.

Browsers that ask for a page get the same words as a page.
"""

from __future__ import annotations

import logging
from http import HTTPStatus
from typing import TYPE_CHECKING, Final

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from contextwrap.errors import WireError
from contextwrap.server.render import error_page

if TYPE_CHECKING:
    from collections.abc import Mapping

    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response

logger = logging.getLogger("contextwrap")

_CODES: Final = {
    400: "BadRequest",
    401: "Unauthorized",
    403: "Forbidden",
    404: "NotFound",
    405: "MethodNotAllowed",
    413: "PayloadTooLarge",
    429: "TooManyRequests",
    500: "InternalError",
    503: "Unavailable",
}
_TITLES: Final = {403: "Not for this sign-in", 404: "Nothing here", 429: "Too many tries", 500: "That went wrong"}


class Refusal(HTTPException):
    """A request that is not served, and what to do about it."""

    def __init__(self, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(status, detail=message, headers=headers)


def refusal(status: int, message: str, *, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """The response in the one shape."""
    error = {"code": code_of(status), "message": message}
    return JSONResponse({"error": error}, status_code=status, headers=headers)


def code_of(status: int) -> str:
    """The one word for a status."""
    return _CODES.get(status) or HTTPStatus(status).phrase.title().replace(" ", "")


def install(app: FastAPI) -> None:
    """Make every error of the app one of these."""
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(WireError, _malformed)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(ClientDisconnect, _gone)
    app.add_exception_handler(Exception, _broken)


def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    message = str(error.detail)
    if message == HTTPStatus(error.status_code).phrase:
        message = f"{request.method} {request.url.path[:200]}: {message}"
    return _answer(request, error.status_code, message, headers=error.headers)


def _malformed(request: Request, error: Exception) -> Response:
    return _answer(request, 400, str(error))


def _invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    return _answer(request, 400, f"{'.'.join(map(str, first['loc']))}: {first['msg']}")


def _gone(request: Request, error: Exception) -> Response:  # noqa: ARG001  nobody hears it
    return refusal(400, "the sender hung up")


def _broken(request: Request, error: Exception) -> Response:
    logger.error("contextwrap: %s %s failed", request.method, request.url.path, exc_info=error)
    return _answer(request, 500, "the server failed; its log says why")


def _answer(request: Request, status: int, message: str, *, headers: Mapping[str, str] | None = None) -> Response:
    wants_page = "text/html" in request.headers.get("accept", "") and not request.url.path.startswith("/api/")
    if not wants_page:
        return refusal(status, message, headers=headers)
    page = error_page(request, status=status, title=_TITLES.get(status, "That cannot be shown"), text=message)
    page.headers.update(headers or {})
    return page
