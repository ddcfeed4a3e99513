"""What waits in a home's outboxes, read without disturbing anybody.

Nothing is adopted, leased or written; whether a file's process lives is asked of its lock, shared and for an instant.
"""

from __future__ import annotations

import sqlite3
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from contextwrap.boxfiles import lives, outbox_files, reading
from contextwrap.doctor.checks import Check, ago, one_line
from contextwrap.doctor.machine import without_password
from contextwrap.settings import LOCAL

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LONG_SECONDS: Final = 3600.0
_SQL: Final = """
SELECT address, sum(pending), sum(dead), min(oldest), max(newest_dead),
    (SELECT reason FROM dead_letters AS d WHERE d.address = found.address ORDER BY created_at DESC, seq DESC),
    (SELECT reason FROM carriers AS c WHERE c.address = found.address AND attempts > 0)
FROM (
    SELECT address, count(*) AS pending, 0 AS dead, min(created_at) AS oldest, NULL AS newest_dead
    FROM parcels GROUP BY address
    UNION ALL
    SELECT address, 0, count(*), NULL, max(created_at) FROM dead_letters GROUP BY address
) AS found GROUP BY address
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Parcels for one address; `oldest` pending one and `newest_dead` in seconds since 1970, 0 for none.

    `reason` is why the newest dead letter was refused, `held` why the address could not be reached, if so.
    """

    address: str
    pending: int = 0
    dead: int = 0
    oldest: float = 0.0
    newest_dead: float = 0.0
    reason: str = ""
    held: str = ""

    def __add__(self, other: Waiting) -> Waiting:
        """Both files' parcels for the address."""
        last = max(self, other, key=lambda one: one.newest_dead)
        return Waiting(
            address=self.address,
            pending=self.pending + other.pending,
            dead=self.dead + other.dead,
            oldest=min(filter(None, (self.oldest, other.oldest)), default=0.0),
            newest_dead=last.newest_dead,
            reason=last.reason,
            held=self.held or other.held,
        )


def waiting(path: Path) -> list[Waiting]:
    """What one file holds, by address; sqlite3.Error when it cannot be read."""
    with reading(path) as db:
        return [
            Waiting(
                address=address,
                pending=pending,
                dead=dead,
                oldest=oldest or 0.0,
                newest_dead=newest_dead or 0.0,
                reason=reason or "",
                held=one_line(held or ""),
            )
            for address, pending, dead, oldest, newest_dead, reason, held in db.execute(_SQL)
        ]


def outboxes(home: Path, *, address: str | None) -> Iterator[Check]:
    """How many files there are and what waits in them; `address` is where this app's records go, if that is known."""
    try:
        paths = outbox_files(home / "outbox")
    except OSError as error:
        yield Check("outbox", "fail", one_line(error), f"Run this as the user that {home} belongs to.")
        return
    living = sum(map(lives, paths))
    yield Check("outbox", "ok", f"files of living processes: {living}, of dead ones: {len(paths) - living}")
    total: dict[str, Waiting] = {}
    for path in paths:
        try:
            for found in waiting(path):
                total[found.address] = total[found.address] + found if found.address in total else found
        except sqlite3.Error as error:
            # Its process may have ended, and taken it away.
            if path in outbox_files(path.parent):
                yield Check("outbox", "warn", f"{path.name}: {one_line(error)}", f"Look at {path}: it cannot be read.")
    for found in total.values():
        yield from _of_address(found, address=address, folder=home / "outbox")
    journal = home / "server" / "journal.sqlite"
    try:
        for found in waiting(journal) if journal.exists() else []:
            yield _dead(found, "server's journal", folder=journal) or _pending(found, "server's journal")
    except (sqlite3.Error, OSError) as error:
        yield Check("server's journal", "warn", one_line(error), f"Look at {journal}: it cannot be read.")


def _of_address(found: Waiting, *, address: str | None, folder: Path) -> Iterator[Check]:
    to = without_password(found.address.partition("#")[0])
    name = f"outbox to {to}"
    if dead := _dead(found, name, folder=folder):
        yield dead
    if not found.pending:
        return
    check = _pending(found, name)
    if address is not None and found.address != address:
        same = to == without_password(address.partition("#")[0])
        whose = "with another token" if same else "an address that is not the one set now"
        todo = (
            f"Run `contextwrap serve --home {folder.parent}` or `contextwrap export` for the {found.pending} "
            "records kept in local mode."
            if found.address == LOCAL
            else f"Run `contextwrap outbox send --readdress` to send {found.pending} records to the address set now, "
            f"or an app once with the endpoint {to} and the token of then."
        )
        yield Check(name, "warn", f"{check.said}; {whose}", todo)
    elif found.address != LOCAL and time.time() - found.oldest > LONG_SECONDS:
        todo = f"See below why {to} is not reached, then run an app, or `contextwrap outbox send`."
        yield Check(name, "warn", check.said, todo)
    else:
        yield check


def _pending(found: Waiting, name: str) -> Check:
    age = f", the oldest for {ago(time.time() - found.oldest)}" if found.pending else ""
    return Check(name, "ok", f"waiting: {found.pending}{age}")


def _dead(found: Waiting, name: str, *, folder: Path) -> Check | None:
    if not found.dead:
        return None
    reason = one_line(found.reason or "no reason was kept")
    return Check(
        name,
        "warn",
        f"dead letters: {found.dead}, the newest for: {reason}",
        f"Find out why records were refused, the newest for: {reason}. Then run `contextwrap outbox retry`. "
        f"They are kept in {folder}.",
    )
