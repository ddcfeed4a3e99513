"""The main job: many users at once, every dialogue one conversation under its own user."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING

import pytest

import contextwrap
from benchmarks import corpus, replay

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


def _made_up(how_many: int) -> list[corpus.Dialogue]:
    """Dialogues whose users often say the very same words: what crosses would show."""
    numbers = count()

    def messages(dialogue: int) -> tuple[tuple[str, str], ...]:
        turns = [(f"question {turn}", f"answer {next(numbers)} for {dialogue}") for turn in range(3 + dialogue % 4)]
        return tuple(row for asked, said in turns for row in (("user", asked), ("assistant", said)))

    return [
        corpus.Dialogue(id=f"made/up {dialogue}", user_id=f"user {dialogue % 7}", messages=messages(dialogue))
        for dialogue in range(how_many)
    ]


def _real(how_many: int) -> list[corpus.Dialogue]:
    path = corpus.find()
    if path is None:
        pytest.skip(f"no real dialogues in {corpus.FOLDER}; the made-up ones are replayed all the same")
    return corpus.read(path, limit=how_many)


@pytest.mark.parametrize("said_by", [replay.in_threads, replay.in_tasks])
@pytest.mark.parametrize("dialogues", [_made_up, _real])
def test_every_dialogue_arrives_whole_under_its_own_user(
    said_by: Callable[..., None], dialogues: Callable[[int], list[corpus.Dialogue]], tmp_path: Path
) -> None:
    """Sixteen dialogues at a time: each is one conversation, every message once, in order, none crossed."""
    spoken = dialogues(200)
    with replay.served(tmp_path / "server") as (url, key):
        contextwrap.configure(endpoint=url, token=key, home=tmp_path / "app")
        said_by(replay.make_bot(spoken), spoken)
        result = contextwrap.flush(60)
        assert (result.pending, result.dead) == (0, 0)
        assert replay.differences(spoken, replay.read_back(url, key)) == []
