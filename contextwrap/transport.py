"""How one parcel reaches its server: `send(parcel)` answers Delivered, Retry or Refused, and never raises.

`ContextTransport` goes through context-python's own client. It is imported on first use, on the courier's
thread, because that takes 160 ms.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

if TYPE_CHECKING:
    from contextwrap.outbox import Parcel

_AGAIN: Final = frozenset({408, 429})
_CONNECT_SECONDS: Final = 5
_READ_SECONDS: Final = 10


@dataclass(frozen=True, slots=True)
class Delivered:
    """The server has it."""


@dataclass(frozen=True, slots=True)
class Retry:
    """Not now: the server or the way to it is down; `after` is how many seconds the server asked for."""

    reason: str
    after: float | None = None


@dataclass(frozen=True, slots=True)
class Refused:
    """Never: the server will not take this parcel, however often it is sent."""

    reason: str


Outcome: TypeAlias = Delivered | Retry | Refused


class Transport(Protocol):
    """Where a courier takes its parcels. Called by one thread."""

    def send(self, parcel: Parcel) -> Outcome:
        """Make the parcel's request once."""
        ...

    def close(self) -> None:
        """Let go of connections."""
        ...


class ContextTransport:
    """The Context API at `endpoint`, through the `context-python` client, one attempt a call."""

    def __init__(self, *, endpoint: str, token: str) -> None:
        self._endpoint = endpoint
        self._token = token
        self._client: Any = None

    def send(self, parcel: Parcel) -> Outcome:
        """Make the parcel's request once; its key is the idempotency key."""
        from azure.core.rest import HttpRequest  # noqa: PLC0415  160 ms, see above

        if self._client is None:
            self._client = _connect(self._endpoint, self._token)
        request = HttpRequest(
            parcel.method,
            parcel.target,
            content=parcel.body,
            headers={"Content-Type": "application/json", "x-ms-client-request-id": parcel.key},
        )
        try:
            response = self._client.send_request(request)
        except Exception as error:  # noqa: BLE001  the courier is promised an outcome, whatever the client meets
            # A body that is no JSON fails to decode also after a 201: the status says what happened.
            answered = getattr(getattr(error, "response", None), "status_code", None)
            return Retry(type(error).__name__) if answered is None else _outcome(answered, "")
        return _outcome(response.status_code, _reason(response), response.headers.get("Retry-After"))

    def close(self) -> None:
        """Close the connections; the next send opens new ones."""
        if self._client is not None:
            self._client.close()
            self._client = None


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


def _outcome(status: int, text: str, retry_after: str | None = None) -> Outcome:
    if 200 <= status < 300:  # noqa: PLR2004  HTTP's own numbers
        return Delivered()
    reason = f"HTTP {status}{': ' if text else ''}{text}"
    if status in _AGAIN or status >= 500:  # noqa: PLR2004
        return Retry(reason, _seconds(retry_after))
    return Refused(reason)


def _seconds(retry_after: str | None) -> float | None:
    try:
        return max(0.0, float(retry_after)) if retry_after else None
    except ValueError:
        return None


def _reason(response: Any) -> str:
    if response.status_code < 400:  # noqa: PLR2004
        return ""
    try:
        error = response.json()["error"]
        return f"({error['code']}) {error['message']}"[:300]
    except (ValueError, KeyError, TypeError):
        return ""
