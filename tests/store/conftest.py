"""A real store of its own for every test."""

from __future__ import annotations

import pytest

from contextwrap.store.duckdb import DuckDBStore


@pytest.fixture
def store(tmp_path):
    """An empty DuckDB store."""
    opened = DuckDBStore.open(tmp_path / "server" / "store.duckdb")
    yield opened
    opened.close()
