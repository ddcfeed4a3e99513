"""How long do the list, one transcript and the summary take, and how fast does the store load?

Run: python benchmarks/store_pages.py [conversations ...]      (default: 2388 20000)
"""

from __future__ import annotations

import random
import statistics
import sys
import tempfile
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from contextwrap.model import Conversation, Log, Message, RatingMark, Route
from contextwrap.store.duckdb import DuckDBStore
from contextwrap.store.records import ConversationQuery, Entry

BATCH = 1000
START = datetime(2026, 1, 1, tzinfo=UTC)
WORDS = "how do I change the address of my order when it was sent already and who pays for it".split()


def entries(count: int) -> list[Entry]:
    """`count` conversations of 11 messages of about 60 words, over 90 days and a fifth as many users."""
    chance = random.Random(7)
    made = []
    for number in range(count):
        at = START + timedelta(days=90 * number / count)
        messages = tuple(
            Message(
                role="user" if index % 2 == 0 else "assistant",
                message=" ".join(chance.choices(WORDS, k=60)),
                rating=chance.choice((None, None, 1, -1)) if index % 2 else None,
                event_timestamp=at + timedelta(seconds=20 * index),
            )
            for index in range(11)
        )
        conversation = Conversation(messages=messages, metadata={"user_id": f"user-{chance.randrange(count // 5)}"})
        log = Log(route=Route.CONVERSATION, conversation=conversation)
        made.append(Entry(key=f"key-{number}", log=log.sealed(key=f"key-{number}", at=at)))
    return made


def median(call, *, times: int = 15) -> float:
    """The median of `times` calls, in milliseconds."""
    spent = []
    for _ in range(times):
        began = time.perf_counter()
        call()
        spent.append((time.perf_counter() - began) * 1000)
    return statistics.median(spent)


def measure(count: int, folder: Path) -> None:
    """Load `count` conversations and print what each question costs."""
    made = entries(count)
    store = DuckDBStore.open(folder / f"{count}.duckdb")
    began = time.perf_counter()
    for start in range(0, count, BATCH):
        store.apply(made[start : start + BATCH])
    spent = time.perf_counter() - began
    began = time.perf_counter()
    store.checkpoint()
    checkpoint = (time.perf_counter() - began) * 1000
    middle = made[count // 2].log.conversation
    week = ConversationQuery(start=START + timedelta(days=40), end=START + timedelta(days=47))
    fresh = iter(range(1_000_000))

    def one_more() -> None:
        number = next(fresh)
        log = Log(
            route=Route.THREAD,
            conversation=Conversation(
                id=f"thread-{number // 3}",
                messages=(Message(role="user", message="and?"), Message(role="assistant", message="So.")),
            ),
        )
        store.apply([Entry(key=f"more-{number}", log=log.sealed(key=f"more-{number}", at=START))])

    def rate_one() -> None:
        number = next(fresh)
        log = Log(route=Route.RATING, rated=middle.messages[1].id, marks=(RatingMark(rating=1),))
        store.apply([Entry(key=f"rate-{number}", log=log)])

    print(f"{count:,} conversations, {count * 11:,} messages")
    print(f"  load                        {spent:8.2f} s   ({count * 11 / spent:,.0f} messages/s)")
    print(f"  checkpoint after it         {checkpoint:8.1f} ms")
    for name, call in {
        "list, first page": lambda: store.summaries(ConversationQuery()),
        "list, last page": lambda: store.summaries(ConversationQuery(page=-(-count // 20))),
        "list, one week": lambda: store.summaries(week),
        "list, rated down": lambda: store.summaries(ConversationQuery(rating=-1)),
        "20 whole conversations": lambda: store.conversations(ConversationQuery()),
        "one transcript": lambda: store.conversation(middle.id),
        "totals": store.totals,
        "rateable": lambda: store.rateable([("", middle.messages[1].id)]),
        "write: one thread append": one_more,
        "write: one rating": rate_one,
        "export of all": lambda: sum(1 for _ in store.export()),
    }.items():
        print(f"  {name:<27} {median(call, times=3 if 'export' in name else 15):8.1f} ms")
    store.close()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        for size in [int(text) for text in sys.argv[1:]] or [2388, 20_000]:
            measure(size, Path(folder))
