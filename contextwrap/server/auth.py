"""Who may ask: bearer keys for the API, a signed-in browser for the pages, and the door between them."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Final
from urllib.parse import parse_qs, quote, urlsplit

from fastapi import APIRouter, Depends
from fastapi.responses import RedirectResponse
from starlette.requests import Request  # noqa: TC002  FastAPI reads the signatures
from starlette.responses import Response  # noqa: TC002

from contextwrap.errors import TokenError
from contextwrap.model import MAX_TENANT
from contextwrap.server.keys import SESSION_SECONDS, Keys, Scope, Signer, Viewer
from contextwrap.server.limits import read_body
from contextwrap.server.refusals import Refusal
from contextwrap.server.render import html
from contextwrap.tokens import HOME_KEY, RatingToken, fingerprint, read

if TYPE_CHECKING:
    from collections.abc import Callable

    from contextwrap.server.house import House

MAX_FORM: Final = 16 * 1024
MAX_TRIES: Final = 10
TRIES_SECONDS: Final = 60.0

router = APIRouter(include_in_schema=False)


def _bearer(*scopes: Scope) -> Callable[[Request], Viewer]:
    def check(request: Request) -> Viewer:
        kind, _, secret = request.headers.get("authorization", "").partition(" ")
        if kind.lower() != "bearer" or not secret.strip():
            raise Refusal(
                401, "send a key as Authorization: Bearer …; `contextwrap keys create` makes one", headers=_CHALLENGE
            )
        found = _house_keys(request).check(secret.strip())
        if found is None:
            raise Refusal(401, "this key is not known here, or was revoked", headers=_CHALLENGE)
        if found.scope not in scopes:
            raise Refusal(403, f"a key of scope {found.scope} may not do this: it takes {' or '.join(scopes)}")
        return for_tenant(found, request.query_params.get("tenant_id", ""))

    return check


def for_tenant(viewer: Viewer, tenant_id: str) -> Viewer:
    """The same viewer, for the tenant that is named; Refusal when the key is bound to another."""
    if len(tenant_id) >= MAX_TENANT:
        raise Refusal(400, f"tenant_id must be shorter than {MAX_TENANT} characters")
    if viewer.tenant_id and tenant_id not in {"", viewer.tenant_id}:
        raise Refusal(403, "this key is bound to another tenant")
    return Viewer(scope=viewer.scope, tenant_id=viewer.tenant_id or tenant_id, key_id=viewer.key_id)


ingester = _bearer("ingest", "admin")
reader = _bearer("read", "admin")


def rater(house: House, token: object) -> RatingToken:
    """What the holder of a rating token may rate, in which tenant; one refusal for every token that is not good."""

    def secret_of(key: str) -> bytes | None:
        found = _signer(house, key)
        return None if found is None else found.secret

    refused = Refusal(403, "this rating token is not good here, or not any more: ask the app for a new one")
    try:
        allowed = read(token, secret_of=secret_of, now=time.time())
    except TokenError:
        raise refused from None
    signer = _signer(house, allowed.key)
    if signer is None or (signer.viewer.tenant_id and allowed.tenant not in {"", signer.viewer.tenant_id}):
        raise refused
    return replace(allowed, tenant=signer.viewer.tenant_id or allowed.tenant)


def _signer(house: House, key: str) -> Signer | None:
    """The key of that fingerprint, or the home's own, with which apps that record to it directly sign."""
    with suppress(OSError):
        secret = (house.home / HOME_KEY).read_bytes()
        if fingerprint(secret) == key:
            return Signer(secret=secret, viewer=Viewer(scope="admin", key_id="home"))
    return house.keys.signer(key)


def viewer(request: Request) -> Viewer:
    """The signed-in browser's viewer; others are led to the door and from there back here."""
    found = _house_keys(request).session(request.cookies.get(_cookie(request), ""))
    if found is None:
        here = request.url.path + (f"?{request.url.query}" if request.url.query else "")
        to = f"/signin?next={quote(here, safe='')}" if here != "/" else "/signin"
        raise Refusal(303, "sign in first", headers={"Location": to})
    return found


