"""Middleware that makes each request a session: `ContextMiddleware` for ASGI, `WSGIContextMiddleware` for WSGI.

    app.add_middleware(ContextMiddleware, user_id=lambda scope: scope["user"].id)       # Starlette, FastAPI
    app.wsgi_app = WSGIContextMiddleware(app.wsgi_app, user_cookie="uid")               # Flask

Whatever LangChain runs for the request belongs to it: in sync endpoints, background tasks and streaming answers too.
The id of the answer is sent along in a header, so that a front end can rate it. A request passes through unchanged but
for that header. Needs no web framework.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextvars import Context, copy_context
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from contextwrap.client import default_client
from contextwrap.errors import ConfigurationError
from contextwrap.identity import CAPTURES, current_scope, scope_var
from contextwrap.sessions import session

if TYPE_CHECKING:
    from collections.abc import Awaitable, MutableMapping

    from contextwrap.identity import Capture, Turn

    Message: TypeAlias = MutableMapping[str, Any]
    ASGIApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
    WSGIApp: TypeAlias = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

Said: TypeAlias = str | Callable[[Any], Any] | None
"""A constant, or a callable over the ASGI scope or the WSGI environ."""

ANSWER_HEADER: Final = "x-contextwrap-answer"
_MAX_VALUE: Final = 256


class Middleware:
    """What both have: whose a request is, and what its response says of the answer.

    `user_id`, `thread_id` and the values of `metadata` are each a constant or a callable; where that says nothing, a
    header's value counts, then a cookie's (off unless named). A header is believed as it comes: let your gateway set
    it, or name None. `capture` is a session's. `answer_header` names the response header with the answer's message
    id, for `rate(message=…)`; a page of another origin sees it with Access-Control-Expose-Headers only. It names the
    last answer of a response that is complete when it begins (it has a Content-Length), else the next one, which is
    yet to be streamed. Raises ConfigurationError for another `capture`.
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
        self._app = app
        self._user = user_id, user_header, user_cookie
        self._thread = thread_id, thread_header, thread_cookie
        self._metadata = dict(metadata or {})
        self._tags = tuple(tags)
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

    def _answer(self, turn: Turn, *, complete: bool) -> str | None:
        """The id to send; None when there is no answer to speak of."""
        if self._answer_header is None or self._capture == "off":
            return None
        return turn.answer_id if complete else turn.promise_next()


class ContextMiddleware(Middleware):
    """ASGI middleware: each request, and each websocket for as long as it is open, is a session.

    The keywords are `Middleware`'s.
    """

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        given = {name.lower(): value for name, value in scope.get("headers", ())}

        def header(name: str) -> str | None:
            value: bytes | None = given.get(name.lower().encode("latin-1", "replace"))
            return None if value is None else value.decode("latin-1")

        with self._session(scope, header):
            here = current_scope()

            async def send_with_answer(message: Message) -> None:
                if message["type"] == "http.response.start" and here is not None:
                    with default_client().guard("web"):
                        self._add(message, here.turn)
                await send(message)

            await self._app(scope, receive, send_with_answer)

    def _add(self, message: Message, turn: Turn) -> None:
        headers = list(message.get("headers", ()))
        answer = self._answer(turn, complete=any(name.lower() == b"content-length" for name, _ in headers))
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

        # A Context of the request's own: a server reads the answer when, and in whichever thread, it likes.
        context = copy_context()
        context.run(self._session(environ, header).enter)
        here = context[scope_var]
        assert here is not None

        def start_with_answer(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            with default_client().guard("web"):
                complete = any(name.lower() == "content-length" for name, _ in headers)
                answer = self._answer(here.turn, complete=complete)
                if answer is not None:
                    headers = [*headers, (str(self._answer_header), answer)]
            return start_response(status, headers, *exc_info)

        answer: Iterable[bytes] = context.run(self._app, environ, start_with_answer)
        file_wrapper = environ.get("wsgi.file_wrapper")
        sent_whole = isinstance(file_wrapper, type) and isinstance(answer, file_wrapper)
        if sent_whole or isinstance(answer, (list, tuple, bytes)):
            return answer
        return _Answer(answer, context)


class _Answer:
    """An answer's chunks, each made in the request's own Context."""

    def __init__(self, answer: Iterable[bytes], context: Context) -> None:
        self._answer = answer
        self._context = context
        self._chunks: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        if self._chunks is None:
            self._chunks = self._context.run(iter, self._answer)
        return self._context.run(next, self._chunks)

    def close(self) -> None:
        """PEP 3333: the server has read all it wants."""
        close = getattr(self._answer, "close", None)
        if close is not None:
            self._context.run(close)


def _found(
    said: Said, header: str | None, cookie: str | None, request: Any, headers: Callable[[str], str | None], cookies: str
) -> str | None:
    value = _said(said, request)
    if value is None and header is not None:
        value = _clean(headers(header))
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
    text = "" if value is None else str(value).strip().strip('"')[:_MAX_VALUE]
    return text or None
