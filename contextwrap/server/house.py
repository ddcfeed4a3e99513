"""What a server works with, made once at its start and handed to every part of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from contextwrap.analytics.pipeline import Pipeline
    from contextwrap.outbox import Outbox
    from contextwrap.server.keys import Keys
    from contextwrap.store.records import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """The home's store, its journal, the pipeline between them, and the keys; `hosts` are more names to answer to."""

    home: Path
    store: Store
    journal: Outbox
    pipeline: Pipeline
    keys: Keys
    hosts: frozenset[str] = frozenset()
