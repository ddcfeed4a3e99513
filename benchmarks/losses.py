"""What is lost, and how long does the end take? kill -9 right after the n-th call, exit with the server up, down, hung.

python benchmarks/losses.py [--repeats 10]
"""

from __future__ import annotations

import argparse
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import report

APP = """
import os, signal, sys, time
from langchain_core.language_models import FakeListChatModel
from langchain_core.prompts import ChatPromptTemplate
import contextwrap

number, end = int(sys.argv[1]), sys.argv[2]
bot = contextwrap.wrap(ChatPromptTemplate.from_messages([("user", "{q}")]) | FakeListChatModel(responses=["ok"]))
for one in range(number):
    bot.invoke({"q": f"call {one} of {sys.argv[3]}."})
print(time.time(), flush=True)
if end == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""
NEXT = "import contextwrap; contextwrap.flush(20)"


class Sink:
    """Takes every call, or says nothing at all; remembers what was said in them."""

    def __init__(self, *, hung: bool = False) -> None:
        self.said = b""
        sink = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            # An answer in two pieces waits 40 ms for the first to be acknowledged.
            wbufsize = -1

            def do_GET(self) -> None:
                self._say(404, b"{}")

            def do_POST(self) -> None:
                sink.said += self.rfile.read(int(self.headers["Content-Length"]))
                if hung:
                    time.sleep(60)
                self._say(201, b'{"status":"ok"}')

            def _say(self, status: int, body: bytes) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
                self.wfile.flush()

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_address[1]}"

    def count(self, name: str, number: int) -> int:
        """How many of the calls arrived."""
        return sum(f"call {one} of {name}.".encode() in self.said for one in range(number))


@contextmanager
def sink(*, hung: bool = False):
    """One that runs."""
    made = Sink(hung=hung)
    threading.Thread(target=made.http.serve_forever, daemon=True).start()
    try:
        yield made
    finally:
        made.http.shutdown()
        made.http.server_close()


def run(script: str, *arguments: object, home: Path, url: str, **more: str) -> tuple[float, str]:
    """When the process was gone, in seconds since 1970, and what it said."""
    environ = {"CONTEXTWRAP_HOME": str(home), "CONTEXTWRAP_ENDPOINT": url, "CONTEXT_API_TOKEN": "t", **more}
    command = [sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    return time.time(), done.stdout


def arrived(number: int, durability: str, repeats: int) -> str:
    """How many of the calls arrive in all, after a kill -9 right after the last and one more start."""
    found = 0
    for repeat in range(repeats):
        name = f"{durability}{number}-{repeat}"
        with tempfile.TemporaryDirectory() as home, sink() as server:
            where = {"home": Path(home), "url": server.url, "CONTEXTWRAP_DURABILITY": durability}
            run(APP, number, "killed", name, **where)
            run(NEXT, **where)
            found += server.count(name, number)
    return f"{found} of {number * repeats}"


def exit_seconds(way: str, repeats: int) -> float:
    """From the last call to the end of the process."""
    took = []
    for _ in range(repeats):
        with tempfile.TemporaryDirectory() as home, sink(hung=way == "hung") as server:
            url = server.url
            if way == "down":
                with closing(socket.socket()) as probe:
                    probe.bind(("127.0.0.1", 0))
                    url = f"http://127.0.0.1:{probe.getsockname()[1]}"
            gone, said = run(APP, 100, "ended", "x", home=Path(home), url=url)
            took.append(gone - float(said))
    return round(statistics.median(took), 2)


def main() -> None:
    """Both questions."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--repeats", type=int, default=10)
    repeats = options.parse_args().repeats
    killed = {
        durability: {number: arrived(number, durability, repeats) for number in (1, 10, 100)}
        for durability in ("call", "background")
    }
    ended = {way: exit_seconds(way, max(1, repeats // 3)) for way in ("up", "down", "hung")}
    for durability, found in killed.items():
        for number, said in found.items():
            print(f"kill -9 after call {number:3}, durability {durability:10}: {said} arrive")
    for way, seconds in ended.items():
        print(f"exit after 100 calls, server {way:4}: {seconds:.2f} s")
    report.write("losses", {"killed": killed, "exit seconds": ended})


if __name__ == "__main__":
    main()
