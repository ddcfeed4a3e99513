"""The few milliseconds in which `durability="background"` keeps parcels in memory before they go to disk together.

What is in the window when the process is killed is lost; a normal exit, a flush and a shutdown empty it first.
"""

from __future__ import annotations

import sys
import threading
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from contextwrap.outbox import Parcel

WINDOW_SECONDS: Final = 0.005


class Window:
    """Parcels on their way to `write`, in order, in a thread that starts with the first of them."""

    def __init__(self, write: Callable[[Sequence[Parcel]], None], *, lost: Callable[[str], None]) -> None:
        """`lost` is told of parcels that `write` failed on, one by one."""
        self._write = write
        self._lost = lost
        self._parcels: list[Parcel] = []
        self._arrival = threading.Event()
        self._closing = threading.Event()
        self._taking = threading.Lock()
        self._writing = threading.Lock()
        self._thread: threading.Thread | None = None
        # A child of multiprocessing ends without atexit, but not without these.
        if util := sys.modules.get("multiprocessing.util"):
            util.Finalize(None, self.empty, exitpriority=0)

    def put(self, parcel: Parcel) -> None:
        """Take the parcel; it is on disk within WINDOW_SECONDS and the time of a write."""
        with self._taking:
            self._parcels.append(parcel)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="contextwrap-window", daemon=True)
                self._thread.start()
        if not self._arrival.is_set():
            self._arrival.set()

    def empty(self) -> None:
        """Write what is there now, in the caller's thread."""
        with self._writing:
            with self._taking:
                parcels, self._parcels = self._parcels, []
            if not parcels:
                return
            try:
                self._write(parcels)
            except Exception as error:  # noqa: BLE001  nobody waits for it: all that can be done is to count
                for _ in parcels:
                    self._lost(f"background: {type(error).__name__}")

    def close(self) -> None:
        """Write what is there and end the thread."""
        self._closing.set()
        self._arrival.set()
        if self._thread is not None:
            self._thread.join(1.0)
        self.empty()

    def _run(self) -> None:
        while not self._closing.is_set():
            self._arrival.wait()
            self._closing.wait(WINDOW_SECONDS)
            self._arrival.clear()
            self.empty()