@router.get("/signin")
def sign_in_page(request: Request, token: str = "", next: str = "") -> Response:  # noqa: A002  the URL's own word
    """Follow a one-time link, or ask for a key."""
    if not token:
        return html(request, "signin.html", problem="", next=_local(next))
    session = _house_keys(request).follow_link(token)
    if session is None:
        problem = "This link was used already, or is too old. Start the server again for a new one, or use a key."
        return html(request, "signin.html", status=403, problem=problem, next=_local(next))
    return _signed_in(request, session, _local(next))


@router.post("/signin")
async def sign_in(request: Request) -> Response:
    """Take a key that may read, from this server's own form only."""
    _same_origin(request)
    form = parse_qs((await read_body(request, limit=MAX_FORM)).decode("utf-8", "replace"))
    onward = _local(form.get("next", [""])[0])
    throttle: Throttle = request.app.state.throttle
    if not throttle.admits():
        raise Refusal(429, "too many keys tried: wait a minute", headers={"Retry-After": str(int(TRIES_SECONDS))})
    found = _house_keys(request).check(form.get("key", [""])[0].strip())
    if found is None or found.scope == "ingest":
        throttle.failed()
        problem = "This key is not known here." if found is None else "An ingest key cannot read: use another."
        return html(request, "signin.html", status=403, problem=problem, next=onward)
    return _signed_in(request, _house_keys(request).make_session(found), onward)


@router.post("/signout")
def sign_out(request: Request) -> Response:
    """End the browser's session."""
    _same_origin(request)
    _house_keys(request).end_session(request.cookies.get(_cookie(request), ""))
    response = RedirectResponse("/signin", status_code=303)
    # A browser takes a __Host- cookie away only by one that is as secure.
    response.delete_cookie(_cookie(request), path="/", secure=request.url.scheme == "https", httponly=True)
    return response


class Throttle:
    """Lets a server take MAX_TRIES wrong keys a minute, from whomever: behind a proxy all look alike."""

    def __init__(self) -> None:
        self._failures: list[float] = []

    def admits(self) -> bool:
        """Whether one more key may be tried."""
        self._failures = [moment for moment in self._failures if moment > time.monotonic() - TRIES_SECONDS]
        return len(self._failures) < MAX_TRIES

    def failed(self) -> None:
        """A wrong key was tried."""
        self._failures.append(time.monotonic())


def _signed_in(request: Request, session: str, onward: str) -> Response:
    response = RedirectResponse(onward or "/", status_code=303)
    response.set_cookie(
        _cookie(request),
        session,
        max_age=int(SESSION_SECONDS),
        path="/",
        secure=request.url.scheme == "https",
        httponly=True,
        samesite="lax",
    )
    return response


def _same_origin(request: Request) -> None:
    """Refuse a form that another site's page sent."""
    origin = request.headers.get("origin")
    site = request.headers.get("sec-fetch-site", "same-origin")
    if site not in {"same-origin", "none"} or (origin and urlsplit(origin).netloc != request.headers.get("host")):
        raise Refusal(403, "this form was sent from another site")


def _local(path: str) -> str:
    """`path` when it leads to a page of this server, else nothing: no link leads from here to elsewhere."""
    control = any(character < " " or character == "\\" for character in path)
    return path if path.startswith("/") and not path.startswith("//") and not control else ""


def _cookie(request: Request) -> str:
    return "__Host-contextwrap" if request.url.scheme == "https" else "contextwrap"


def _house_keys(request: Request) -> Keys:
    keys: Keys = request.app.state.house.keys
    return keys


_CHALLENGE: Final = {"WWW-Authenticate": "Bearer"}
Ingester = Annotated[Viewer, Depends(ingester)]
Reader = Annotated[Viewer, Depends(reader)]
