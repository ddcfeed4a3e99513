"""What the server's tests share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from serving import Served, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Served]:
    """A server on an empty home."""
    with served(tmp_path / "home") as running:
        yield running
