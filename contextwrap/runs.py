"""Which of LangChain's runs belong together: every run to its root, kept only until the root ends.

Knows run ids and how long they may live; nothing of what is said in them but where to put it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from langchain_core.runnables.config import var_child_runnable_config

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime
    from uuid import UUID

    from contextwrap.identity import Scope
    from contextwrap.model import Message

MAX_OPEN: Final = 10_000
OPEN_SECONDS: Final = 3600.0
_TOMBSTONES: Final = 20_000


@dataclass(slots=True)
class Root:
    """What one root run has said so far; runs below it share it. `started` is monotonic, in seconds."""

    run_id: UUID
    scope: Scope
    started_at: datetime
    started: float = field(default_factory=time.monotonic)
    said: tuple[Message, ...] | None = None
    streaming: bool = False
    asked: tuple[Message, ...] = ()
    tools: list[Message] = field(default_factory=list)
    calls: dict[UUID, tuple[str, Any]] = field(default_factory=dict)
    prompted: dict[UUID, tuple[Mapping[str, Any], Mapping[str, Any]]] = field(default_factory=dict)
    open: set[UUID] = field(default_factory=set)
    partial: list[str] = field(default_factory=list)
    completion: str = ""
    facts: dict[str, str] = field(default_factory=dict)
    usage: dict[str, int] = field(default_factory=dict)
    failures: int = 0
    unwatch: Callable[[], object] | None = None


class Runs:
    """The open roots, and the run ids of those that closed lately."""

    def __init__(self) -> None:
        self.roots: dict[UUID, Root] = {}
        self._of: dict[UUID, Root] = {}
        self._closed: OrderedDict[UUID, None] = OrderedDict()
        self._lock = threading.RLock()

    def begin(self, run_id: UUID, parent: UUID | None, *, make: Callable[[], Root] | None) -> Root | None:
        """The root that a run belongs to, perhaps a new one by `make`.

        None for a run that is known already, one below a root that has closed, and one that can be no root.
        """
        with self._lock:
            if run_id in self._of:
                return None
            root = self._of.get(parent) if parent is not None else None
            if root is None:
                if parent in self._closed:
                    return None
                root = self._of.get(_ambient_parent())  # type: ignore[arg-type]  # None is simply not there
            if root is not None:
                root.open.add(run_id)
            elif make is not None:
                root = self.roots[run_id] = make()
            else:
                return None
            self._of[run_id] = root
            return root

    def of(self, run_id: UUID) -> Root | None:
        """The root of a run that is open."""
        return self._of.get(run_id)

    def end(self, run_id: UUID) -> Root | None:
        """Forget a run; the root when it is the root's own end."""
        with self._lock:
            root = self._of.pop(run_id, None)
            if root is None:
                return None
            root.open.discard(run_id)
            if root.run_id != run_id:
                return None
            self._close(root)
            return root

    def overdue(self) -> list[Root]:
        """Close and return the roots that never ended (a cancelled model call ends nothing): by age, and by number."""
        oldest = time.monotonic() - OPEN_SECONDS
        found = []
        with self._lock:
            while self.roots:
                root = next(iter(self.roots.values()))
                if root.started > oldest and len(self.roots) <= MAX_OPEN:
                    break
                self._close(root)
                found.append(root)
        return found

    def _close(self, root: Root) -> None:
        """Children may end, and even begin, after their root: they are known by their tombstones."""
        if root.unwatch is not None:
            root.unwatch()
        self.roots.pop(root.run_id, None)
        for run_id in (root.run_id, *root.open):
            self._of.pop(run_id, None)
            self._closed[run_id] = None
        while len(self._closed) > _TOMBSTONES:
            self._closed.popitem(last=False)


def _ambient_parent() -> UUID | None:
    """The run around this one, where RunnableWithFallbacks forgets to say it: it passes on the outer config."""
    config = var_child_runnable_config.get()
    parent: UUID | None = getattr((config or {}).get("callbacks"), "parent_run_id", None)
    return parent
