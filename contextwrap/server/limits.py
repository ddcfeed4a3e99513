"""How much one request may bring, and by which names the server is called. Pure ASGI; knows no route."""

from __future__ import annotations

import re
from ipaddress import ip_address
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from contextwrap.errors import WireError
from contextwrap.model import MAX_DEPTH, MAX_MESSAGES, MAX_TEXT
from contextwrap.server.refusals import Refusal, refusal
from contextwrap.settings import LOOPBACK

if TYPE_CHECKING:
    from starlette.requests import Request
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

    from contextwrap.model import Log

MAX_BODY: Final = 5 * 1024 * 1024

_STRING: Final = re.compile(rb'"(?:[^"\\]|\\.)*+"', re.DOTALL)
_BRACKET: Final = re.compile(rb"[\[\]{}]")
_HEADERS: Final = {
    b"content-security-policy": (
        b"default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; font-src 'self'; "
        b"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    b"x-content-type-options": b"nosniff",
    b"referrer-policy": b"same-origin",
    b"cross-origin-opener-policy": b"same-origin",
    b"x-frame-options": b"DENY",
}


async def read_body(request: Request, *, limit: int = MAX_BODY) -> bytes:
    """The request's body; refused as soon as it is known to be longer than `limit` bytes, read or only announced."""
    announced = request.headers.get("content-length", "")
    too_large = Refusal(413, f"the body is larger than {limit} bytes: send less in one call")
    if announced.isdigit() and int(announced) > limit:
        raise too_large
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > limit:
            raise too_large
    return bytes(body)


def check_size(log: Log) -> None:
    """WireError when one call brings more messages, or a longer one, than is kept."""
    messages = log.conversation.messages if log.conversation is not None else ()
    if len(messages) > MAX_MESSAGES:
        raise WireError(f"conversation.messages has more than {MAX_MESSAGES} items: append in several calls")
    for index, message in enumerate(messages):
        if len(message.message) > MAX_TEXT or len(message.observation or "") > MAX_TEXT:
            raise WireError(f"conversation.messages[{index}] is longer than {MAX_TEXT} characters")


def check_depth(body: bytes, *, within: int = 0) -> None:
    """WireError when JSON nests too deep, before a parser recurses into it; it may lie `within` so many levels."""
    # What opens seldom cannot nest deep, and that is nearly everything.
    if body.count(b"[") + body.count(b"{") <= MAX_DEPTH:
        return
    brackets = _BRACKET.findall(_STRING.sub(b"", body))
    deepest = max(accumulate(1 if bracket in b"[{" else -1 for bracket in brackets), default=0)
    if deepest > MAX_DEPTH + within:
        raise WireError(f"the body nests deeper than {MAX_DEPTH} levels")


class SafeHeaders:
    """Adds the security headers to every response, and refuses hosts the server is not called by.

    The second is what keeps a foreign page from reaching a loopback server under a name of its own (DNS
    rebinding).
    """

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = {host.lower() for host in hosts | LOOPBACK}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_safely(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = message.setdefault("headers", [])
                present = {name.lower() for name, _ in headers}
                headers.extend((name, value) for name, value in _HEADERS.items() if name not in present)
                if b"cache-control" not in present and not scope["path"].startswith("/static/"):
                    headers.append((b"cache-control", b"no-store"))
            await send(message)

        host = next((value for name, value in scope["headers"] if name == b"host"), b"").decode("latin-1")
        if self._known(_name(host).lower()):
            await self._app(scope, receive, send_safely)
        else:
            refused = refusal(403, f"this server is not called {host[:100]!r}: start it with --allow-host of that name")
            await refused(scope, receive, send_safely)

    def _known(self, name: str) -> bool:
        if "*" in self._hosts or name in self._hosts:
            return True
        try:
            ip_address(name)
        except ValueError:
            return False
        # An address is not looked up anywhere, so nobody can make it lead here under another site's name.
        return True


def _name(host: str) -> str:
    """The host without its port; an IPv6 address without its brackets."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.rpartition(":")[0] if host.count(":") == 1 else host
