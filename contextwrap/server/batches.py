"""Many log calls in one request: `POST /api/v1/log/batch`, which `contextwrap`'s own courier sends.

The body is NDJSON, at most MAX_LINES lines and MAX_BODY bytes before and after `Content-Encoding`. A line is what its
call would be by itself:

    {"key": "…", "method": "POST" | "PATCH", "target": "/api/v1/log/conversation/thread?tenant_id=t", "body": {…}}

It is applied once under its `key`, which is the `x-ms-client-request-id` of the single call, and refused alone, with
the single call's status and words. Lines are taken in order, so a line may rate what an earlier one brings; all that
are accepted are on disk, in one transaction, before the answer:

    {"status": "ok", "accepted": 499, "refused": [{"line": 3, "status": 400, "code": "BadRequest", "message": "…"}]}

`line` counts from 0, among lines that are not empty. What is wrong with the whole (401, 403, 413, 415, 400 for a broken
stream) is one error in the one shape, and then nothing was taken. `GET` of the same path says what a batch may hold; a
server that has no batches answers it with 404 or 405.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastapi import APIRouter
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request  # noqa: TC002  FastAPI reads the signatures
from starlette.responses import JSONResponse

from contextwrap.errors import WireError
from contextwrap.model import Log, Route, from_json, has_half_characters
from contextwrap.server.auth import Ingester, for_tenant
from contextwrap.server.encodings import ENCODINGS, unpacked
from contextwrap.server.intake import UNKNOWN, key_of, sealed, take, unknown
from contextwrap.server.limits import MAX_BODY, check_depth, read_body
from contextwrap.server.refusals import Refusal, code_of

if TYPE_CHECKING:
    from contextwrap.outbox import Parcel
    from contextwrap.server.house import House
    from contextwrap.server.keys import Viewer
    from contextwrap.store.batch import Key

MAX_LINES: Final = 1000
MAX_KEY: Final = 256

router = APIRouter()


@router.get("/api/v1/log/batch")
def batches(sender: Ingester) -> JSONResponse:  # noqa: ARG001  who may not send may not ask
    """How much one batch may hold, and how it may be compressed."""
    return JSONResponse({"status": "ok", "max_lines": MAX_LINES, "max_bytes": MAX_BODY, "encodings": list(ENCODINGS)})


@router.post("/api/v1/log/batch")
async def log_batch(request: Request, sender: Ingester) -> JSONResponse:
    """Take many log calls, one a line: `{"key", "method", "target", "body"}`, as NDJSON, plain or compressed.

    Each is taken or refused as its own route would do; `refused` names those that were not, by their place (from 0)
    among lines not empty.
    """
    body = await read_body(request)
    house: House = request.app.state.house
    return await run_in_threadpool(_take, house, sender, body, request.headers.get("content-encoding", ""))


def _take(house: House, sender: Viewer, body: bytes, encoding: str) -> JSONResponse:
    lines = [line for line in unpacked(body, encoding, limit=MAX_BODY).split(b"\n") if line.strip()]
    if len(lines) > MAX_LINES:
        raise Refusal(413, f"the batch has more than {MAX_LINES} lines: send fewer in one call")
    batch = _Batch(sender)
    for line in lines:
        batch.add(line)
    taken, refused = batch.outcomes(unknown(house, batch.unsure.values()))
    take(house, *taken)
    return JSONResponse({"status": "ok", "accepted": len(taken), "refused": refused})


class _Batch:
    """What becomes of each line; `unsure` is what the store has to know for those, by number, to be taken."""

    def __init__(self, sender: Viewer) -> None:
        self._sender = sender
        self._lines: list[Parcel | Refusal] = []
        self._named: set[Key] = set()
        self.unsure: dict[int, Key] = {}

    def add(self, line: bytes) -> None:
        """One call more."""
        try:
            self._lines.append(self._parcel(line))
        except Refusal as refusal:
            self._lines.append(refusal)
        except WireError as malformed:
            self._lines.append(Refusal(400, str(malformed)))

    def outcomes(self, unknown: set[Key]) -> tuple[list[Parcel], list[dict[str, Any]]]:
        """What goes into the journal, and which lines do not."""
        for number, rated in self.unsure.items():
            if rated in unknown:
                self._lines[number] = Refusal(404, UNKNOWN)
        taken = [line for line in self._lines if not isinstance(line, Refusal)]
        refused = [
            {"line": number, "status": line.status_code, "code": code_of(line.status_code), "message": line.detail}
            for number, line in enumerate(self._lines)
            if isinstance(line, Refusal)
        ]
        return taken, refused

    def _parcel(self, line: bytes) -> Parcel:
        """The call as the journal keeps it; WireError or Refusal for one that its own route would refuse."""
        check_depth(line, within=1)
        said = from_json(line)
        if not isinstance(said, dict):
            raise WireError('a line must be an object like {"key", "method", "target", "body"}')
        key, method, target = (said.get(name) for name in ("key", "method", "target"))
        if not isinstance(key, str) or not 0 < len(key) <= MAX_KEY or has_half_characters(key):
            raise WireError(f"key must be a string of 1 to {MAX_KEY} characters")
        if not isinstance(method, str) or not isinstance(target, str):
            raise WireError("method and target must be strings")
        log = Log.at(method, target)
        sender = for_tenant(self._sender, log.tenant_id)
        rated = sender.tenant_id, log.rated
        if log.route is Route.RATING and rated not in self._named:
            # Also when its body is malformed: the single call looks here first.
            self.unsure[len(self._lines)] = rated
        whole, parcel = sealed(log.saying(said.get("body")), tenant_id=sender.tenant_id, key=key_of(sender, key))
        self._name(whole)
        return parcel

    def _name(self, log: Log) -> None:
        """Note what a later line may rate: messages, and threads with an answer."""
        if (conversation := log.conversation) is None:
            return
        self._named.update((log.tenant_id, message.id or "") for message in conversation.messages)
        if any(message.role == "assistant" and message.type == "message" for message in conversation.messages):
            self._named.add((log.tenant_id, conversation.id or ""))
