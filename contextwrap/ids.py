"""Ids made by whoever speaks first, so that nobody has to wait for an answer to name a thing."""

from __future__ import annotations

import os
import time
import uuid


def new_id() -> str:
    """A fresh UUIDv7 (RFC 9562) as 32 hex digits: its first 12 are milliseconds, so ids sort by age."""
    chance = os.urandom(10)
    digits = chance.hex()
    # The version is 7; the variant's two bits leave two to chance.
    return f"{time.time_ns() // 1_000_000:012x}7{digits[:3]}{'89ab'[chance[9] & 3]}{digits[3:18]}"


def derived_id(*parts: str) -> str:
    """The same 32 hex digits for the same parts, so that a repeated request names the same things."""
    return uuid.uuid5(_NAMESPACE, "\x1f".join(parts)).hex


_NAMESPACE = uuid.UUID("6f0a3c52-5d0c-4d7e-9b55-5b1d5c9b0c1a")
