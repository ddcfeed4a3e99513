"""The demo: the same talk every time, spread over thirty days, recorded like any other."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest

from contextwrap.demo import SEED, people, record_demo
from contextwrap.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

MORNING = datetime(2026, 3, 1, 8, 30, tzinfo=UTC)


def test_the_same_people_say_the_same_whatever_the_hour() -> None:
    """One seed: who says what in which thread depends neither on the day nor on the hour."""
    days = [MORNING, MORNING + timedelta(days=400, hours=11, minutes=29)]
    said = [sorted((turn.thread, turn.question) for turn in people.turns(seed=SEED, today=day)) for day in days]
    assert said[0] == said[1]


def test_sixty_people_talk_for_thirty_days_and_never_in_the_future() -> None:
    """Everybody of sixty comes, on each of thirty days somebody, some come back and talk for several turns."""
    turns = list(people.turns(seed=SEED, today=MORNING))
    assert len({turn.user for turn in turns}) == people.PEOPLE
    assert {(MORNING.date() - turn.at.date()).days for turn in turns} >= set(range(1, people.DAYS))
    assert max(turn.at for turn in turns) <= MORNING
    assert len(turns) > len({turn.thread for turn in turns}) > people.PEOPLE


def test_what_the_demo_holds_is_what_was_said(tmp_path: Path) -> None:
    """Every thread is one conversation; there are sixty users, ratings of both kinds, and a few failures."""
    recorded = record_demo(tmp_path / "demo")
    threads = {turn.thread for turn in people.turns(seed=SEED, today=datetime.now(UTC))}
    assert recorded.totals.conversations == len(threads)
    assert recorded.totals.users == people.PEOPLE
    assert recorded.totals.positive > 0
    assert recorded.totals.negative > 0
    assert 0 < recorded.failed < recorded.turns / 10


def test_a_second_demo_replaces_the_first(tmp_path: Path) -> None:
    """The demo's own home is emptied and filled anew; another's is never touched."""
    first = record_demo(tmp_path / "demo").totals
    assert record_demo(tmp_path / "demo").totals == first
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letters.txt").write_text("dear")
    with pytest.raises(ConfigurationError, match="not a demo"):
        record_demo(tmp_path / "mine")
    assert (tmp_path / "mine" / "letters.txt").read_text() == "dear"
