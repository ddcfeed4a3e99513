"""How parcels reach their server: `send(parcels)` answers what became of each, and never raises.

`ContextTransport` goes through context-python's own client. A server that takes batches, as `contextwrap serve` does,
gets all in one request; any other one request a parcel, in order, until one has to wait.
"""

from __future__ import annotations

import json
import logging
import time
import zlib
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias
from urllib.parse import urlsplit

from contextwrap.forking import settled
from contextwrap.settings import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Sequence

    from contextwrap.outbox import Parcel

BATCH_PATH: Final = "/api/v1/log/batch"
MAX_PARCELS: Final = 500

_AGAIN: Final = frozenset({408, 429, 502, 503, 504})
_UNAUTHENTICATED: Final = 401
_UNKNOWN: Final = 404
_CREATED: Final = 201
_ODD: Final = "the answer is not of the API's form"
_NO_BATCHES: Final = frozenset({403, 404, 405, 415, 501})
# By name: to import them takes 160 ms. https://learn.microsoft.com/python/api/azure-core/azure.core.exceptions
_WHY: Final = {
    "ServiceRequestError": "the server cannot be reached",
    "ServiceRequestTimeoutError": "the server cannot be reached in time",
    "ServiceResponseError": "the connection broke off",
    "ServiceResponseTimeoutError": "no answer in time",
    "IncompleteReadError": "the connection broke off",
    "TimeoutError": "no answer in time",
}
_CONNECT_SECONDS: Final = 5
_READ_SECONDS: Final = 10
_ANSWER_SECONDS: Final = 20.0
# Whoever stops in between has the word of what went before.
_SINGLY_SECONDS: Final = 0.05
_MOST_ANSWER: Final = 1024 * 1024
_LEAST_COMPRESSED: Final = 1024


