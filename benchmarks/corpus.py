"""Real dialogues to try things on: JSON lines of `{"id", "user_id", "messages": [{"role", "message"}]}`, gzipped.

They are not part of the project. They are looked for in CONTEXTWRAP_DATA, else in `../shared/data` beside the
checkout; `find` says None when they are not there.
"""

from __future__ import annotations

import gzip
import json
import os
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

FOLDER = Path(os.environ.get("CONTEXTWRAP_DATA") or Path(__file__).parents[2] / "shared" / "data")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialogue:
    """One dialogue; `messages` are (role, text) pairs in order."""

    id: str
    user_id: str
    messages: tuple[tuple[str, str], ...]

    @property
    def turns(self) -> list[tuple[str, str]]:
        """What the user said and what the assistant answered, turn by turn."""
        texts = [text for _, text in self.messages]
        return list(zip(texts[::2], texts[1::2], strict=True))


def find(name: str = "sgd_train.jsonl.gz") -> Path | None:
    """The corpus file, or None when it is not on this machine."""
    path = FOLDER / name
    return path if path.exists() else None


def read(path: Path, *, limit: int | None = None) -> list[Dialogue]:
    """The first `limit` dialogues of a corpus file that go user, assistant, user, assistant, …"""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        return [_dialogue(json.loads(line)) for line in islice(lines, limit)]


def _dialogue(line: dict[str, object]) -> Dialogue:
    messages = tuple((message["role"], message["message"]) for message in line["messages"])
    return Dialogue(id=str(line["id"]), user_id=str(line["user_id"]), messages=messages)
