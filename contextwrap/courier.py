"""The background thread that carries parcels: lease, send, then ack, defer or bury. Knows nothing of LangChain.

It starts with the first parcel, carries only its own address's parcels, and also those that processes now
dead left in the same folder. tenacity decides about trying again; a stop wakes every wait at once.
"""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Final

from contextwrap.errors import OutboxError
from contextwrap.outbox import Outbox, outbox_files
from contextwrap.transport import Delivered, Refused, Retry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from contextwrap.outbox import Parcel
    from contextwrap.transport import Outcome, Transport

logger = logging.getLogger("contextwrap")

_BATCH: Final = 100
_ATTEMPTS: Final = 3
_FIRST_WAIT: Final = 0.2
_LONGEST_WAIT: Final = 300.0
_ADOPT_EVERY: Final = 30.0
_LOG_EVERY: Final = 60.0


class Courier:
    """One thread that empties `outbox`, and dead processes' files beside it, into `transport`."""

    def __init__(self, *, outbox: Outbox, address: str, transport: Transport) -> None:
        self._outbox = outbox
        self._address = address
        self._transport = transport
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._wake = threading.Event()
        self._stopping = threading.Event()
        self._idle = threading.Condition()
        self._adopted: dict[Path, Outbox] = {}
        self._adopt_at = 0.0
        self._log_at = 0.0
        self.delivered = 0

    def wake(self) -> None:
        """There is something to carry; starts the thread if there is none."""
        self._wake.set()
        with self._starting:
            if self._thread is None and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._run, name="contextwrap-courier", daemon=True)
                self._thread.start()

    def flush(self, timeout: float) -> bool:
        """Carry all that waits now; False when some of it still waits after `timeout` seconds."""
        deadline = time.monotonic() + timeout
        self._outbox.hurry(self._address)
        self.wake()
        with self._idle:
            while self._outbox.counts(self._address).pending:
                left = deadline - time.monotonic()
                if left <= 0:
                    return False
                self._idle.wait(min(left, 0.5))
        return True

    def stop(self, timeout: float) -> None:
        """End the thread; what it holds goes back into its outbox. Waits at most `timeout` seconds."""
        self._stopping.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def forsake(self) -> None:
        """In a child of fork: let go of the files the parent adopted."""
        for outbox in (self._outbox, *self._adopted.values()):
            outbox.forsake()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._wake.clear()
            try:
                pause = 0.0 if self._round() else self._pause()
            except Exception:
                # A stop that did not wait for the last answer leaves a closed outbox: that parcel goes next time.
                if self._stopping.is_set():
                    break
                logger.exception("contextwrap: the courier stumbled and goes on")
                pause = 1.0
            with self._idle:
                self._idle.notify_all()
            if pause and not self._stopping.is_set():
                self._wake.wait(pause)
        for outbox in self._adopted.values():
            outbox.close(discard_if_empty=True)
        self._adopted.clear()
        self._transport.close()

    def _round(self) -> bool:
        """Carry one batch of every file; True when there may be more to carry at once."""
        carried = [self._carry(outbox) for outbox in (self._outbox, *self._foundlings())]
        return any(carried)

    def _pause(self) -> float:
        self._outbox.checkpoint()
        due = self._outbox.next_due(self._address)
        return _ADOPT_EVERY if due is None else min(_ADOPT_EVERY, max(0.05, due - time.time()))

    def _carry(self, outbox: Outbox) -> bool:
        batch = outbox.lease(self._address, limit=_BATCH)
        carried: list[int] = []
        for index, parcel in enumerate(batch):
            if self._stopping.is_set():
                outbox.ack(carried)
                outbox.defer([later.seq for later in batch[index:]], seconds=0, reason=None, attempted=False)
                return False
            outcome = self._deliver(parcel)
            match outcome:
                case Delivered():
                    carried.append(parcel.seq)
                case Refused(reason):
                    outbox.bury(parcel.seq, reason=reason)
                    self._say(f"refused, kept as a dead letter: {reason}")
                case Retry(reason, after):
                    # If one cannot pass now, neither can those behind it: same server, same way there.
                    wait = max(after or 0.0, min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** (parcel.attempts + _ATTEMPTS)))
                    outbox.ack(carried)
                    outbox.defer([parcel.seq], seconds=wait, reason=reason)
                    behind = [later.seq for later in batch[index + 1 :]]
                    outbox.defer(behind, seconds=wait, reason=None, attempted=False)
                    self.delivered += len(carried)
                    self._say(f"cannot deliver, will try again in {wait:.0f} s: {reason}")
                    return False
        outbox.ack(carried)
        self.delivered += len(carried)
        return bool(batch)

    def _deliver(self, parcel: Parcel) -> Outcome:
        import tenacity  # noqa: PLC0415  38 ms, on this thread only

        def last(state: tenacity.RetryCallState) -> Outcome:
            assert state.outcome is not None
            outcome: Outcome = state.outcome.result()
            return outcome

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda outcome: isinstance(outcome, Retry) and outcome.after is None),
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(_ATTEMPTS), tenacity.stop_when_event_set(self._stopping)
            ),
            wait=tenacity.wait_exponential(multiplier=_FIRST_WAIT, max=2.0) + tenacity.wait_random(0, _FIRST_WAIT),
            sleep=tenacity.sleep_using_event(self._stopping),
            retry_error_callback=last,
        )
        return retrying(self._transport.send, parcel)

    def _foundlings(self) -> Iterator[Outbox]:
        """The files dead processes left; each is kept while it holds parcels for this address."""
        now = time.monotonic()
        if now >= self._adopt_at:
            self._adopt_at = now + _ADOPT_EVERY
            for path in outbox_files(self._outbox.path.parent):
                if path != self._outbox.path and path not in self._adopted:
                    self._adopt(path)
        for path, outbox in list(self._adopted.items()):
            if outbox.counts(self._address).pending:
                yield outbox
            else:
                del self._adopted[path]
                outbox.close(discard_if_empty=True)

    def _adopt(self, path: Path) -> None:
        try:
            outbox = Outbox.adopt(path)
        except OutboxError as error:
            self._say(str(error))
            return
        if outbox is not None:
            self._adopted[path] = outbox

    def _say(self, text: str) -> None:
        """One line an interval, with never a word of what was to be delivered."""
        now = time.monotonic()
        if now >= self._log_at:
            self._log_at = now + _LOG_EVERY
            logger.warning("contextwrap: %s", text)