@dataclass(frozen=True, slots=True)
class Delivered:
    """The server has it."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Not now: the server or the way to it is down; `after` is how many seconds the server asked for."""

    reason: str
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Stumbled:
    """The server failed over this parcel: it is tried again, and others need not wait for it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Early:
    """Not yet: what this parcel changes is not there, perhaps because another process still has it."""

    reason: str


@dataclass(frozen=True, slots=True)
class Refused:
    """Never: the server will not take this parcel, however often it is sent."""

    reason: str


@dataclass(frozen=True, slots=True)
class TooMany:
    """Not together: the parcels have to be sent in smaller batches."""

    reason: str


Outcome: TypeAlias = Delivered | Retry | Stumbled | Early | Refused | TooMany


class Transport(Protocol):
    """Where a courier takes its parcels. Called by one thread."""

    def load(self) -> None:
        """Get ready for the first `send`."""
        ...

    def send(self, parcels: Sequence[Parcel]) -> Sequence[Outcome]:
        """Make the parcels' requests once each; outcomes of the first of them, the others were not tried."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class ContextTransport:
    """The Context API at `endpoint`, through the `context-python` client, one attempt a call."""

    def __init__(self, *, endpoint: str, token: str) -> None:
        self._endpoint = endpoint
        self._token = token
        # On loopback a byte costs less than its compression.
        self._compresses = urlsplit(endpoint).hostname not in LOOPBACK
        self._client: Any = None
        self._takes: _Takes | None = None

    def load(self) -> None:
        """Import what the first request would, 160 ms of it, and while nobody can fork."""
        with settled:
            for name in ("azure.core.rest._requests_basic", "netrc"):
                # Where one has moved it is imported when it is needed.
                with suppress(ImportError):
                    import_module(name)
            # What fails here fails again at the first send, and is told there.
            with suppress(Exception):
                self._client = _connect(self._endpoint, self._token)

    def send(self, parcels: Sequence[Parcel]) -> Sequence[Outcome]:
        """As many of the parcels as the server takes at once; a parcel's key is its idempotency key."""
        if len(parcels) == 1:
            return self._send_singly(parcels)
        if self._takes is None:
            asked = self._ask("GET", BATCH_PATH)
            if isinstance(asked, Retry):
                return (asked,)
            self._takes = _takes(asked)
        return self._send_together(parcels, self._takes) if self._takes.lines > 1 else self._send_singly(parcels)

    def close(self) -> None:
        """Close the connections; the next send opens new ones, and asks anew what the server takes."""
        self._takes = None
        if self._client is not None:
            self._client.close()
            self._client = None

    def _send_singly(self, parcels: Sequence[Parcel]) -> Sequence[Outcome]:
        outcomes: list[Outcome] = []
        enough = time.monotonic() + _SINGLY_SECONDS
        for parcel in parcels:
            outcomes.append(self._send_one(parcel))
            if isinstance(outcomes[-1], (Retry, Stumbled)) or time.monotonic() > enough:
                break
        return outcomes

    def _send_one(self, parcel: Parcel) -> Outcome:
        answer = self._ask(
            parcel.method,
            parcel.target,
            content=parcel.body,
            headers={"Content-Type": "application/json", "x-ms-client-request-id": parcel.key},
        )
        if isinstance(answer, Retry):
            return answer
        outcome = _outcome(answer)
        return Early(outcome.reason) if isinstance(outcome, Refused) and _is_early(parcel, answer.status) else outcome

    def _send_together(self, parcels: Sequence[Parcel], takes: _Takes) -> Sequence[Outcome]:
        lines = _lines(parcels, takes)
        body = b"".join(lines)
        headers = {"Content-Type": "application/x-ndjson"}
        if self._compresses and takes.gzip and len(body) >= _LEAST_COMPRESSED:
            body = zlib.compress(body, 1, wbits=31)
            headers["Content-Encoding"] = "gzip"
        answer = self._ask("POST", BATCH_PATH, content=body, headers=headers)
        if isinstance(answer, Retry):
            return (answer,)
        if answer.status == 200:  # noqa: PLR2004  HTTP's own number
            return _outcomes(answer, parcels[: len(lines)])
        if answer.status in _NO_BATCHES:
            # Another server stands there now, or another version: one by one each gets its own answer.
            self._takes = _Takes()
            return self._send_singly(parcels)
        outcome = _outcome(answer)
        return (outcome,) if isinstance(outcome, Retry) else (TooMany(f"HTTP {answer.status}"),)

    def _ask(self, method: str, target: str, **request: Any) -> _Answer | Retry:
        from azure.core.rest import HttpRequest  # noqa: PLC0415  160 ms, on the courier's thread only

        try:
            if self._client is None:
                self._client = _connect(self._endpoint, self._token)
            response = self._client.send_request(HttpRequest(method, target, **request), stream=True)
            return _Answer(response.status_code, response.headers.get("Retry-After"), _read(response))
        except Exception as error:  # noqa: BLE001  the courier is promised an outcome, whatever the client meets
            return Retry(_WHY.get(type(error).__name__) or type(error).__name__)


@dataclass(frozen=True, slots=True)
class _Answer:
    status: int
    retry_after: str | None
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class _Takes:
    """How much one batch may hold; one line means none."""

    lines: int = 1
    bytes: int = 0
    gzip: bool = False


def _connect(endpoint: str, token: str) -> Any:
    from azure.core.credentials import AzureKeyCredential  # noqa: PLC0415
    from azure.core.pipeline.policies import AzureKeyCredentialPolicy  # noqa: PLC0415
    from getcontext import ContextAPI  # noqa: PLC0415
    from getcontext.token import Credential  # noqa: PLC0415

    # It logs every request at INFO: noise in the host's log.
    logging.getLogger("azure.core.pipeline.policies.http_logging_policy").setLevel(logging.WARNING)
    return ContextAPI(
        Credential(token),
        endpoint=endpoint.rstrip("/"),
        # The client's own bearer policy refuses http even to this machine; settings decide that here.
        authentication_policy=AzureKeyCredentialPolicy(AzureKeyCredential(token), "Authorization", prefix="Bearer"),
        retry_total=0,
        connection_timeout=_CONNECT_SECONDS,
        read_timeout=_READ_SECONDS,
        permit_redirects=False,
    )


