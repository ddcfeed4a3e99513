"""The way a record takes: to the server, what answers there, and a test conversation there and back.

Every step over the network ends within `timeout` seconds, whatever stands at the other end. The token goes nowhere
but to the endpoint: redirects are not followed.
"""

from __future__ import annotations

import http.client
import json
import os
import queue
import socket
import ssl
import tempfile
import threading
import time
import urllib.error
import urllib.request
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote, urlencode, urlsplit

from contextwrap.doctor.checks import Check, one_line, took
from contextwrap.doctor.machine import nearest
from contextwrap.errors import OutboxError
from contextwrap.ids import new_id
from contextwrap.model import Conversation, Log, Message, Route, to_iso
from contextwrap.outbox import Outbox, Parcel
from contextwrap.transport import ContextTransport, Delivered, Refused

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from contextwrap.transport import Outcome

T = TypeVar("T")

USER: Final = "contextwrap-doctor"
_READ: Final = "/api/v1/conversations"
_MOST_READ: Final = 1 << 20
_FAILURES: Final = (OSError, http.client.HTTPException, ValueError)
_NO_API: Final = "Set the endpoint to the root of a server that speaks the Context API, without /api/v1."
_NEW_KEY: Final = "Set CONTEXT_API_TOKEN to a key of this server: there, `contextwrap keys create --scope ingest`."


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """A server to speak to; `direct` leaves out the proxies that the environment names."""

    endpoint: str
    token: str
    tenant_id: str = ""
    direct: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """What was answered: `said` is the JSON value, or None for what is no JSON."""

    status: int
    said: Any
    seconds: float

    @property
    def words(self) -> str:
        """The status and the error's message, for a line."""
        error = self.said.get("error") if isinstance(self.said, dict) else None
        message = error.get("message") if isinstance(error, dict) else None
        return one_line(f"HTTP {self.status}{f': {message}' if message else ''}")


def way(endpoint: str, *, timeout: float) -> Iterator[Check]:
    """Resolve, connect and, for https, shake hands; ends at the first that fails."""
    try:
        parts = urlsplit(endpoint)
        secure, host = parts.scheme == "https", parts.hostname or ""
        port = parts.port or (443 if secure else 80)
    except ValueError as error:
        yield Check("address", "fail", one_line(error), "Set the endpoint to a URL such as https://context.example.")
        return
    if parts.scheme not in {"http", "https"} or not host:
        # Settings have said so.
        return
    if urllib.request.getproxies().get(parts.scheme) and not urllib.request.proxy_bypass(host):
        yield Check("connect", "ok", "through the proxy that the environment names")
        return

    def resolve() -> str:
        return ", ".join(sorted({str(one[4][0]) for one in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}))

    def connect() -> str:
        with socket.create_connection((host, port), timeout):
            return f"{host} port {port}"

    def shake() -> str:
        with (
            socket.create_connection((host, port), timeout) as raw,
            _trust().wrap_socket(raw, server_hostname=host) as wrapped,
        ):
            until = (wrapped.getpeercert() or {}).get("notAfter", "an unknown day")
            return f"{wrapped.version()}, certificate good until {until}"

    steps = [
        ("resolve", resolve, f"Look at the endpoint's host: this machine cannot resolve {host}."),
        ("connect", connect, f"Start the server at {host} port {port}, or open the way to it: nobody answers there."),
    ]
    if secure:
        steps.append(
            ("TLS", shake, f"Mend the certificate of {host}, or name the authority behind it in REQUESTS_CA_BUNDLE.")
        )
    for name, step, todo in steps:
        start = time.monotonic()
        try:
            said = within(timeout, step)
        except _FAILURES as error:
            yield Check(name, "fail", one_line(error) or type(error).__name__, todo)
            return
        yield Check(name, "ok", f"{said} ({took(time.monotonic() - start)})")


