"""What a server, an import and an export work with: a home's parts, opened for one process alone."""

from __future__ import annotations

from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from contextwrap.analytics.pipeline import Pipeline
from contextwrap.errors import ConfigurationError, HomeInUseError
from contextwrap.outbox import Outbox
from contextwrap.server.keys import Keys
from contextwrap.store.duckdb import DuckDBStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from contextwrap.store.records import Store

SETTLE_SECONDS: Final = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class House:
    """The home's store, its journal, the pipeline between them, and the keys; `hosts` are more names to answer to."""

    home: Path
    store: Store
    journal: Outbox
    pipeline: Pipeline
    keys: Keys
    hosts: frozenset[str] = frozenset()


@contextmanager
def open_house(home: Path, *, hosts: frozenset[str] = frozenset(), carrying: bool = True) -> Iterator[House]:
    """The home's parts, for this process alone; at the end what is in the journal is stored and all is closed.

    With `carrying` the pipeline works by itself in a thread, else whoever opened the house drains it. Raises
    HomeInUseError while another process has the home, ConfigurationError for one that cannot be written.
    """
    folder = home / "server"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(f"cannot write to {home} ({error.strerror}): choose another --home") from error
    with (
        closing(Keys(folder / "keys.sqlite")) as keys,
        closing(DuckDBStore.open(folder / "store.duckdb")) as store,
        closing(_journal(folder / "journal.sqlite")) as journal,
    ):
        pipeline = Pipeline(store=store, journal=journal, outboxes=home / "outbox")
        if carrying:
            pipeline.start()
        try:
            yield House(home=home, store=store, journal=journal, pipeline=pipeline, keys=keys, hosts=hosts)
        finally:
            if carrying:
                pipeline.settle(SETTLE_SECONDS)
            pipeline.stop()
            store.checkpoint()


def _journal(path: Path) -> Outbox:
    """The journal, with what a killed server had at hand given back."""
    journal = Outbox.adopt(path)
    if journal is None:
        raise HomeInUseError(f"{path.parent} is in use by another contextwrap process: stop it first")
    return journal
