"""How long do an import of 2,388 real dialogues and the pages on them take? Bounds: 30 s, and 50 ms a page.

python benchmarks/pages.py
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from http.client import HTTPConnection, HTTPResponse
from statistics import median, quantiles
from urllib.parse import urlsplit

import corpus

ROUNDS = 100
COMMAND = [sys.executable, "-m", "contextwrap"]


def get(connection: HTTPConnection, path: str, cookie: str) -> tuple[float, HTTPResponse, bytes]:
    """One request: how many milliseconds it took, and what was answered."""
    began = time.perf_counter()
    connection.request("GET", path, headers={"Cookie": cookie})
    answer = connection.getresponse()
    body = answer.read()
    return (time.perf_counter() - began) * 1000, answer, body


def main() -> None:
    """Print the import's wall time, and each page's median and 95th percentile over one connection."""
    path = corpus.find()
    if path is None:
        sys.exit(f"no dialogues in {corpus.FOLDER}: set CONTEXTWRAP_DATA to the folder of sgd_train.jsonl.gz")
    with tempfile.TemporaryDirectory() as home:
        began = time.perf_counter()
        done = subprocess.run(
            [*COMMAND, "import", str(path), "--home", home], check=True, capture_output=True, text=True
        )
        print(f"{done.stdout.strip()}: {time.perf_counter() - began:.1f} s")
        serve = [*COMMAND, "serve", "--home", home, "--port", "0"]
        with subprocess.Popen(serve, stdout=subprocess.PIPE, text=True) as server:
            try:
                server.stdout.readline()
                link = urlsplit(re.search(r"http\S+", server.stdout.readline())[0])
                connection = HTTPConnection(link.netloc)
                _, answer, _ = get(connection, f"{link.path}?{link.query}", "")
                cookie = answer.headers["set-cookie"].split(";")[0]
                _, _, body = get(connection, "/conversations", cookie)
                transcript = re.search(rb'href="(/conversations/[^"?]+)', body)[1].decode()
                pages = {
                    "list, first page": "/conversations",
                    "list, page 40": "/conversations?page=40",
                    "list, one user": "/conversations?user=u_69011f38cb",
                    "transcript": transcript,
                }
                for name, page in pages.items():
                    times = [get(connection, page, cookie)[0] for _ in range(ROUNDS)]
                    print(f"{name:>18}: median {median(times):5.1f} ms, p95 {quantiles(times, n=20)[-1]:5.1f} ms")
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
