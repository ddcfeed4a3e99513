"""`contextwrap doctor`: whether recording works here and now, asked the way an app would do it.

`diagnose` answers in the order a record travels: versions and settings (`machine`), home and outboxes (`waiting`),
the way to the server and one test conversation there and back (`journey`). What waits in the outbox is neither
delivered nor touched, and no token is shown. `show` is for the reader.
"""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from contextwrap.doctor import journey, machine, waiting
from contextwrap.doctor.checks import Check, works
from contextwrap.errors import ConfigurationError
from contextwrap.settings import TABLE, load

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator, Mapping

    from contextwrap.settings import Settings

TIMEOUT: Final = 5.0
_SHORTEST_SECRET: Final = 4


def diagnose(
    explicit: Mapping[str, Any], *, environ: Mapping[str, str] = os.environ, timeout: float = TIMEOUT, send: bool = True
) -> Iterator[Check]:
    """All checks, each as soon as it is known; `explicit` values go before `environ`, as in `settings.load`.

    `timeout` is the seconds each step over the network may take; with `send` False there is no test conversation.
    """
    found = {row.name: machine.value(row, explicit, environ) for row in TABLE}
    # Shorter ones are no secrets, and would be found inside of words.
    secrets = [
        text for text in (str(found["token"] or ""), _password(found["endpoint"])) if len(text) >= _SHORTEST_SECRET
    ]
    for check in _diagnose(explicit, environ, found, timeout=timeout, send=send):
        said, todo = check.said, check.todo
        for secret in secrets:
            # A server may quote what it was sent, and an error what was set.
            said, todo = said.replace(secret, "…"), todo.replace(secret, "…")
        yield replace(check, said=said, todo=todo)


def _diagnose(
    explicit: Mapping[str, Any], environ: Mapping[str, str], found: Mapping[str, Any], *, timeout: float, send: bool
) -> Iterator[Check]:
    yield from machine.this_machine()
    yield from machine.settings_rows(explicit, environ)
    settings: Settings | None = None
    try:
        settings = load(explicit, environ=environ)
    except ConfigurationError as error:
        fault = machine.at_fault(str(error), explicit, environ)
        yield Check("settings", "fail", f"{error} [{fault}]", f"Mend {fault}: {error}.")
    yield from machine.notices(found["endpoint"], environ)
    home = Path(found["home"] or next(row for row in TABLE if row.name == "home").default()).expanduser()
    yield machine.home_folder(home)
    yield from waiting.outboxes(home, address=settings.address if settings else None)
    if settings is None:
        # Without the token: it may be what must not go there.
        if found["endpoint"]:
            yield from journey.way(found["endpoint"], timeout=timeout)
    elif settings.disabled:
        yield Check("recording", "warn", "disabled: nothing is recorded", "Unset CONTEXTWRAP_DISABLED to record.")
    else:
        yield from _travel(settings, timeout=timeout, send=send)


def _travel(settings: Settings, *, timeout: float, send: bool) -> Iterator[Check]:
    """The way, the server at its end, and the test conversation if nothing on the way failed."""
    target: journey.Target | None = None
    arrived = True
    if settings.endpoint is None or settings.token is None:
        check, target = journey.local_server(settings.home, tenant_id=settings.tenant_id, timeout=timeout)
        yield check
    else:
        target = journey.Target(endpoint=settings.endpoint, token=settings.token, tenant_id=settings.tenant_id)
        arrived = yield from _until_one_fails(
            journey.way(target.endpoint, timeout=timeout), journey.server(target, timeout=timeout)
        )
    if not send:
        return
    conversation_id, parcel = journey.example(address=settings.address, tenant_id=settings.tenant_id)
    yield journey.through_an_outbox(settings.home, parcel)
    if target is not None and arrived:
        yield journey.there_and_back(target, parcel, conversation_id, timeout=timeout)


def _until_one_fails(*looks: Iterator[Check]) -> Generator[Check, None, bool]:
    """The looks' checks; no look is begun after one that failed. Whether none did."""
    for look in looks:
        seen = []
        for check in look:
            seen.append(check)
            yield check
        if not works(seen):
            return False
    return True


def _password(endpoint: str | None) -> str:
    try:
        return urlsplit(endpoint or "").password or ""
    except ValueError:
        return ""
