"""Which of LangChain's runs belong together: every run to its root, kept only until the root ends.

Knows run ids and how long they may live; nothing of what is said in them but where to put it.
"""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from langchain_core.runnables.config import var_child_runnable_config

from contextwrap.client import ContextWrap
from contextwrap.identity import current_scope

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from datetime import datetime
    from uuid import UUID

    from contextwrap.identity import Scope
    from contextwrap.model import Message

Client: TypeAlias = ContextWrap | None
"""Who gets a conversation: a client, or None for the default one as it is when the conversation is over."""

MAX_OPEN: Final = 10_000
OPEN_SECONDS: Final = 3600.0
_TOMBSTONES: Final = 20_000


@dataclass(slots=True)
class Root:
    """What one root run has said so far; runs below it share it. `started` is monotonic, in seconds.

    `wanted` is who is to get it: it is listened to in any case, for nobody knows at its start whether something
    wrapped will run inside. `around` is the scope it began in, `scope` all that was learnt of who it is for.
    """

    run_id: UUID
    scope: Scope
    around: Scope | None
    started_at: datetime
    started: float = field(default_factory=time.monotonic)
    wanted: dict[Client, None] = field(default_factory=dict)
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
    attempts: int = 1
    unwatch: Callable[[], object] | None = None
    watched: object = None


class Runs:
    """The open roots, and the run ids of those that closed lately.

    A handler may be given to LangChain in several ways at once, and each then tells every event: a run is heard
    from the one `voice` that told of its start first.
    """

    def __init__(self) -> None:
        self.roots: dict[UUID, Root] = {}
        self.of: dict[UUID, tuple[Root, object]] = {}
        self._closed: OrderedDict[UUID, bool] = OrderedDict()
        self._lock = threading.RLock()

    def begin(
        self,
        run_id: UUID,
        parent: UUID | None,
        *,
        voice: object,
        make: Callable[[], Root] | None,
        apart: Callable[[Root], bool] = lambda _: False,
    ) -> tuple[Root | None, bool]:
        """The root that a run belongs to, perhaps a new one by `make`; and whether the run begins with this.

        None for one that belongs nowhere: late below a root that has been recorded, or no root by its kind. A run
        for which `apart(root)` holds is a root of its own below another.
        """
        with self._lock:
            root: Root | None
            known = self.of.get(run_id)
            if known is not None:
                root, voice = known
                if make is None or root.run_id == run_id or not apart(root):
                    return root, False
                root.open.discard(run_id)
                root = None
            else:
                root = self._above(parent)
                if root is None and self._closed.get(parent):  # type: ignore[arg-type]  # None is simply not there
                    return None, False
                if root is not None and make is not None and apart(root):
                    root = None
            if root is not None:
                root.open.add(run_id)
            elif make is not None:
                root = self.roots[run_id] = make()
            else:
                return None, False
            self.of[run_id] = root, voice
            return root, True

    def told(self, run_id: UUID | None, voice: object) -> Root | None:
        """The root of an open run, for the voice that it is heard from."""
        known = self.of.get(run_id)  # type: ignore[arg-type]  # None is simply not there
        return known[0] if known is not None and known[1] is voice else None

    def around(self) -> Root | None:
        """The root that the code which asks runs in."""
        return self._above(None)

    def end(self, run_id: UUID, *, voice: object) -> Root | None:
        """Forget a run; the root when it is the root's own end."""
        with self._lock:
            root = self.told(run_id, voice)
            if root is None:
                return None
            del self.of[run_id]
            root.open.discard(run_id)
            if root.run_id != run_id:
                return None
            self._close(root)
            return root

    def close(self, root: Root) -> bool:
        """Close a root that nobody ended; False when somebody has."""
        with self._lock:
            if root.run_id not in self.roots:
                return False
            self._close(root)
            return True

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

    def _above(self, parent: UUID | None) -> Root | None:
        for run_id in (parent, *_ambient_parents()):
            known = self.of.get(run_id)  # type: ignore[arg-type]  # None is simply not there
            if known is not None:
                return known[0]
        return None

    def _close(self, root: Root) -> None:
        """Children may end, and even begin, after their root: they are known by their tombstones."""
        if root.unwatch is not None:
            root.unwatch()
        root.watched = None
        self.roots.pop(root.run_id, None)
        for run_id in (root.run_id, *root.open):
            self.of.pop(run_id, None)
            self._closed[run_id] = bool(root.wanted)
        while len(self._closed) > _TOMBSTONES:
            self._closed.popitem(last=False)


def _ambient_parents() -> Iterator[UUID | None]:
    """The runs around this one that LangChain may not say.

    RunnableWithFallbacks passes on the outer config; a bare thread has none, but may have the session's.
    """
    yield ambient_parent()
    scope = current_scope()
    if scope is not None:
        yield scope.parent


def ambient_parent() -> UUID | None:
    """The run that LangChain's own context says we are in."""
    config = var_child_runnable_config.get()
    parent: UUID | None = getattr((config or {}).get("callbacks"), "parent_run_id", None)
    return parent
