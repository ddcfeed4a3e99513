"""A server that speaks both ways of the log API, and fails as it is told to.

It remembers each key it accepted, with what came under it, as a server that applies a key once would.
"""

from __future__ import annotations

import gzip
import json
import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

BATCH = "/api/v1/log/batch"
PROBE = {"status": "ok", "max_lines": 1000, "max_bytes": 5 * 1024 * 1024, "encodings": ["gzip"]}


@dataclass(frozen=True, kw_only=True)
class Fault:
    """What to do to one request: `status`, or what happens to the connection. `accepts` first takes what it brought."""

    status: int = 0
    body: bytes = b'{"error":{"code":"Fault","message":"as told"}}'
    headers: Mapping[str, str] = field(default_factory=dict)
    how: str = "answer"
    accepts: bool = False


class HostileServer:
    """Answers with `faults` in turn, then well; a record for which `poison` holds is always a 500."""

    def __init__(self, *faults: Fault, batches: bool, poison: Callable[[str], bool] = lambda _: False) -> None:
        self.faults = deque(faults)
        self.batches = batches
        self.poison = poison
        self.accepted: dict[str, list[str]] = {}
        self.seen = 0
        self.sizes: list[int] = []
        self.largest = 0
        self.pause = 0.0
        self.lock = threading.Lock()
        self.closing = threading.Event()
        self._http = _Http(("127.0.0.1", 0), _Handler)
        self._http.hostile = self
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def accept(self, calls: list[dict[str, Any]]) -> None:
        """Take each key once, in order."""
        with self.lock:
            for call in calls:
                if call["key"] not in self.accepted:
                    self.accepted[call["key"]] = [call["target"], *texts(call)]

    def threads(self) -> dict[str, list[str]]:
        """The texts of each thread, in the order they were accepted; a rating is a text of its thread."""
        with self.lock:
            found: dict[str, list[str]] = {}
            for _, *said in self.accepted.values():
                for text in said:
                    found.setdefault(text.partition(":")[0], []).append(text)
            return found

    def wait_for(self, number: int) -> None:
        """Until so many requests have come."""
        deadline = time.monotonic() + 20
        while self.seen < number:
            assert time.monotonic() < deadline, f"only {self.seen} came"
            time.sleep(0.005)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()


class _Http(ThreadingHTTPServer):
    hostile: HostileServer


class _Handler(BaseHTTPRequestHandler):
    server: _Http

    protocol_version = "HTTP/1.1"
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        said = PROBE if self.server.hostile.batches and self.path == BATCH else None
        self._say(200 if said else 404, json.dumps(said or {}).encode())

    def do_POST(self) -> None:
        with self.server.hostile.lock:
            self.server.hostile.seen += 1
            fault = self.server.hostile.faults.popleft() if self.server.hostile.faults else Fault()
        length = int(self.headers.get("Content-Length", 0))
        if fault.how == "hang up early":
            self.rfile.read(length // 2)
            self._hang_up()
            return
        body = self.rfile.read(length)
        if self.headers.get("Content-Encoding") == "gzip":
            body = gzip.decompress(body)
        time.sleep(self.server.hostile.pause)
        calls = self._calls(body)
        self.server.hostile.sizes.append(len(calls))
        if fault.accepts:
            self.server.hostile.accept(calls)
        if fault.how == "hang":
            self.server.hostile.closing.wait(60)
            self._hang_up()
        elif fault.how == "reset":
            self._hang_up()
        elif fault.how == "half an answer":
            self._half(b'{"status":"o')
        elif fault.how == "slow":
            self._slowly()
        elif fault.status:
            self._say(fault.status, fault.body, fault.headers)
        else:
            self._take(calls)

    do_PATCH = do_POST  # noqa: N815  http.server's own names

    def _calls(self, body: bytes) -> list[dict[str, Any]]:
        if self.path == BATCH:
            return [json.loads(line) for line in body.splitlines()]
        key = self.headers["x-ms-client-request-id"]
        return [{"key": key, "method": self.command, "target": self.path, "body": json.loads(body)}]

    def _take(self, calls: list[dict[str, Any]]) -> None:
        if self.server.hostile.largest and len(calls) > self.server.hostile.largest:
            self._say(413, Fault().body)
            return
        if any(self.server.hostile.poison(text) for call in calls for text in texts(call)):
            self._say(500, Fault().body)
            return
        self.server.hostile.accept(calls)
        together = {"status": "ok", "accepted": len(calls), "refused": []}
        if self.path == BATCH:
            self._say(200, json.dumps(together).encode())
        else:
            self._say(201, b'{"status":"ok"}')

    def _say(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def _half(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()
        self._hang_up()

    def _slowly(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "1000")
        self.end_headers()
        while not self.server.hostile.closing.wait(0.1):
            try:
                self.wfile.write(b" ")
                self.wfile.flush()
            except OSError:
                break
        self.close_connection = True

    def _hang_up(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def texts(call: dict[str, Any]) -> list[str]:
    """What was said in a call."""
    body = call["body"]
    if isinstance(body, list):
        return [str(mark.get("feedback")) for mark in body]
    return [message["message"] for message in body["conversation"]["messages"]]
