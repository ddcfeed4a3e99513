"""How long does one append to the outbox take, also while the courier works? Wall time of a 2 KB parcel.

python benchmarks/put_latency.py [--puts 4000]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import closing
from pathlib import Path

import report

from contextwrap.courier import Courier
from contextwrap.outbox import Outbox, Parcel
from contextwrap.transport import Delivered
from contextwrap.window import Window

BODY = b"x" * 2000


class Taking:
    """A server that takes everything in the time that a request to ours takes."""

    def load(self):
        """Nothing to get ready."""

    def send(self, parcels):
        """All of them."""
        time.sleep(0.03)
        return [Delivered()] * len(parcels)

    def close(self):
        """Nothing is open."""


def measured(put, number: int, before) -> dict[str, float]:
    """µs a put, at a pace of about 2,000 a second."""
    times = []
    for one in range(number):
        parcel = Parcel(
            key=f"k{one}", address="x", lane=str(one), method="POST", target="/t", body=BODY, created_at=0.0
        )
        before()
        begun = time.perf_counter_ns()
        put(parcel)
        times.append(time.perf_counter_ns() - begun)
        time.sleep(0.0005)
    times.sort()
    at = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {name: round(times[min(number - 1, int(number * share))] / 1000, 1) for name, share in at.items()}


def main() -> None:
    """Idle, with a courier, and through the window."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--puts", type=int, default=4000)
    number = options.parse_args().puts
    found = {}
    for way in ("idle", "while the courier delivers", "background, while the courier delivers"):
        with (
            tempfile.TemporaryDirectory() as name,
            closing(Outbox.create(Path(name), checkpoints=way == "idle")) as outbox,
        ):
            courier = Courier(folder=Path(name), outbox=outbox, address="x", transport=Taking())
            window = Window(outbox.put, lost=print)
            put = window.put if way.startswith("background") else lambda parcel, outbox=outbox: outbox.put([parcel])
            found[way] = measured(put, number, (lambda: None) if way == "idle" else courier.wake)
            window.close()
            courier.stop(5)
    print(f"{'':42}{'p50 µs':>8}{'p99 µs':>8}{'max µs':>9}")
    for way, one in found.items():
        print(f"{way:42}{one['p50']:8.1f}{one['p99']:8.1f}{one['max']:9.1f}")
    report.write("put_latency", found)


if __name__ == "__main__":
    main()
