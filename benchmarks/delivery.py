"""How fast does one process deliver, and what does a conversation cost on both sides?

A backlog of two-message conversations goes through the courier to `contextwrap serve` in a process of its own: plain,
as gzip, and one request a record, as to a server that takes no batches.

    python benchmarks/delivery.py [--conversations 30000]
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import report
from replay import served

from contextwrap.courier import Courier
from contextwrap.ids import new_id
from contextwrap.model import Conversation, Log, Message, Route
from contextwrap.outbox import Outbox, Parcel
from contextwrap.transport import ContextTransport

ASKED = "How do I change the delivery address of an order that is on its way already? " * 2
ANSWERED = "Open the order, choose edit, type the new address, and confirm it by the link in our mail. " * 2


class Singly(ContextTransport):
    """Never asks for batches."""

    def send(self, parcels):
        """One request a parcel."""
        return self._send_singly(parcels)


def backlog(path: Path, address: str, number: int) -> Outbox:
    """An outbox with so many conversations, as the SDK writes them."""
    outbox = Outbox(path, checkpoints=False)
    now = datetime.now(UTC)
    for begin in range(0, number, 1000):
        parcels = []
        for one in range(begin, min(number, begin + 1000)):
            key = new_id()
            rows = (
                Message(role="user", message=ASKED, id=new_id(), event_timestamp=now),
                Message(role="assistant", message=ANSWERED, id=new_id(), event_timestamp=now),
            )
            said = Conversation(id=key, metadata={"user_id": f"user{one % 997}"}, messages=rows)
            request = Log(route=Route.THREAD, conversation=said).to_request()
            parcels.append(
                Parcel(
                    key=key,
                    address=address,
                    lane=key,
                    method=request.method,
                    target=request.target,
                    body=request.body,
                    created_at=now.timestamp(),
                )
            )
        outbox.put(parcels)
    outbox.checkpoint()
    return outbox


def cpu_of(process: int) -> float:
    """Seconds of CPU it has used, user and system."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def server_of(url: str) -> int:
    """The process that listens there."""
    port = url.rpartition(":")[2]
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        words = entry.read_bytes().split(b"\0")
        if b"serve" in words and port.encode() in words:
            return int(entry.parent.name)
    raise LookupError(url)


def measured(way: str, number: int) -> dict[str, Any]:
    """Deliver the backlog this way."""
    with tempfile.TemporaryDirectory() as name, served(Path(name) / "server") as (url, key):
        folder = Path(name) / "outbox"
        folder.mkdir()
        transport = (Singly if way == "one request a record" else ContextTransport)(endpoint=url, token=key)
        transport._compresses = way == "gzip"  # noqa: SLF001  on loopback it would not
        with closing(backlog(folder / "1-backlog.sqlite", url, number)) as outbox:
            courier = Courier(folder=folder, outbox=outbox, address=url, transport=transport)
            transport.load()
            pid = server_of(url)
            theirs, mine, begun = cpu_of(pid), time.process_time(), time.perf_counter()
            assert courier.flush(600)
            took = time.perf_counter() - begun
            found = {
                "conversations": courier.delivered,
                "per second": round(courier.delivered / took),
                "client µs": round((time.process_time() - mine) / number * 1e6),
                "server µs": round((cpu_of(pid) - theirs) / number * 1e6),
            }
            courier.stop(10)
        return found


def main() -> None:
    """Each way, and the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--conversations", type=int, default=30_000)
    given = options.parse_args()
    ways = {
        "batches": given.conversations,
        "gzip": given.conversations,
        "one request a record": given.conversations // 30,
    }
    found = {way: measured(way, number) for way, number in ways.items()}
    print(f"{'':24}{'a second':>10}{'client µs':>11}{'server µs':>11}")
    for way, one in found.items():
        print(f"{way:24}{one['per second']:10,}{one['client µs']:11}{one['server µs']:11}")
    report.write("delivery", found)


if __name__ == "__main__":
    main()
