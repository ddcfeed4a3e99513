"""Ratings by those who hold no API key: a token for the browser that shows an answer, and what an app does with it.

With an endpoint the API key signs, so that the server knows the tokens of its keys; in local mode a random file in
the home does, which a server on that home reads as well.
"""

from __future__ import annotations

import os
import secrets
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from contextwrap.client import default_client
from contextwrap.errors import TokenError
from contextwrap.identity import current_scope
from contextwrap.ids import new_id
from contextwrap.settings import LOCAL
from contextwrap.tokens import (
    HOME_KEY,
    MAX_FEEDBACK,
    SECRET_BYTES,
    fingerprint,
    issue,
    key_secret,
    read,
)

if TYPE_CHECKING:
    from pathlib import Path

    from contextwrap.model import Rating
    from contextwrap.settings import Settings
    from contextwrap.tokens import RatingToken

WEEK_SECONDS: Final = 7 * 24 * 3600.0


def rating_token(
    *, message: str | None = None, thread: str | None = None, expires_in: float = WEEK_SECONDS
) -> str | None:
    """A token that lets its holder rate one answer for `expires_in` seconds, to be sent to a browser beside it.

    The answer of that message id, the newest of that thread, or the current session's: also before there is one,
    for the one that comes. None when there is nothing to rate. It is text for URLs, headers and JSON alike.
    """
    client = default_client()
    with client.guard("rating_token"):
        here = current_scope()
        if client.settings.disabled:
            return None
        if message is None and thread is None and here is not None:
            if here.identity.capture == "off":
                return None
            message, thread = here.turn.promise(), here.turn.thread or here.identity.thread
        try:
            return issue(
                _secret(client.settings),
                answer=message,
                thread=thread,
                tenant=client.settings.tenant_id,
                expires_at=time.time() + expires_in,
            )
        except TokenError as error:
            client.guard.lost(f"rating token: {error}")
    return None


def rate_by_token(token: str, rating: Rating, feedback: str | None = None) -> bool:
    """Rate -1, 0 or +1 the answer that `token` was issued for; of feedback the first 2000 characters are kept.

    Everything may come from a browser as it is. Returns whether the rating was kept; never raises: a token that is
    forged, foreign or expired is counted in `stats()`.
    """
    client = default_client()
    with client.guard("rate_by_token"):
        settings = client.settings
        if settings.disabled:
            return False
        try:
            allowed, said = _allowed(token, settings), _cut(feedback)
        except TokenError as error:
            client.guard.lost(f"rating token: {error}")
            return False
        return client.rate(rating, message=allowed.answer, thread=allowed.thread, feedback=said)
    return False


def _allowed(token: str, settings: Settings) -> RatingToken:
    secret = _secret(settings)
    allowed = read(token, secret_of=lambda key: secret if key == fingerprint(secret) else None, now=time.time())
    if allowed.tenant != settings.tenant_id:
        raise TokenError("of another tenant")
    return allowed


def _cut(feedback: object) -> str | None:
    if not isinstance(feedback, str | None):
        raise TokenError("feedback is text")
    return None if feedback is None else feedback[:MAX_FEEDBACK]


def _secret(settings: Settings) -> bytes:
    if settings.address == LOCAL or settings.token is None:
        return _home_secret(settings.home)
    return key_secret(settings.token.strip())


def _home_secret(home: Path) -> bytes:
    """The home's own secret, made at its first use."""
    path = home / HOME_KEY
    with suppress(FileNotFoundError):
        return path.read_bytes()
    made = home / f"{HOME_KEY}.{new_id()}"
    handle = os.open(made, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(secrets.token_bytes(SECRET_BYTES))
        # A rename would replace what another process has made meanwhile; a link does not.
        with suppress(FileExistsError):
            os.link(made, path)
    finally:
        made.unlink()
    return path.read_bytes()
