"""Many log calls in one request, one a line: what `contextwrap`'s own courier sends.

A line is what its call would be by itself, `{"key", "method", "target", "body"}`: applied once under its key, as the
header `x-ms-client-request-id` of the single call says it, and refused for the same reasons, alone. Lines are taken in
order; all that are accepted are on disk, in one transaction, before the answer.
"""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request  # noqa: TC002  FastAPI reads the signatures
from starlette.responses import JSONResponse

from contextwrap.errors import WireError
from contextwrap.model import Log, Route, from_json
from contextwrap.server.auth import Ingester, for_tenant
from contextwrap.server.intake import UNKNOWN, is_known, key_of, sealed, take
from contextwrap.server.limits import MAX_BODY, check_depth, read_body
from contextwrap.server.refusals import Refusal, code_of

if TYPE_CHECKING:
    from contextwrap.outbox import Parcel
    from contextwrap.server.house import House
    from contextwrap.server.keys import Viewer

MAX_LINES: Final = 1000
MAX_KEY: Final = 256

router = APIRouter()


@router.get("/api/v1/log/batch")
def batches(sender: Ingester) -> JSONResponse:  # noqa: ARG001  who may not send may not ask
    """How much one batch may hold, and how it may be compressed."""
    return JSONResponse({"status": "ok", "max_lines": MAX_LINES, "max_bytes": MAX_BODY, "encodings": ["gzip"]})


@router.post("/api/v1/log/batch")
async def log_batch(request: Request, sender: Ingester) -> JSONResponse:
    """Take the lines; `refused` names those that cannot be taken, by their place (from 0) among lines not empty."""
    encoding = request.headers.get("content-encoding", "identity").lower()
    if encoding not in {"identity", "gzip"}:
        raise Refusal(415, f"a batch is not taken in the encoding {encoding[:40]!r}: send it plain or as gzip")
    body = await read_body(request)
    house: House = request.app.state.house
    return await run_in_threadpool(_take, house, sender, body, zipped=encoding == "gzip")


def _take(house: House, sender: Viewer, body: bytes, *, zipped: bool) -> JSONResponse:
    lines = [line for line in (_unzipped(body) if zipped else body).split(b"\n") if line.strip()]
    if len(lines) > MAX_LINES:
        raise Refusal(413, f"the batch has more than {MAX_LINES} lines: send fewer in one call")
    batch = _Batch(house, sender)
    refused: list[dict[str, Any]] = []
    for number, line in enumerate(lines):
        try:
            batch.add(line)
        except WireError as malformed:
            refused.append(_refused(number, 400, str(malformed)))
        except Refusal as refusal:
            refused.append(_refused(number, refusal.status_code, refusal.detail))
    take(house, *batch.parcels)
    return JSONResponse({"status": "ok", "accepted": len(lines) - len(refused), "refused": refused})


class _Batch:
    """The accepted lines so far, and what they name that a later line may rate."""

    def __init__(self, house: House, sender: Viewer) -> None:
        self._house = house
        self._sender = sender
        self._named: set[tuple[str, str]] = set()
        self._settled = False
        self.parcels: list[Parcel] = []

    def add(self, line: bytes) -> None:
        """One call more; WireError or Refusal for one that its own route would refuse."""
        check_depth(line)
        said = from_json(line)
        if not isinstance(said, dict):
            raise WireError('a line must be an object like {"key", "method", "target", "body"}')
        key, method, target = (said.get(name) for name in ("key", "method", "target"))
        if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY:
            raise WireError(f"key must be a string of 1 to {MAX_KEY} characters")
        if not isinstance(method, str) or not isinstance(target, str):
            raise WireError("method and target must be strings")
        log = Log.of_call(method, target, said.get("body"))
        tenant = for_tenant(self._sender, log.tenant_id)
        if log.route is Route.RATING and not self._is_known(log.rated, tenant.tenant_id):
            raise Refusal(404, UNKNOWN)
        whole, parcel = sealed(log, tenant_id=tenant.tenant_id, key=key_of(tenant, key))
        self.parcels.append(parcel)
        self._name(whole)

    def _name(self, log: Log) -> None:
        if log.conversation is not None:
            ids = [message.id for message in log.conversation.messages]
            answered = any(message.role == "assistant" for message in log.conversation.messages)
            for named in (*ids, log.conversation.id if answered else None):
                if named is not None:
                    self._named.add((log.tenant_id, named))

    def _is_known(self, rated: str, tenant_id: str) -> bool:
        """Whether an earlier line names it, or the store does, which is waited for once a batch."""
        if (tenant_id, rated) in self._named or self._house.store.can_rate(rated, tenant_id=tenant_id):
            return True
        if self._settled:
            return False
        self._settled = True
        return is_known(self._house, rated, tenant_id)


def _unzipped(body: bytes) -> bytes:
    """The bytes, as long as they are no more than a batch may have."""
    unzip = zlib.decompressobj(wbits=31)
    try:
        found = unzip.decompress(body, MAX_BODY + 1)
    except zlib.error:
        raise Refusal(400, "the body is not gzip") from None
    if len(found) > MAX_BODY:
        raise Refusal(413, f"the body is larger than {MAX_BODY} bytes when unzipped: send less in one call")
    if not unzip.eof:
        raise Refusal(400, "the body ends in the middle of its gzip")
    return found


def _refused(line: int, status: int, message: str) -> dict[str, Any]:
    return {"line": line, "status": status, "code": code_of(status), "message": message}
