"""Ids made by whoever speaks first, so that nobody has to wait for an answer to name a thing."""

from __future__ import annotations

import os
import time
import uuid


def new_id() -> str:
    """A fresh UUIDv7 (RFC 9562) as 32 hex digits: its first 12 are milliseconds, so ids sort by age."""
    return new_ids(1)[0]


def new_ids(count: int) -> list[str]:
    """So many fresh ids of one moment, for the price of one look at the clock and one at the source of chance."""
    stamp = f"{time.time_ns() // 1_000_000:012x}"
    digits = os.urandom(10 * count).hex()
    # The version is 7; the variant's two bits leave two to chance.
    return [
        f"{stamp}7{digits[at : at + 3]}{_VARIANTS[digits[at + 19]]}{digits[at + 3 : at + 18]}"
        for at in range(0, 20 * count, 20)
    ]


def derived_id(*parts: str) -> str:
    """The same 32 hex digits for the same parts, so that a repeated request names the same things."""
    return uuid.uuid5(_NAMESPACE, "\x1f".join(parts)).hex


_NAMESPACE = uuid.UUID("6f0a3c52-5d0c-4d7e-9b55-5b1d5c9b0c1a")
_VARIANTS = {digit: "89ab"[int(digit, 16) & 3] for digit in "0123456789abcdef"}
