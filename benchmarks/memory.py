"""What does recording leave behind? Memory over 20,000 calls, with the server up and down; threads and descriptors.

Linux only: it reads /proc.

    python benchmarks/memory.py [--calls 20000] [--rounds 200]
"""

from __future__ import annotations

import argparse
import gc
import os
import socket
import sys
import tempfile
import threading
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path

import report
from losses import sink
from overhead import ASKED, chain

import contextwrap
from contextwrap import wrap


def resident() -> float:
    """MB of memory that this process has in use."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def _open() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def growth(calls: int, url: str | None) -> dict[str, float]:
    """MB at the start, after a tenth of the calls, and after all."""
    with tempfile.TemporaryDirectory() as home:
        contextwrap.configure(home=home, endpoint=url, token="t" if url else None, exit_timeout=0)
        bot = wrap(chain())
        found = {"start": resident()}
        for number in range(1, calls + 1):
            bot.invoke(ASKED)
            if number == calls // 10:
                found["a tenth"] = resident()
        contextwrap.flush(1)
        found["all"] = resident()
        contextwrap.shutdown(0)
    return {name: round(value, 1) for name, value in found.items()}


def leaks(rounds: int, url: str) -> dict[str, int]:
    """How many more threads and descriptors there are after so many clients that came and went."""
    with tempfile.TemporaryDirectory() as home:

        def once() -> None:
            contextwrap.configure(home=home, endpoint=url, token="t")
            wrap(chain()).invoke(ASKED)
            contextwrap.shutdown()

        once()
        threads, open_files = threading.active_count(), _open()
        for _ in range(rounds):
            once()
        return {
            "threads": threading.active_count() - threads,
            "descriptors": _open() - open_files,
        }


def main() -> None:
    """Each in a process of its own."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--calls", type=int, default=20_000)
    options.add_argument("--rounds", type=int, default=200)
    given = options.parse_args()
    if sys.platform != "linux":
        raise SystemExit("this one reads /proc")
    fresh = get_context("spawn")
    with sink() as up, closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        down = f"http://127.0.0.1:{probe.getsockname()[1]}"
        found = {}
        for state, url in (("no server", None), ("server up", up.url), ("server down", down)):
            with fresh.Pool(1) as pool:
                one = found[state] = pool.apply(growth, (given.calls, url))
            print(f"{state:12} MB {one['start']:7} {one['a tenth']:7} {one['all']:7}", flush=True)
        with fresh.Pool(1) as pool:
            left = pool.apply(leaks, (given.rounds, up.url))
        print(f"after {given.rounds} clients: {left['threads']:+} threads, {left['descriptors']:+} descriptors")
    report.write("memory", {"MB": found, "left": left})


if __name__ == "__main__":
    main()
