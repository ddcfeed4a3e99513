"""Middleware for ASGI and WSGI: each request is a session, and the response says by which id to rate its answer.

    app.add_middleware(ContextMiddleware, user_id=lambda scope: scope["session"].get("user"))     # Starlette, FastAPI
    app.wsgi_app = WSGIContextMiddleware(app.wsgi_app, user_id=lambda environ: …)                 # Flask
    application = WSGIContextMiddleware(get_wsgi_application())                                   # Django

The session holds wherever the request's code runs: handlers, thread pools, background tasks, streamed bodies. A
websocket connection is one session; lifespan is left alone. What is said here of user and thread is what a `session`
inside inherits. Starlette calls the middleware added last first: to read what another middleware finds (who is signed
in), add this one before that one.

Who it is: with `user_id=` only that; without it what the request's `x-user-id` header says, then the cookie named by
`user_cookie`; for the thread likewise. A header or cookie is believed as it comes: let your gateway set the header and
drop what clients send, or switch it off with None.

The answer's id is in the `x-contextwrap-answer` header, for `rate(+1, message=id)`:

- a response of known length is complete: it names the last answer recorded, and when there is none has no header;
- any other is a stream, whose answer is yet to come: it names the id that the next answer will have, which nobody has
  to wait for. Nobody can tell a stream without LangChain from one with it, so a 2xx stream always names one.

An answer in a session of another thread, opened inside, is not named. In a browser, scripts of another origin see the
header only when you send `Access-Control-Expose-Headers: x-contextwrap-answer`.

Adds headers and one ContextVar, held while the request's own code runs; status, body, exceptions and timing are the
app's. Knows ASGI and WSGI, no framework, nothing of LangChain.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, MutableMapping, Sized
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from contextwrap import streams as streams  # the first request is not the one that waits for LangChain
from contextwrap.bounds import bounded_id
from contextwrap.client import default_client
from contextwrap.errors import ConfigurationError
from contextwrap.identity import CAPTURES, current_scope, scope_var
from contextwrap.sessions import session

if TYPE_CHECKING:
    from contextwrap.identity import Capture, Scope

Value: TypeAlias = str | Callable[[Any], Any] | None
"""A constant, or a callable over the ASGI scope or WSGI environ."""

Wire: TypeAlias = MutableMapping[str, Any]
"""An ASGI scope or message, or a WSGI environ."""

Receive: TypeAlias = Callable[[], Awaitable[Wire]]
Send: TypeAlias = Callable[[Wire], Awaitable[None]]
ASGIApp: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
WSGIApp: TypeAlias = Callable[[Any, Any], Iterable[bytes]]

_DOING: Final = "ContextMiddleware"
_NAME: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HARMLESS: Final = re.compile(r"[!-~]{1,128}")
_BODILESS: Final = ("204", "205")


class _Middleware:
    """What both have: whose a request is, and what its response tells.

    `user_id`, `thread_id` and the values of `metadata` are a constant or a callable over the scope or environ; a
    callable that fails is counted. `tags` and `capture` are a session's. `thread_response_header` names a header that
    tells the thread's id beside the answer's. Raises ConfigurationError for what can never work.
    """

    def __init__(
        self,
        app: Any,
        *,
        user_id: Value = None,
        thread_id: Value = None,
        metadata: Mapping[str, Value] | None = None,
        tags: Iterable[str] = (),
        user_header: str | None = "x-user-id",
        thread_header: str | None = "x-thread-id",
        user_cookie: str | None = None,
        thread_cookie: str | None = None,
        capture: Capture = "content",
        answer_header: str | None = "x-contextwrap-answer",
        thread_response_header: str | None = None,
    ) -> None:
        self.app = app
        self._user = (user_id, _header_name(user_header), user_cookie)
        self._thread = (thread_id, _header_name(thread_header), thread_cookie)
        self._metadata = dict(metadata or {})
        self._tags = (tags,) if isinstance(tags, str) else tuple(tags)
        self._capture = capture
        self._answer_header = _header_name(answer_header)
        self._thread_response_header = _header_name(thread_response_header)
        if capture not in CAPTURES:
            raise ConfigurationError(f"{_DOING}: capture is one of {', '.join(CAPTURES)}, not {capture!r}")
        if any(inspect.iscoroutinefunction(value) for value in (user_id, thread_id, *self._metadata.values())):
            raise ConfigurationError(f"{_DOING}: a callable that says who it is is called, not awaited: use a def")

    @property
    def _tells(self) -> bool:
        return bool(self._answer_header or self._thread_response_header)

    def _place(self, wire: Wire, field: Callable[[str], str | None]) -> _Place:
        """A session of its own for the request; `field` looks a header up."""
        with default_client().guard(_DOING):
            metadata = {key: _said(value, wire) for key, value in self._metadata.items()}
            with session(
                user_id=_who(self._user, wire, field),
                thread_id=_who(self._thread, wire, field),
                metadata=metadata,
                tags=self._tags,
                capture=self._capture,
            ):
                return _Place(current_scope())
        return _Place(current_scope())

    def _told(self, scope: Scope | None, status: str, names: Iterable[str], *, bodiless: bool) -> list[tuple[str, str]]:
        """The headers to add to a response that has headers of these names."""
        if scope is None:
            return []
        present = {name.lower() for name in names}
        turn = scope.turn
        if "content-length" in present:
            answer = turn.answer_id
        elif bodiless or status[:1] != "2" or status in _BODILESS or scope.identity.capture == "off":
            answer = None
        else:
            answer = turn.promise_next()
        if answer is None:
            return []
        told = ((self._answer_header, answer), (self._thread_response_header, scope.identity.thread_id or ""))
        return [(name, value) for name, value in told if name and name not in present and _HARMLESS.fullmatch(value)]


class ContextMiddleware(_Middleware):
    """ASGI middleware: each HTTP request and each websocket connection is a session of its own."""

    app: ASGIApp

    async def __call__(self, scope: Wire, receive: Receive, send: Send) -> None:
        """One ASGI call, in the session's context from its beginning to its end."""
        if scope["type"] not in {"http", "websocket"}:
            await self.app(scope, receive, send)
            return
        place = self._place(scope, _asgi_fields(scope))
        tells = scope["type"] == "http" and self._tells
        with place.step():
            await self.app(scope, receive, self._telling(scope, place.scope, send) if tells else send)

    def _telling(self, wire: Wire, here: Scope | None, send: Send) -> Send:
        async def telling(message: Wire) -> None:
            if message["type"] == "http.response.start":
                with default_client().guard(_DOING):
                    headers = list(message.get("headers") or ())
                    names = [bytes(name).decode("latin-1") for name, _ in headers]
                    told = self._told(here, str(message["status"]), names, bodiless=wire.get("method") == "HEAD")
                    added = [(name.encode("ascii"), value.encode("ascii")) for name, value in told]
                    message = {**message, "headers": [*headers, *added]}
            await send(message)

        return telling


