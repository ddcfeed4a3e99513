"""The background thread that carries parcels: lease, send, then ack, defer or bury. Knows nothing of LangChain.

It starts with the first parcel, carries only its own address's parcels, and also those that processes now
dead left in the same folder. tenacity decides about trying again; a stop wakes every wait at once.
"""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from typing import TYPE_CHECKING, Final

from contextwrap.boxfiles import outbox_files, stamp
from contextwrap.errors import OutboxError
from contextwrap.forking import settled
from contextwrap.outbox import Outbox
from contextwrap.transport import MAX_PARCELS, Delivered, Early, Refused, Retry, Stumbled, TooMany

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from contextwrap.outbox import Parcel
    from contextwrap.transport import Outcome, Transport

logger = logging.getLogger("contextwrap")

# A request costs more than a millisecond of CPU, whatever is in it: what is recorded within this time shares one.
LINGER_SECONDS: Final = 0.25
# Longer than the longest wait between two attempts of another process.
EARLY_SECONDS: Final = 600.0
_ATTEMPTS: Final = 3
_FIRST_WAIT: Final = 0.2
_LONGEST_WAIT: Final = 300.0
_STUMBLES: Final = 5
_ADOPT_EVERY: Final = 5.0
_CHECKPOINT_EVERY: Final = 2.0
_LOG_EVERY: Final = 60.0
# With all that a process does before and after, its end stays within 2 s.
_SILENCE: Final = 1.0


