"""Rating tokens: what a browser may hold to rate one answer, until a time, and nothing else.

A token is `cw_rate_<key>.<claim>.<signature>`: the fingerprint of the signing secret, the claim (JSON in base64url)
and the HMAC-SHA256 of all before it, over the text itself, so that no byte can be another. Nothing is parsed that
is not signed. A token says nothing that its holder may not know. Pure: knows no file, no clock, no HTTP.
"""

from __future__ import annotations

import hashlib
import hmac
import math
from base64 import urlsafe_b64decode, urlsafe_b64encode
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from contextwrap.errors import TokenError, WireError
from contextwrap.model import MAX_ID, MAX_TENANT, from_json, to_json

if TYPE_CHECKING:
    from collections.abc import Callable

HOME_KEY: Final = "rating.key"
"""The file in a home that signs while there is no endpoint."""

MAX_FEEDBACK: Final = 2000
"""How many characters of feedback are kept of what comes with a token."""

SECRET_BYTES: Final = 32
_PREFIX: Final = "cw_rate_"
_VERSION: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingToken:
    """What a token allows: to rate the message `answer`, else the newest answer of `thread`, before `expires_at`.

    `expires_at` is in seconds since 1970; `key` is the fingerprint of the secret that signed it.
    """

    answer: str | None
    thread: str | None
    tenant: str
    expires_at: int
    key: str


def issue(secret: bytes, *, answer: str | None, thread: str | None, tenant: str, expires_at: float) -> str:
    """A token, good until `expires_at` (seconds since 1970, rounded up); TokenError when there is nothing to sign."""
    if len(secret) < SECRET_BYTES:
        raise TokenError(f"the signing secret is shorter than {SECRET_BYTES} bytes")
    try:
        until = math.ceil(expires_at)
    except (OverflowError, ValueError):
        raise TokenError("it has to expire at some time") from None
    claim = [_VERSION, answer, thread, tenant, until]
    key = fingerprint(secret)
    _checked(claim, key)
    signed = f"{_PREFIX}{key}.{_text(to_json(claim))}"
    return f"{signed}.{_signature(secret, signed)}"


def read(token: object, *, secret_of: Callable[[str], bytes | None], now: float) -> RatingToken:
    """What `token` allows at `now`; TokenError says whether it is malformed, of another key or expired.

    `secret_of` answers the secret with that fingerprint, or None.
    """
    if not isinstance(token, str) or not token.isascii() or not token.startswith(_PREFIX) or token.count(".") != 2:  # noqa: PLR2004
        raise TokenError("malformed")
    signed, _, signature = token.rpartition(".")
    key, _, claim = signed.removeprefix(_PREFIX).partition(".")
    secret = secret_of(key) or b""
    # An unknown key takes as long as a wrong signature.
    genuine = hmac.compare_digest(_signature(secret, signed), signature)
    if len(secret) < SECRET_BYTES or not genuine:
        raise TokenError("signed with no key that is good here")
    allowed = _checked(_value(claim), key)
    if now >= allowed.expires_at:
        raise TokenError("expired")
    return allowed


def key_secret(key: str) -> bytes:
    """The signing secret of an API key."""
    return digest_secret(hashlib.sha256(key.encode("utf-8", "replace")).hexdigest())


def digest_secret(digest: str) -> bytes:
    """The same from the key's SHA-256 in hex, which is all that a server knows of it."""
    return hmac.digest(digest.encode(), b"contextwrap rating", "sha256")


def fingerprint(secret: bytes) -> str:
    """What a signing secret is found by, and cannot be told from: 72 bits of it, one way."""
    return _text(hmac.digest(secret, b"contextwrap fingerprint", "sha256")[:9])


def _checked(claim: Any, key: str) -> RatingToken:
    if not isinstance(claim, list) or len(claim) != 5 or claim[0] != _VERSION:  # noqa: PLR2004  its fields
        raise TokenError("of another version of contextwrap")
    _, answer, thread, tenant, until = claim
    if answer is None and thread is None:
        raise TokenError("there is no answer to rate")
    if not all(name is None or _is_id(name) for name in (answer, thread)):
        raise TokenError(f"an id is text of 1 to {MAX_ID} characters")
    if not isinstance(tenant, str) or len(tenant) >= MAX_TENANT:
        raise TokenError(f"a tenant is text of less than {MAX_TENANT} characters")
    if type(until) is not int:
        raise TokenError("it has to expire at some time")
    return RatingToken(answer=answer, thread=thread, tenant=tenant, expires_at=until, key=key)


def _is_id(name: object) -> bool:
    """Whether it can be an id, and can be part of a URL: half a surrogate pair cannot."""
    return isinstance(name, str) and 0 < len(name) <= MAX_ID and name == name.encode("utf-8", "ignore").decode()


def _signature(secret: bytes, signed: str) -> str:
    return _text(hmac.digest(secret, signed.encode(), "sha256"))


def _text(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def _value(text: str) -> Any:
    try:
        return from_json(urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, WireError):
        raise TokenError("malformed") from None
