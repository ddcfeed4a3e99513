"""The fixture `contextwrap_log`: what the app records during one test. Loads nothing before a test asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from contextwrap.testing import CapturedLog


@pytest.fixture
def contextwrap_log() -> Iterator[CapturedLog]:
    """What contextwrap records during this test, in memory: see `contextwrap.testing.captured`."""
    from contextwrap.testing import captured  # noqa: PLC0415  only for tests that ask

    with captured() as log:
        yield log