class Courier:
    """One thread that empties `outbox`, and dead processes' files beside it, into `transport`."""

    def __init__(
        self,
        *,
        folder: Path,
        outbox: Outbox | None,
        address: str,
        transport: Transport,
    ) -> None:
        """Without an `outbox` of its own it carries only what others left in `folder`."""
        self._folder = folder
        self.outbox = outbox
        self._address = address
        self._transport = transport
        self._thread: threading.Thread | None = None
        self._starting = threading.Lock()
        self._started = False
        self._wake = threading.Event()
        self._hurried = threading.Event()
        self._flushing = 0
        self._stopping = threading.Event()
        self._round_over = threading.Condition()
        self._rounds = 0
        self._failed_rounds = 0
        self._adopted: dict[Path, Outbox] = {}
        self._passed: dict[Path, tuple[int, ...]] = {}
        self._adopt_at = 0.0
        self._checkpoint_at = 0.0
        self._log_at = 0.0
        self._unsaid = 0
        self._batch = MAX_PARCELS
        self._stumbles = 0
        self._asked_at = math.inf
        self.delivered = 0

    def wake(self) -> None:
        """There is something to carry; starts the thread if there is none."""
        if not self._wake.is_set():
            self._wake.set()
        if self._thread is not None:
            return
        with self._starting:
            if not (self._started or self._stopping.is_set()):
                self._started = True
                self._thread = threading.Thread(target=self._run, name="contextwrap-courier", daemon=True)
                self._thread.start()

    def flush(self, timeout: float, *, patient: bool = True) -> bool:
        """Carry all that waits now; False when some of it still waits after `timeout` seconds.

        One that is not patient gives up as soon as the server could not be reached, or has said nothing for a while,
        and leaves what is to be tried again later.
        """
        deadline = time.monotonic() + timeout
        with self._round_over:
            self._flushing += 1
            failed, begun = self._failed_rounds, self._rounds
        try:
            # What others left is looked for now.
            self._adopt_at = 0.0
            for outbox in self._boxes():
                outbox.hurry(self._address)
            with self._round_over:
                # The round under way may have looked before this call.
                while self._rounds < begun + 2 or self._waits(patient=patient):
                    self._hurried.set()
                    self.wake()
                    left = min(deadline, math.inf if patient else self._asked_at + _SILENCE) - time.monotonic()
                    if left <= 0 or self._stopping.is_set() or (not patient and self._failed_rounds > failed):
                        return False
                    self._round_over.wait(min(left, 0.2))
            return True
        finally:
            with self._round_over:
                self._flushing -= 1

    def stop(self, timeout: float) -> None:
        """End the thread; what it holds goes back into its outbox. Waits at most `timeout` seconds."""
        self._stopping.set()
        self._hurried.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(timeout)

    def forsake(self) -> None:
        """In a child of fork: let go of the files the parent has."""
        for outbox in self._boxes():
            outbox.forsake()

    def _boxes(self) -> list[Outbox]:
        return [*([] if self.outbox is None else [self.outbox]), *list(self._adopted.values())]

    def _waits(self, *, patient: bool) -> bool:
        try:
            return any((one.has_waiting if patient else one.is_busy)(self._address) for one in self._boxes())
        except OutboxError:
            return True

    def _run(self) -> None:
        with settled:
            import tenacity  # noqa: F401, PLC0415  38 ms, on this thread only
        self._transport.load()
        while not self._stopping.is_set():
            self._wake.clear()
            more = failed = False
            try:
                more, failed = self._round()
                pause = 0.0 if more else self._pause()
            except Exception as error:
                # A stop that did not wait for the last answer leaves a closed outbox: that parcel goes next time.
                if self._stopping.is_set():
                    break
                failed, pause = True, 1.0
                if not isinstance(error, OutboxError):
                    logger.exception("contextwrap: the courier stumbled and goes on")
                else:
                    self._say(str(error))
            with self._round_over:
                self._rounds += 1
                self._failed_rounds += failed
                self._round_over.notify_all()
            if not more and self._wake.wait(pause) and not self._flushing:
                self._hurried.wait(LINGER_SECONDS)
            self._hurried.clear()
        for outbox in self._adopted.values():
            outbox.close(discard_if_empty=True)
        self._adopted.clear()
        self._transport.close()
        with self._round_over:
            self._round_over.notify_all()

    def _round(self) -> tuple[bool, bool]:
        """Carry one batch of every file; whether there is more to carry at once, and whether the server was away."""
        more = failed = False
        own = [] if self.outbox is None else [self.outbox]
        for outbox in (*own, *self._foundlings()):
            batch = outbox.lease(self._address, limit=self._batch)
            if batch:
                full = len(batch) == self._batch
                reached = self._carry(outbox, batch)
                # What was split, or not all tried, is not over.
                more = more or (reached and (full or self._batch < MAX_PARCELS))
                if not reached:
                    failed = True
                    break
        now = time.monotonic()
        if self.outbox is not None and now >= self._checkpoint_at:
            self._checkpoint_at = now + _CHECKPOINT_EVERY
            self.outbox.checkpoint()
        return more and not failed, failed

    def _pause(self) -> float:
        """How long nothing has to be done, in seconds."""
        dues = [due for outbox in self._boxes() if (due := outbox.next_due(self._address)) is not None]
        return min([_ADOPT_EVERY, *(max(0.05, due - time.time()) for due in dues)])

    def _carry(self, outbox: Outbox, batch: Sequence[Parcel]) -> bool:
        """Send one batch and keep what became of it; False when the server cannot be reached now."""
        if self._stopping.is_set():
            outbox.defer([parcel.seq for parcel in batch], seconds=0, reason=None, attempted=False)
            return False
        outcomes = self._deliver(batch)
        told = list(zip(batch, outcomes, strict=False))
        arrived = [parcel.seq for parcel, outcome in told if isinstance(outcome, Delivered)]
        outbox.ack(arrived)
        self.delivered += len(arrived)
        if arrived:
            self._stumbles = 0
            for box in self._boxes():
                box.reached(self._address)
        back = [parcel.seq for parcel in batch[len(outcomes) :]]
        reached = True
        for parcel, outcome in told:
            match outcome:
                case Refused(reason):
                    outbox.bury(parcel.seq, reason=reason)
                    self._say(f"refused, kept as a dead letter: {reason}")
                case Stumbled(reason):
                    reached = self._stumble(outbox, parcel, reason)
                case Early(reason):
                    self._await(outbox, parcel, reason)
                case Retry(reason, after):
                    back.append(parcel.seq)
                    self._hold(outbox, reason, after)
                    reached = False
                case TooMany():
                    back.append(parcel.seq)
        self._learn_size(len(batch), outcomes)
        outbox.defer(back, seconds=0, reason=None, attempted=False)
        return reached

    def _learn_size(self, sent: int, outcomes: Sequence[Outcome]) -> None:
        if any(isinstance(outcome, TooMany) for outcome in outcomes):
            self._batch = max(1, sent // 2)
        else:
            # A server without batches takes so many at a time.
            self._batch = min(MAX_PARCELS, 2 * (len(outcomes) if len(outcomes) < sent else self._batch))

    def _stumble(self, outbox: Outbox, parcel: Parcel, reason: str) -> bool:
        """Others go on while one parcel waits; when all fail, it is the server's fault and not theirs."""
        self._stumbles += 1
        outbox.defer([parcel.seq], seconds=_wait(parcel.attempts + 1), reason=reason)
        if self._stumbles < _STUMBLES:
            return True
        self._hold(outbox, reason, None)
        return False

    def _await(self, outbox: Outbox, parcel: Parcel, reason: str) -> None:
        """Who has what it changes may deliver that later; after a while nobody will."""
        if abs(time.time() - parcel.created_at) > EARLY_SECONDS:
            outbox.bury(parcel.seq, reason=reason)
            self._say(f"refused, kept as a dead letter: {reason}")
        else:
            outbox.defer([parcel.seq], seconds=_wait(parcel.attempts + 1), reason=reason)

    def _hold(self, outbox: Outbox, reason: str, after: float | None) -> None:
        wait = _wait(outbox.held(self._address).attempts + _ATTEMPTS) if after is None else after
        for one in self._boxes():
            one.hold(self._address, seconds=wait, reason=reason)
        self._say(f"cannot deliver, will try again in {wait:.0f} s: {reason}")

    def _deliver(self, batch: Sequence[Parcel]) -> Sequence[Outcome]:
        """Send, and when nothing of it could be sent for no reason the server gave, soon again."""
        import tenacity  # noqa: PLC0415  see _run

        def soon(outcomes: Sequence[Outcome]) -> bool:
            first = outcomes[0]
            return isinstance(first, Stumbled) or (isinstance(first, Retry) and first.after is None)

        def last(state: tenacity.RetryCallState) -> Sequence[Outcome]:
            assert state.outcome is not None
            outcomes: Sequence[Outcome] = state.outcome.result()
            return outcomes

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_result(soon),
            stop=tenacity.stop_any(
                tenacity.stop_after_attempt(_ATTEMPTS), tenacity.stop_when_event_set(self._stopping)
            ),
            wait=tenacity.wait_exponential(multiplier=_FIRST_WAIT, max=2.0) + tenacity.wait_random(0, _FIRST_WAIT),
            sleep=tenacity.sleep_using_event(self._stopping),
            retry_error_callback=last,
        )
        self._asked_at = time.monotonic()
        try:
            return retrying(self._transport.send, batch)
        finally:
            self._asked_at = math.inf

    def _foundlings(self) -> Iterator[Outbox]:
        """The files dead processes left; each is kept while it holds parcels for this address."""
        now = time.monotonic()
        if now >= self._adopt_at:
            self._adopt_at = now + _ADOPT_EVERY
            own = None if self.outbox is None else self.outbox.path
            for path in outbox_files(self._folder):
                if path != own and path not in self._adopted and self._passed.get(path) != stamp(path):
                    self._adopt(path)
        for path, outbox in list(self._adopted.items()):
            if outbox.has_waiting(self._address):
                yield outbox
            else:
                del self._adopted[path]
                outbox.close(discard_if_empty=True)
                self._passed[path] = stamp(path)

    def _adopt(self, path: Path) -> None:
        try:
            outbox = Outbox.adopt(path)
        except OutboxError as error:
            self._say(str(error))
            return
        if outbox is not None:
            if self._flushing:
                outbox.hurry(self._address)
            self._adopted[path] = outbox

    def _say(self, text: str) -> None:
        """One line an interval, with never a word of what was to be delivered."""
        now = time.monotonic()
        if now < self._log_at:
            self._unsaid += 1
            return
        more = f" (and {self._unsaid} more such lines since the last one)" if self._unsaid else ""
        self._log_at, self._unsaid = now + _LOG_EVERY, 0
        logger.warning("contextwrap: %s%s", text, more)


def _wait(attempts: int) -> float:
    """Exponential, with full jitter in its upper half, so that many processes do not come back as one."""
    longest = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(attempts, 32))
    return longest * random.uniform(0.5, 1.0)  # noqa: S311  chance, not secrecy