def _read(response: Any) -> bytes:
    """The answer's body, piece by piece: a timeout that begins anew with each byte is none.

    TimeoutError for one that takes too long or never ends.
    """
    deadline = time.monotonic() + _ANSWER_SECONDS
    raw = response._internal_response.raw  # noqa: SLF001  azure's own ways out wait for whole blocks
    # urllib3 before 2.0 has nothing that answers before all is there.
    read = partial(raw.read1, decode_content=True) if hasattr(raw, "read1") else raw.read
    body = bytearray()
    try:
        while piece := read(_MOST_ANSWER):
            body += piece
            if time.monotonic() > deadline or len(body) > _MOST_ANSWER:
                raise TimeoutError  # noqa: TRY301  below it is closed
        raw.release_conn()
    except BaseException:
        response.close()
        raise
    return bytes(body)


def _takes(answer: _Answer) -> _Takes:
    """What the server says of its batches; anything but a plain yes means it has none."""
    try:
        said = json.loads(answer.body)
        if answer.status == 200:  # noqa: PLR2004  HTTP's own number
            return _Takes(lines=int(said["max_lines"]), bytes=int(said["max_bytes"]), gzip="gzip" in said["encodings"])
    except (ValueError, KeyError, TypeError):
        pass
    return _Takes()


def _lines(parcels: Sequence[Parcel], takes: _Takes) -> list[bytes]:
    """As many of the parcels as one batch may hold, at least one; a body is JSON already."""
    lines: list[bytes] = []
    size = 0
    for parcel in parcels[: takes.lines]:
        head = json.dumps({"key": parcel.key, "method": parcel.method, "target": parcel.target})
        line = b'%s,"body":%s}\n' % (head[:-1].encode(), parcel.body)
        size += len(line)
        if lines and size > takes.bytes:
            break
        lines.append(line)
    return lines


def _is_early(parcel: Parcel, status: int) -> bool:
    return parcel.method == "PATCH" and status == _UNKNOWN


def _outcomes(answer: _Answer, parcels: Sequence[Parcel]) -> Sequence[Outcome]:
    """Each line's outcome."""
    outcomes: list[Outcome] = [Delivered()] * len(parcels)
    try:
        for refused in json.loads(answer.body)["refused"]:
            line, reason = refused["line"], _said(refused["status"], f"({refused['code']}) {refused['message']}")
            outcomes[line] = (Early if _is_early(parcels[line], refused["status"]) else Refused)(reason)
    except (ValueError, KeyError, TypeError, IndexError):
        # Nobody knows what became of them; whatever is there already is applied once.
        return (Retry(_ODD),)
    return outcomes


def _is_object(body: bytes) -> bool:
    try:
        return not body.strip() or isinstance(json.loads(body), dict)
    except ValueError:
        return False


def _outcome(answer: _Answer) -> Outcome:
    if 200 <= answer.status < 300:  # noqa: PLR2004  HTTP's own numbers
        # A portal's page comes with a 200 too; the API answers 201, or a JSON object, or nothing more.
        return Delivered() if answer.status == _CREATED or _is_object(answer.body) else Retry(_ODD)
    reason = _said(answer.status, _reason(answer.body))
    # Nor is a key that is not known (yet, or any more) a record's fault.
    if answer.status in _AGAIN or answer.status == _UNAUTHENTICATED:
        return Retry(reason, _seconds(answer.retry_after))
    if answer.status >= 500:  # noqa: PLR2004
        return Retry(reason, after) if (after := _seconds(answer.retry_after)) is not None else Stumbled(reason)
    return Refused(reason)


def _said(status: int, text: str) -> str:
    return f"HTTP {status}{': ' if text else ''}{text}"[:300]


def _seconds(retry_after: str | None) -> float | None:
    try:
        return max(0.0, float(retry_after)) if retry_after else None
    except ValueError:
        return None


def _reason(body: bytes) -> str:
    try:
        error = json.loads(body)["error"]
        return f"({error['code']}) {error['message']}"
    except (ValueError, KeyError, TypeError):
        return ""
