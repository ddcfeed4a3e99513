"""An HTTP server on loopback that every peer's client takes for its own, and that knows which calls arrived.

A call is the words "call 17 of <run>." in the question and "answer 17 of <run>." in the answer, wherever in a body they
stand; it has arrived when both have.
"""

from __future__ import annotations

import gzip
import io
import json
import re
import socket
import sys
import threading
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

import zstandard

MARK = re.compile(rb"(call|answer) (\d+) of ([\w-]+)\.")
UNPACKED = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "zstd": lambda body: zstandard.ZstdDecompressor().stream_reader(io.BytesIO(body)).read(),
}
JSON, PROTOBUF = "application/json", "application/x-protobuf"
# What LangSmith's own server says of itself, as far as the client asks.
INFO = {
    "version": "0.13.0",
    "instance_flags": {"zstd_compression_enabled": True},
    "batch_ingest_config": {
        "use_multipart_endpoint": True,
        "scale_up_qsize_trigger": 1000,
        "scale_up_nthreads_limit": 16,
        "scale_down_nempty_trigger": 4,
        "size_limit": 100,
        "size_limit_bytes": 20_971_520,
    },
}
# What `contextwrap serve` says of its batches.
BATCHES = {"status": "ok", "max_lines": 1000, "max_bytes": 10_485_760, "encodings": ["gzip"]}
ANSWERS: tuple[tuple[str, int, str, Any], ...] = (
    (r"POST /(api/public/otel/)?v1/traces", 200, PROTOBUF, b""),  # langfuse, openinference, mlflow
    (r"GET /info", 200, JSON, INFO),  # langsmith
    (r"POST /runs/(multipart|batch)", 202, JSON, {}),
    (r"GET /api/is-alive/ping", 200, JSON, {}),  # opik
    (r"(POST|PATCH) /api/v1/private/(traces|spans).*", 204, JSON, b""),
    (r"GET /version", 200, "text/plain", b"3.17.2"),  # mlflow
    (r"GET /api/v1/log/batch", 200, JSON, BATCHES),  # contextwrap
    (r"POST /api/v1/log/batch", 200, JSON, {"status": "ok", "refused": []}),
    (r"POST /api/v1/log/conversation.*", 201, JSON, {"status": "ok"}),  # the old handler
)


def answer(asked: str, body: bytes) -> tuple[int, str, Any]:
    """What to say to "METHOD /path"."""
    if asked == "POST /api/3.0/mlflow/traces":
        # A server with a database takes spans by OTLP, and says so in the trace that it gives back.
        trace = json.loads(body)
        trace["trace"]["trace_info"].setdefault("tags", {})["mlflow.trace.spansLocation"] = "TRACKING_STORE"
        return 200, JSON, trace
    for pattern, *said in ANSWERS:
        if re.fullmatch(pattern, asked):
            return said[0], said[1], said[2]
    return 404, JSON, {}


class Server(ThreadingHTTPServer):
    """A client that is killed hangs up in the middle: no news here."""

    daemon_threads = True

    def handle_error(self, request, client_address) -> None:
        """Say what else went wrong."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class Sink:
    """One that runs, inside `with`; a hung one reads and never answers."""

    def __init__(self, *, hung: bool = False, port: int = 0) -> None:
        self.marks: set[tuple[bytes, bytes, bytes]] = set()
        self.asked: Counter[str] = Counter()
        self.bytes = 0
        sink = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # An answer in two pieces waits 40 ms for the first to be acknowledged.
            wbufsize = -1

            def do_GET(self) -> None:
                body = self._body()
                status, kind, said = sink.take(f"{self.command} {self.path.partition('?')[0]}", body)
                if hung:
                    time.sleep(300)
                data = said if isinstance(said, bytes) else json.dumps(said).encode()
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            do_POST = do_PATCH = do_PUT = do_GET  # noqa: N815  http.server's own names

            def _body(self) -> bytes:
                if self.headers.get("Transfer-Encoding") == "chunked":
                    body = b""
                    while size := int(self.rfile.readline().split(b";")[0], 16):
                        body += self.rfile.read(size)
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    size = int(self.headers.get("Content-Length", 0))
                    body = self.rfile.read(size)
                    if len(body) < size:
                        raise ConnectionAbortedError
                unpacked = UNPACKED.get(self.headers.get("Content-Encoding", ""))
                return unpacked(body) if unpacked else body

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._http = Server(("127.0.0.1", port), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._http.server_close()

    def take(self, asked: str, body: bytes) -> tuple[int, str, Any]:
        """Remember what arrived, and answer."""
        self.marks.update(MARK.findall(body))
        self.bytes += len(body)
        said = answer(asked, body)
        self.asked[f"{asked} {said[0]}"] += 1
        return said

    def clear(self) -> None:
        """Forget what arrived so far."""
        self.marks.clear()
        self.bytes = 0

    def arrived(self, run: str, number: int) -> int:
        """How many of the run's calls, counted from 0, are here whole."""
        return sum(
            {(b"call", str(one).encode(), run.encode()), (b"answer", str(one).encode(), run.encode())} <= self.marks
            for one in range(number)
        )


def unused() -> int:
    """A port where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