class WSGIContextMiddleware(_Middleware):
    """WSGI middleware: each request is a session of its own, until its body has been read and closed."""

    app: WSGIApp

    def __call__(self, environ: Wire, start_response: Callable[..., Any]) -> Iterable[bytes]:
        """One WSGI call; the body is the app's own when it is there already, as a list or a file is."""
        place = self._place(environ, _wsgi_fields(environ))
        start = self._telling(environ, place.scope, start_response) if self._tells else start_response
        with place.step():
            body = self.app(environ, start)
        return body if _is_there(body, environ.get("wsgi.file_wrapper")) else _Body(body, place)

    def _telling(self, wire: Wire, here: Scope | None, start_response: Callable[..., Any]) -> Callable[..., Any]:
        def telling(status: str, headers: list[tuple[str, str]], *exc_info: Any) -> Any:
            with default_client().guard(_DOING):
                bodiless = wire.get("REQUEST_METHOD") == "HEAD"
                told = self._told(here, status[:3], [name for name, _ in headers], bodiless=bodiless)
                headers = [*headers, *told] if told else headers
            return start_response(status, headers, *exc_info)

        return telling


class _Place:
    """Where one request's code stands: the session around its next step, which a session left open may have changed.

    Only our own ContextVar is set, and only for the step: a Context of its own would hide from the server what the app
    sets in it, and give Django's per-context caches new connections with each request.
    """

    def __init__(self, scope: Scope | None) -> None:
        self.scope = scope

    @contextmanager
    def step(self) -> Iterator[None]:
        """For one step: the code inside is the request's."""
        token = scope_var.set(self.scope)
        try:
            yield
        finally:
            self.scope = scope_var.get()
            # The next step may be made in another thread: there it never was set.
            with suppress(ValueError):
                scope_var.reset(token)


class _Body:
    """A body that the server reads: the same items, each made where the request stands."""

    def __init__(self, body: Iterable[bytes], place: _Place) -> None:
        self._body = body
        self._place = place
        self._items: Iterator[bytes] | None = None

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._place.step():
            if self._items is None:
                self._items = iter(self._body)
            return next(self._items)

    def close(self) -> None:
        """The server is done, or the client has gone."""
        close = getattr(self._body, "close", None)
        if close is not None:
            with self._place.step():
                close()


def _is_there(body: object, file_wrapper: object) -> bool:
    """Whether the server knows what to do with a body as it is: its length, or how to send a file."""
    wrapped = isinstance(file_wrapper, type) and isinstance(body, file_wrapper)
    return wrapped or isinstance(body, Sized) or hasattr(body, "read")


def _header_name(name: str | None) -> str | None:
    if name is not None and not _NAME.fullmatch(name):
        raise ConfigurationError(f"{_DOING}: {name!r} is no name of a header")
    return None if name is None else name.lower()


def _asgi_fields(scope: Wire) -> Callable[[str], str | None]:
    def field(name: str) -> str | None:
        # Said twice it is one list (RFC 9110 section 5.2): who adds a second name is neither of the two.
        found = [bytes(value).decode("latin-1") for key, value in scope.get("headers") or () if key == name.encode()]
        return ("; " if name == "cookie" else ", ").join(found) or None

    return field


def _wsgi_fields(environ: Wire) -> Callable[[str], str | None]:
    return lambda name: environ.get(f"HTTP_{name.upper().replace('-', '_')}")


def _who(sources: tuple[Value, str | None, str | None], wire: Wire, field: Callable[[str], str | None]) -> str | None:
    """The id that the first source gives which is switched on; None when nobody says one."""
    value, header, cookie = sources
    if value is not None:
        found = _said(value, wire)
    else:
        found = (header and _decoded(field(header))) or (cookie and _decoded(_cookie(field("cookie"), cookie))) or None
    return None if found is None else bounded_id(found, lost=default_client().guard.lost)


def _said(value: Value, wire: Wire) -> str | None:
    with default_client().guard(_DOING):
        found = value(wire) if callable(value) else value
        return None if found is None else str(found).strip() or None
    return None


def _decoded(raw: str | None) -> str | None:
    """Header text as people write it: both interfaces give its bytes as Latin-1, most senders mean UTF-8."""
    with suppress(UnicodeError):
        raw = raw and raw.encode("latin-1").decode()
    return (raw or "").strip() or None


def _cookie(raw: str | None, name: str) -> str | None:
    pairs = (pair.partition("=") for pair in (raw or "").split(";"))
    return next((value.strip().strip('"') for key, _, value in pairs if key.strip() == name), None)
