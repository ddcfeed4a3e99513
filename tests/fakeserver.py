"""A small HTTP server on loopback that says what it is told to say, and remembers what it was asked."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Self

from contextwrap.model import Log, Request

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What to say; `hang` says nothing until the server closes, `reset` hangs up at once."""

    status: int = 201
    body: bytes = b'{"status":"ok"}'
    headers: Mapping[str, str] = field(default_factory=dict)
    hang: bool = False
    reset: bool = False


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One request as it arrived; `at` is monotonic seconds."""

    method: str
    target: str
    headers: Mapping[str, str]
    body: bytes
    at: float

    @property
    def log(self) -> Log:
        return Log.from_request(Request(method=self.method, target=self.target, body=self.body))

    @property
    def key(self) -> str:
        return self.headers["x-ms-client-request-id"]


OK = Answer()
HANG = Answer(hang=True)
RESET = Answer(reset=True)


class FakeServer:
    """Gives `answers` in turn, and `always` when they are used up."""

    def __init__(self, *answers: Answer, always: Answer = OK, port: int = 0) -> None:
        self._answers = deque(answers)
        self._always = always
        self._arrival = threading.Condition()
        self._closing = threading.Event()
        self.asked: list[Asked] = []
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # Header and body in one segment: two wait 40 ms for each other.
            wbufsize = -1
            disable_nagle_algorithm = True

            def do_GET(self) -> None:
                """Nothing is told of batches: this is another server than ours."""
                self.send_error(404)

            def _answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                answer = server._next(
                    Asked(
                        method=self.command,
                        target=self.path,
                        headers={name.lower(): value for name, value in self.headers.items()},
                        body=body,
                        at=time.monotonic(),
                    )
                )
                if answer.hang:
                    server._closing.wait(60)
                if answer.hang or answer.reset:
                    self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    self.close_connection = True
                    return
                self.send_response(answer.status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(answer.body)))
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(answer.body)

            do_POST = do_PATCH = _answer  # noqa: N815  http.server's own names

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._http.shutdown()
        self._http.server_close()

    def _next(self, asked: Asked) -> Answer:
        with self._arrival:
            self.asked.append(asked)
            self._arrival.notify_all()
            return self._answers.popleft() if self._answers else self._always

    def wait_for(self, number: int, timeout: float = 15.0) -> list[Asked]:
        """The requests, once there are `number` of them."""
        with self._arrival:
            assert self._arrival.wait_for(lambda: len(self.asked) >= number, timeout), f"only {len(self.asked)} came"
            return list(self.asked)


def free_port() -> int:
    """A port nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def keys(asked: Iterable[Asked]) -> list[str]:
    """Their idempotency keys, in order of arrival."""
    return [one.key for one in asked]
