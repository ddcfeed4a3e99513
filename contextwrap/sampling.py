"""Who is recorded when not everybody is: a choice by hash, the same in every process, version and language.

The formula: the first 8 bytes of SHA-256 over the key's UTF-8, as a big-endian fraction of 2**64, below the rate.
So who is in at 0.1 is in at 0.2. Knows nothing of settings or of what happens to who is out.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from contextwrap.model import Conversation


def sampled(key: str, rate: float) -> bool:
    """Whether `key` is among the share `rate` (0 nobody, 1 everybody) that is recorded."""
    if rate >= 1:
        return True
    digest = hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()
    # Integers on both sides: a 64-bit hash as a float could round up to 1 and leave somebody out of everybody.
    return int.from_bytes(digest[:8], "big") < rate * 2**64


def sample_key(conversation: Conversation, by: Literal["user", "thread"]) -> str:
    """What the choice depends on: the user where one is known and asked for, else the thread ("" without an id)."""
    user = conversation.user_id if by == "user" else None
    return user or conversation.id or ""
