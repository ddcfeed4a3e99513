"""What a log call goes through, by whichever route it came: checked, its ids and times filled in, into the journal.

A call is on disk before it is answered, and one that is repeated under its key names the same things.
"""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from contextwrap.ids import derived_id, new_id
from contextwrap.outbox import LOCAL, Parcel
from contextwrap.server.limits import check_size
from contextwrap.server.refusals import Refusal

if TYPE_CHECKING:
    from collections.abc import Collection

    from contextwrap.model import Log
    from contextwrap.server.house import House
    from contextwrap.server.keys import Viewer
    from contextwrap.store.batch import Key

SETTLE_SECONDS: Final = 2.0
UNKNOWN: Final = "no message has this id, and no thread with an answer"


def key_of(sender: Viewer, said: str | None) -> str:
    """The journal's key for the sender's own; without one of a sender's two equal calls are two calls."""
    return derived_id(sender.key_id or "", sender.tenant_id, said) if said else new_id()


def sealed(log: Log, *, tenant_id: str, key: str) -> tuple[Log, Parcel]:
    """The call with all that a sender may leave open, and its parcel; WireError for one that is too large."""
    check_size(log)
    now = time.time()
    own = log if log.tenant_id == tenant_id else replace(log, tenant_id=tenant_id)
    whole = own.sealed(key=key, at=datetime.fromtimestamp(now, UTC))
    request = whole.to_request()
    parcel = Parcel(
        key=key,
        address=LOCAL,
        lane="",
        method=request.method,
        target=request.target,
        body=request.body,
        created_at=now,
    )
    return whole, parcel


def take(house: House, *parcels: Parcel) -> None:
    """Into the journal, all or none."""
    if parcels:
        house.journal.put(parcels)
        house.pipeline.wake()


def unknown(house: House, rated: Collection[Key]) -> set[Key]:
    """Those of the things rated that are not here, once all that came before them has been stored.

    None while the store is too far behind to tell: a rating is rather taken in vain than lost.
    """
    missing = set(rated) - house.store.rateable(rated)
    if not missing:
        return missing
    return missing - house.store.rateable(missing) if house.pipeline.settle(SETTLE_SECONDS) else set()


def check_known(house: House, rated: str, tenant_id: str) -> None:
    """Refusal of a rating of what is not here."""
    if unknown(house, [(tenant_id, rated)]):
        raise Refusal(404, UNKNOWN)