def server(target: Target, *, timeout: float) -> Iterator[Check]:
    """What stands at the end of the way, and whether it takes the token. Asks for no conversation that exists."""
    query = {"per_page": "1", "start_time": to_iso(datetime.now(UTC))}
    if target.tenant_id:
        query["tenant_id"] = target.tenant_id
    try:
        reply = ask(target, f"{_READ}?{urlencode(query)}", timeout=timeout)
    except _FAILURES as error:
        todo = f"Look at the log of {target.endpoint}, or give a longer --timeout: it connects and does not answer."
        yield Check("answer", "fail", one_line(error) or type(error).__name__, todo)
        return
    spent = f"{reply.words} ({took(reply.seconds)})"
    may_read = reply.status == 200 and isinstance(reply.said, dict) and "conversations" in reply.said  # noqa: PLR2004
    if reply.status == 401:  # noqa: PLR2004  HTTP's own numbers, here and below
        yield Check("answer", "ok", spent)
        yield Check("token", "fail", f"refused: {reply.words}", _NEW_KEY)
    elif may_read:
        yield Check("answer", "ok", f"a Context API, {spent}")
        yield Check("token", "ok", "accepted, and may read")
    elif reply.status == 403 and reply.said is not None:  # noqa: PLR2004
        yield Check("answer", "ok", spent)
        yield Check("token", "ok", f"known, and may not read: {reply.words}")
    elif reply.status >= 500 or reply.status in {408, 429}:  # noqa: PLR2004
        todo = f"Look at the log of {target.endpoint}: it answers {reply.words}."
        yield Check("answer", "fail", spent, todo)
    else:
        what = "JSON, but not that of a Context API" if reply.said is not None else "no JSON: not a Context API"
        yield Check("answer", "fail", f"{spent}: {what}", _NO_API)


def local_server(home: Path, *, tenant_id: str, timeout: float) -> tuple[Check, Target | None]:
    """Whether `contextwrap serve` works on this home, and how to speak to it."""
    try:
        from contextwrap.server.run import running  # noqa: PLC0415  brings the web server
    except ModuleNotFoundError as error:
        return Check("server", "ok", f"cannot run here: {error.name} is not installed"), None
    found = running(home)
    if found is None:
        return Check("server", "ok", "none runs on this home; `contextwrap serve` shows what waits"), None
    target = Target(endpoint=found.url, token=found.token, tenant_id=tenant_id, direct=True)
    try:
        reply = ask(target, "/healthz", timeout=timeout)
    except _FAILURES as error:
        todo = f"Stop process {found.pid}, if it is a contextwrap server, and start `contextwrap serve` again."
        return Check("server", "fail", f"{found.url} does not answer: {one_line(error)}", todo), None
    if reply.status != 200 or not isinstance(reply.said, dict):  # noqa: PLR2004
        return Check("server", "fail", f"{found.url}: {reply.words}", "Look at the server's log."), None
    said = f"runs on {found.url}, {reply.said.get('journal', '?')} in its journal ({took(reply.seconds)})"
    return Check("server", "ok", said), target


def example(*, address: str, tenant_id: str) -> tuple[str, Parcel]:
    """One conversation as an app would record it, and its id."""
    key, now = new_id(), datetime.now(UTC)
    conversation = Conversation(
        id=f"{USER}-{key}",
        metadata={"user_id": USER, "contextwrap_doctor": "true"},
        messages=(
            Message(role="user", message="Does this arrive?"),
            Message(role="assistant", message="This is a test by contextwrap doctor."),
        ),
    )
    request = (
        Log(route=Route.THREAD, tenant_id=tenant_id, conversation=conversation).sealed(key=key, at=now).to_request()
    )
    parcel = Parcel(
        key=key,
        address=address,
        lane=f"{tenant_id}/{conversation.id}",
        method=request.method,
        target=request.target,
        body=request.body,
        created_at=now.timestamp(),
    )
    return str(conversation.id), parcel


def through_an_outbox(home: Path, parcel: Parcel) -> Check:
    """Put, lease and acknowledge in a folder of its own on the home's disk, which is gone afterwards."""
    start = time.monotonic()
    try:
        with tempfile.TemporaryDirectory(prefix=".contextwrap-doctor-", dir=nearest(home)) as folder:
            outbox = Outbox.create(Path(folder))
            with closing(outbox):
                outbox.put([parcel])
                leased = outbox.lease(parcel.address)
                outbox.ack([one.seq for one in leased])
                left = outbox.counts()
    except (OutboxError, OSError) as error:
        todo = f"Make {home} a folder of a disk that can be written and locked, or set CONTEXTWRAP_HOME to one."
        return Check("disk", "fail", one_line(error), todo)
    if [one.body for one in leased] != [parcel.body] or left.pending:
        return Check("disk", "fail", "what was written was not read back", f"Check the disk of {home}.")
    return Check("disk", "ok", f"a test conversation written, read and removed ({took(time.monotonic() - start)})")


