"""The one shield: what fails in here is counted and logged once, and never becomes the host's failure.

Our own tests set CONTEXTWRAP_RAISE=1, so that there a failure of ours is raised instead of hidden.
"""

from __future__ import annotations

import logging
import os
import threading
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

from contextwrap.errors import ContextwrapError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from types import TracebackType

logger = logging.getLogger("contextwrap")


class Guard:
    """Counts losses by reason; the first of each reason is logged, without any of the user's text."""

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, doing: str) -> _Shield:
        """For `with`: an Exception in the body is counted under `doing` and the error's kind."""
        return _Shield(self, doing)

    def lost(self, reason: str, *, detail: str = "") -> None:
        """Something could not be recorded, for a reason a user can read."""
        with self._lock:
            self._counts[reason] += 1
            first = self._counts[reason] == 1
        if first:
            logger.warning("contextwrap: not recorded: %s%s", reason, f" ({detail[:300]})" if detail else "")

    def failed(self, doing: str, error: Exception) -> None:
        """Count a failure of our own while `doing`; raised again under our own tests."""
        if os.environ.get("CONTEXTWRAP_RAISE") == "1":
            raise error
        # Only our own errors say nothing of a user's: anybody else's text may quote a transcript.
        detail = str(error) if isinstance(error, ContextwrapError) else ""
        self.lost(f"{doing}: {type(error).__name__}", detail=detail)

    def counts(self) -> Mapping[str, int]:
        """How often each reason struck."""
        with self._lock:
            return dict(self._counts)


@dataclass(frozen=True, slots=True)
class _Shield:
    guard: Guard
    doing: str

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        if not isinstance(error, Exception):
            return False
        self.guard.failed(self.doing, error)
        return True
