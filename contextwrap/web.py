"""Middleware that makes each request a session: `ContextMiddleware` for ASGI, `WSGIContextMiddleware` for WSGI.

    app.add_middleware(ContextMiddleware, user_id=lambda scope: scope["user"].id)       # Starlette, FastAPI
    app.wsgi_app = WSGIContextMiddleware(app.wsgi_app, user_cookie="uid")               # Flask

Whatever LangChain runs for the request belongs to it: in sync endpoints, background tasks and streaming answers too.
The id of the answer is sent along in a header, so that a front end can rate it. A request passes through unchanged but
for that header. Needs no web framework.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from contextwrap.client import default_client, is_configured
from contextwrap.errors import ConfigurationError
from contextwrap.identity import CAPTURES, current_scope
from contextwrap.model import MAX_METADATA_VALUE
from contextwrap.sessions import session
from contextwrap.streams import entered

if TYPE_CHECKING:
    from collections.abc import Awaitable, MutableMapping

    from contextwrap.identity import Capture, Scope, Turn

    Message: TypeAlias = MutableMapping[str, Any]
    Send: TypeAlias = Callable[[Message], Awaitable[None]]
    ASGIApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
    WSGIApp: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

Said: TypeAlias = str | Callable[[Any], Any] | None
"""A constant, or a callable over the ASGI scope or the WSGI environ."""

ANSWER_HEADER: Final = "x-contextwrap-answer"
_EMPTY: Final = (204, 205)
_HEADER_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Middleware:
    """What both have: whose a request is, and what its response says of the answer.

    `user_id`, `thread_id` and the values of `metadata` are each a constant or a callable, which alone counts where it
    is given; else a header's value does, then a cookie's (off unless named). A header is believed as it comes: let
    your gateway set it, or name None. `capture` is a session's. `answer_header` names the response header with the
    answer's message id, for `rate(message=…)`; a page of another origin sees it with Access-Control-Expose-Headers
    only. It names the last answer of a response that is complete when it begins (it has a Content-Length), else the
    next one, which is yet to be streamed; a failure, an empty response and HEAD have no next one, and a response that
    has the header keeps its own. Raises ConfigurationError for another `capture`, and for what is no header's name.
    """

    def __init__(
        self,
        app: Any,
        *,
        user_id: Said = None,
        thread_id: Said = None,
        metadata: Mapping[str, Said] | None = None,
        tags: Iterable[str] = (),
        user_header: str | None = "x-user-id",
        thread_header: str | None = "x-thread-id",
        user_cookie: str | None = None,
        thread_cookie: str | None = None,
        capture: Capture = "content",
        answer_header: str | None = ANSWER_HEADER,
    ) -> None:
        if capture not in CAPTURES:
            raise ConfigurationError(f"capture is one of {', '.join(CAPTURES)}, not {capture!r}")
        if answer_header is not None and not _HEADER_NAME.fullmatch(answer_header):
            raise ConfigurationError(f"answer_header: {answer_header!r} is no name of a header")
        self._app = app
        self._user = user_id, user_header, user_cookie
        self._thread = thread_id, thread_header, thread_cookie
        self._metadata = dict(metadata or {})
        self._tags = (tags,) if isinstance(tags, str) else tuple(tags)
        self._capture = capture
        self._answer_header = answer_header

    def _session(self, request: Any, headers: Callable[[str], str | None]) -> session:
        cookies = headers("cookie") or ""
        return session(
            user_id=_found(*self._user, request, headers, cookies),
            thread_id=_found(*self._thread, request, headers, cookies),
            metadata={key: _said(value, request) for key, value in self._metadata.items()},
            tags=self._tags,
            capture=self._capture,
        )

    def _answer(self, turn: Turn, *, status: int, method: str, names: Iterable[str]) -> str | None:
        """The id to send with a response of these headers; None when there is no answer to speak of."""
        present = {name.lower() for name in names}
        if self._answer_header is None or self._capture == "off" or self._answer_header.lower() in present:
            return None
        if "content-length" in present:
            return turn.answer_id
        streams = 200 <= status < 300 and status not in _EMPTY and method != "HEAD"  # noqa: PLR2004  HTTP's own
        return turn.promise_next() if streams else None


class ContextMiddleware(Middleware):
    """ASGI middleware: each request, and each websocket for as long as it is open, is a session.

    When the app shuts down, what waits is delivered, for `exit_timeout` at most.

    The keywords are `Middleware`'s.
    """

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, functools.partial(_send_at_the_end, send))
            return
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        given = {name.lower(): value for name, value in scope.get("headers", ())}

        def header(name: str) -> str | None:
            value: bytes | None = given.get(name.lower().encode("latin-1", "replace"))
            return None if value is None else value.decode("latin-1")

        async with self._session(scope, header):
            here = current_scope()

            async def send_with_answer(message: Message) -> None:
                if message["type"] == "http.response.start" and here is not None:
                    with default_client().guard("web"):
                        self._add(message, here.turn, scope.get("method", ""))
                await send(message)

            await self._app(scope, receive, send_with_answer)

    def _add(self, message: Message, turn: Turn, method: str) -> None:
        headers = list(message.get("headers", ()))
        names = [name.decode("latin-1") for name, _ in headers]
        answer = self._answer(turn, status=message["status"], method=method, names=names)
        if answer is not None:
            assert self._answer_header is not None
            message["headers"] = [*headers, (self._answer_header.lower().encode("latin-1"), answer.encode())]


class WSGIContextMiddleware(Middleware):
    """WSGI middleware: each request, until its answer has been read, is a session.

    The keywords are `Middleware`'s.
    """

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Serve one request."""

        def header(name: str) -> str | None:
            value = environ.get("HTTP_" + name.upper().replace("-", "_"))
            return None if value is None else str(value)

        here = self._session(environ, header).scope()

        def start_with_answer(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            with default_client().guard("web"):
                names = [name for name, _ in headers]
                method = environ.get("REQUEST_METHOD", "")
                answer = self._answer(here.turn, status=int(status[:3]), method=method, names=names)
                if answer is not None:
                    headers = [*headers, (str(self._answer_header), answer)]
            return start_response(status, headers, *exc_info)

        answer: Iterable[bytes] = ()
        try:
            with entered(here):
                answer = self._app(environ, start_with_answer)
        finally:
            # What is streamed goes on until it is closed.
            if isinstance(answer, (list, tuple, bytes)):
                _over(here)
        file_wrapper = environ.get("wsgi.file_wrapper")
        sent_whole = isinstance(file_wrapper, type) and isinstance(answer, file_wrapper)
        if sent_whole or isinstance(answer, (list, tuple, bytes)):
            return answer
        return _Answer(answer, here)


class _Answer:
    """An answer's chunks, each made in the request's session; between them the server's thread is in none."""

    def __init__(self, answer: Iterable[bytes], here: Scope) -> None:
        self._answer = answer
        self._here = here
        self._chunks: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with entered(self._here):
            if self._chunks is None:
                self._chunks = iter(self._answer)
            return next(self._chunks)

    def close(self) -> None:
        """PEP 3333: the server has read all it wants."""
        close = getattr(self._answer, "close", None)
        try:
            if close is not None:
                with entered(self._here):
                    close()
        finally:
            _over(self._here)


async def _send_at_the_end(send: Send, message: Message) -> None:
    """Deliver before the app says that it has shut down: servers end on SIGTERM without Python's exit handlers."""
    if message["type"] == "lifespan.shutdown.complete" and is_configured():
        client = default_client()
        await client.aflush(client.settings.exit_timeout)
    await send(message)


def _over(request: Scope) -> None:
    if request.activity.outer is None:
        default_client().call_over()


def _found(
    said: Said, header: str | None, cookie: str | None, request: Any, headers: Callable[[str], str | None], cookies: str
) -> str | None:
    if said is not None:
        # Who is asked for is not also taken from whoever sends the request.
        return _said(said, request)
    value = None if header is None else _clean(headers(header))
    if value is None and cookie is not None:
        pairs = (part.strip().partition("=") for part in cookies.split(";"))
        value = _clean(next((value for name, _, value in pairs if name == cookie), None))
    return value


def _said(said: Said, request: Any) -> str | None:
    with default_client().guard("web"):
        return _clean(said(request) if callable(said) else said)
    return None


def _clean(value: Any) -> str | None:
    """What may name somebody: text with something in it; without end, nobody's name."""
    text = "" if value is None else str(value).strip().strip('"')[:MAX_METADATA_VALUE]
    return text or None