def there_and_back(target: Target, parcel: Parcel, conversation_id: str, *, timeout: float) -> Check:
    """Send the test conversation through context-python's client, as a courier does, and read it back."""
    import getcontext  # noqa: F401, PLC0415  what importing takes is no part of the way

    transport = ContextTransport(endpoint=target.endpoint, token=target.token)

    def send() -> Outcome:
        try:
            return transport.send([parcel])[0]
        finally:
            transport.close()

    name, start = "test conversation", time.monotonic()
    try:
        outcome = within(timeout, send)
    except TimeoutError as error:
        todo = f"Look at the log of {target.endpoint}, or give a longer --timeout: it does not say that it has records."
        return Check(name, "fail", one_line(error), todo)
    if not isinstance(outcome, Delivered):
        reason = one_line(outcome.reason)
        todo = (
            f"Mend what the server refuses, or every record becomes a dead letter: {reason}."
            if isinstance(outcome, Refused)
            else f"Look at the log of {target.endpoint}, which did not take a record: {reason}."
        )
        return Check(name, "fail", f"not accepted: {reason}", todo)
    accepted = f"accepted ({took(time.monotonic() - start)})"
    query = f"?{urlencode({'tenant_id': target.tenant_id})}" if target.tenant_id else ""
    try:
        reply = ask(target, f"{_READ}/{quote(conversation_id, safe='')}{query}", timeout=timeout)
    except _FAILURES as error:
        return Check(name, "warn", f"{accepted}; not read back: {one_line(error)}", "Look at the server's log.")
    if reply.status == 200 and isinstance(reply.said, dict) and reply.said.get("id") == conversation_id:  # noqa: PLR2004
        return Check(name, "ok", f"{accepted}, read back ({took(reply.seconds)})")
    if reply.status == 403:  # noqa: PLR2004
        return Check(name, "ok", f"{accepted}; this key may not read it back")
    todo = "Look at the server's log: it accepted a conversation and does not have it yet."
    return Check(name, "warn", f"{accepted}; not read back: {reply.words}", todo)


def ask(target: Target, path: str, *, timeout: float) -> Reply:
    """GET `path` once; OSError, HTTPException or ValueError when nothing is answered in time."""
    request = urllib.request.Request(  # noqa: S310  settings let only http and https through
        target.endpoint.rstrip("/") + path,
        headers={"Authorization": f"Bearer {target.token}", "Accept": "application/json"},
    )
    secure = [urllib.request.HTTPSHandler(context=_trust())] if target.endpoint.startswith("https:") else []
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({} if target.direct else None), _NoRedirect(), *secure
    )

    def answer() -> tuple[int, bytes]:
        try:
            with opener.open(request, timeout=timeout) as response:
                return response.status, response.read(_MOST_READ)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read(_MOST_READ)

    start = time.monotonic()
    status, body = within(timeout, answer)
    seconds = time.monotonic() - start
    try:
        said = json.loads(body)
    except (ValueError, RecursionError):
        said = None
    return Reply(status=status, said=said, seconds=seconds)


def within(seconds: float, call: Callable[[], T]) -> T:
    """The call's result or error; TimeoutError after `seconds`, and then a daemon thread is left to it.

    Name look-ups know no timeout, and sockets count theirs anew with every byte.
    """
    answers: queue.SimpleQueue[tuple[T | None, BaseException | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            answers.put((call(), None))
        except BaseException as error:  # noqa: BLE001  it is raised where it is waited for
            answers.put((None, error))

    threading.Thread(target=run, name="contextwrap-doctor", daemon=True).start()
    try:
        result, error = answers.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError(f"no answer within {seconds:g} s") from None
    if isinstance(error, TimeoutError):
        raise TimeoutError(f"no answer within {seconds:g} s") from error
    if error is not None:
        raise error
    return result  # type: ignore[return-value]


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect is an answer: following it would carry the token elsewhere."""

    def redirect_request(self, *_: object) -> None:
        return None


def _trust() -> ssl.SSLContext:
    """The authorities that context-python's client trusts: those of requests, not the system's."""
    import certifi  # noqa: PLC0415  comes with requests

    bundle = os.environ.get("REQUESTS_CA_BUNDLE") or os.environ.get("CURL_CA_BUNDLE") or certifi.where()
    if Path(bundle).is_dir():
        return ssl.create_default_context(capath=bundle)
    return ssl.create_default_context(cafile=bundle)
