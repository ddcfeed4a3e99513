"""Which of LangChain's runs belong together: every run to its root, kept only until the root ends.

Knows run ids, by their number (a UUID's own hash is Python code), and how long they may live; nothing of what is
said in them but where to put it.
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
    from collections.abc import Callable, Mapping
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

    `wanted` is who is to get it: it is listened to in any case, for nobody knows at its start whether something wrapped
    will run inside. So what its first model was `asked` is put into rows when it is logged. `around` is the scope it
    began in, `scope` all that was learnt of who it is for.
    """

    key: int
    scope: Scope
    around: Scope | None
    started_at: datetime
    started: float = field(default_factory=time.monotonic)
    wanted: dict[Client, None] = field(default_factory=dict)
    said: tuple[Message, ...] | None = None
    streaming: bool = False
    asked: Callable[[], tuple[Message, ...]] | None = None
    tools: list[Message] = field(default_factory=list)
    calls: dict[int, tuple[str, Any]] = field(default_factory=dict)
    prompted: dict[int, tuple[Mapping[str, Any], Mapping[str, Any]]] = field(default_factory=dict)
    open: set[int] = field(default_factory=set)
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
        self.roots: dict[int, Root] = {}
        self.of: dict[int | None, tuple[Root, object]] = {}
        self._closed: OrderedDict[int, bool] = OrderedDict()
        self._lock = threading.RLock()

    def begin(
        self,
        key: int,
        parent: int | None,
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
            known = self.of.get(key)
            if known is not None:
                root, voice = known
                if make is None or root.key == key or not apart(root):
                    return root, False
                root.open.discard(key)
                root = None
            else:
                root = self._above(parent)
                if root is None:
                    if parent is not None and self._closed.get(parent):
                        return None, False
                elif make is not None and apart(root):
                    root = None
            if root is not None:
                root.open.add(key)
            elif make is not None:
                root = self.roots[key] = make()
            else:
                return None, False
            self.of[key] = root, voice
            return root, True

    def told(self, key: int, voice: object) -> Root | None:
        """The root of an open run, for the voice that it is heard from."""
        known = self.of.get(key)
        return known[0] if known is not None and known[1] is voice else None

    def around(self) -> Root | None:
        """The root that the code which asks runs in."""
        return self._above(None)

    def end(self, key: int, *, voice: object) -> Root | None:
        """Forget a run; the root when it is the root's own end."""
        if self.told(key, voice) is None:
            return None
        with self._lock:
            root, _ = self.of.pop(key, (None, None))
            if root is None:
                return None
            root.open.discard(key)
            if root.key != key:
                return None
            self._close(root)
            return root

    def close(self, root: Root) -> bool:
        """Close a root that nobody ended; False when somebody has."""
        with self._lock:
            if root.key not in self.roots:
                return False
            self._close(root)
            return True

    def overdue(self) -> list[Root]:
        """Close and return the roots that never ended (a cancelled model call ends nothing): by age, and by number."""
        found: list[Root] = []
        if len(self.roots) < 2:  # noqa: PLR2004  the only one has just begun
            return found
        oldest = time.monotonic() - OPEN_SECONDS
        with self._lock:
            while self.roots:
                root = next(iter(self.roots.values()))
                if root.started > oldest and len(self.roots) <= MAX_OPEN:
                    break
                self._close(root)
                found.append(root)
        return found

    def _above(self, parent: int | None) -> Root | None:
        """The root that a run belongs to: by the parent it names, else by the one that LangChain forgot to name.

        RunnableWithFallbacks passes on the outer config; a bare thread has none, but may have the session's.
        """
        # No run has the key None.
        known = self.of.get(parent)
        if known is None:
            known = self.of.get(ambient_parent())
        if known is None and (scope := current_scope()) is not None:
            known = self.of.get(scope.parent)
        return None if known is None else known[0]

    def _close(self, root: Root) -> None:
        """Children may end, and even begin, after their root: they are known by their tombstones."""
        if root.unwatch is not None:
            root.unwatch()
        root.watched = None
        self.roots.pop(root.key, None)
        for key in (root.key, *root.open):
            self.of.pop(key, None)
            self._closed[key] = bool(root.wanted)
        while len(self._closed) > _TOMBSTONES:
            self._closed.popitem(last=False)


def ambient_parent() -> int | None:
    """The run that LangChain's own context says we are in."""
    config = var_child_runnable_config.get()
    if not config:
        return None
    parent: UUID | None = getattr(config.get("callbacks"), "parent_run_id", None)
    return None if parent is None else parent.int
