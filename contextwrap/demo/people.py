"""Sixty people who use the demo's application for thirty days: who asks what, when, and how they like it.

Everything is drawn from one seed; only the dates move, so that the last day is today.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from contextwrap.model import Rating

DAYS: Final = 30
PEOPLE: Final = 60
_FIRST: Final = (
    "ada ben chloe dmitri elif farid grace hana ivan jun kofi lena mateo nia omar priya quinn rosa sven tariq".split()
)
_TALK: Final = timedelta(minutes=10)
_FIRM: Final = ("acme", "globex", "initech")

_QUESTIONS: Final = (
    "How do I get started?",
    "how to install this",
    "What does wrap do to my chain?",
    "Is a wrapped chain still picklable",
    "how do i decorate a function with track_context",
    "Where do I put the user id in the decorator?",
    "What is a session and what is a thread?",
    "do nested sessions inherit the user",
    "How can my users give feedback on an answer?",
    "rating an answer from outside a session",
    "Where is my data kept?",
    "do you send telemetry",
    "How do I send conversations to a server?",
    "What happens when the server is down?",
    "will a crash or kill lose records",
    "How much overhead does the handler add?",
    "is async code slowed down",
    "Do you record streaming answers?",
    "What happens with errors and retries?",
    "how are agent tool calls recorded",
    "What about privacy and personal data?",
    "How do I revoke an API key?",
    "Can I import old conversations?",
    "export conversations to parquet",
    "Does the old LangChain callback handler still work?",
    "how are tenants separated",
    "How do I turn it off?",
    "How many conversations are in my account?",
    "Can it brew coffee?",
    "What is the weather in Lisbon?",
    "when do you support Kotlin",
)
_FOLLOW_UPS: Final = (
    "And how do I do that in async code?",
    "can you show me where the records are on disk",
    "ok, and what about streaming?",
    "what if the server is away for a day",
    "and the key, how do I make one?",
    "does that work with agents and tools",
)
_CORRECTIONS: Final = ("No, I meant something else.", "that's not what I asked", "You said that already.")
_THANKS: Final = ("Thanks, that helps!", "perfect, thank you", "great")
_PRAISE: Final = ("nailed it", "exactly what I needed", None, None, None)
_BLAME: Final = ("did not answer my question", "wrong section", "too long", None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One question at one time; `patience` is after how many pieces the reader leaves."""

    user: str
    thread: str
    question: str
    at: datetime
    release: str
    patience: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Opinion:
    """What a user thinks of an answer, and the words for it."""

    rating: Rating
    feedback: str | None


def turns(*, seed: int, today: datetime) -> Iterator[Turn]:
    """Everybody's turns, in the order of time."""
    dice = random.Random(seed)  # noqa: S311  a simulation, and it has to repeat
    drawn = [turn for person in range(PEOPLE) for turn in _life(dice, person, today)]
    yield from sorted(drawn, key=lambda turn: turn.at)


def opinion(dice: random.Random, *, found: bool) -> Opinion | None:
    """Most people say nothing; the others are mostly right."""
    roll = dice.random()
    if roll > (0.35 if found else 0.55):
        return None
    pleased = found if dice.random() < 0.9 else not found  # noqa: PLR2004  one in ten is odd
    return Opinion(rating=1 if pleased else -1, feedback=dice.choice(_PRAISE if pleased else _BLAME))


def _life(dice: random.Random, person: int, today: datetime) -> Iterator[Turn]:
    user = f"{_FIRST[person % len(_FIRST)]}@{_FIRM[person // len(_FIRST)]}.example"
    joined = dice.choice((0, 0, 0, dice.randrange(DAYS)))
    loyalty = dice.random() ** 2
    visit = 0
    for day in range(joined, DAYS):
        if day != joined and dice.random() > loyalty * 0.45:
            continue
        visit += 1
        at = today - timedelta(days=DAYS - 1 - day)
        at = at.replace(hour=7 + dice.randrange(14), minute=dice.randrange(60))
        # Drawn whether it is needed or not, so that the hour of the demo does not change what is said in it.
        before_now = today - _TALK - timedelta(minutes=dice.randrange(8 * 60))
        at = before_now if at > today - _TALK else at
        thread = f"{user.partition('@')[0]}-{person}-{visit}"
        yield from _visit(dice, user, thread, at, "2.0" if day > DAYS // 2 else "1.9")


def _visit(dice: random.Random, user: str, thread: str, at: datetime, release: str) -> Iterator[Turn]:
    questions = [_typo(dice, dice.choice(_QUESTIONS))]
    while dice.random() < 0.55 and len(questions) < 5:  # noqa: PLR2004  longer talks are rare
        questions.append(dice.choice((*_FOLLOW_UPS, *_QUESTIONS, dice.choice(_CORRECTIONS), dice.choice(_THANKS))))
    for number, question in enumerate(questions):
        patience = dice.randrange(3, 9) if dice.random() < 0.04 else 10_000  # noqa: PLR2004  one in 25 leaves
        asked = at + timedelta(seconds=45 * number + dice.randrange(30))
        yield Turn(user=user, thread=thread, question=question, at=asked, release=release, patience=patience)


def _typo(dice: random.Random, text: str) -> str:
    if dice.random() > 0.15 or len(text) < 8:  # noqa: PLR2004  one in seven mistypes
        return text
    place = dice.randrange(3, len(text) - 2)
    return text[:place] + text[place + 1] + text[place] + text[place + 2 :]
