"""What the fault tests share: `contextwrap serve` in a process of its own, and what it has in the end."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from serving import serving

if TYPE_CHECKING:
    from collections.abc import Iterator

sys.path.insert(0, str(Path(__file__).parent))

from drains import created_key
from stores import Real, Stored


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Real]:
    """A contextwrap server; each test has threads of its own."""
    home = tmp_path_factory.mktemp("faults") / "home"
    key = created_key(home)
    with serving(home) as running:
        yield Real(running.url, key)


@pytest.fixture(autouse=True)
def _shielded(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a host: what fails is counted, and the tests look at the counts."""
    monkeypatch.setenv("CONTEXTWRAP_RAISE", "0")


@pytest.fixture
def stored(server: Real) -> Iterator[Stored]:
    """Reads what the server has."""
    found = Stored(server)
    yield found
    found.close()
