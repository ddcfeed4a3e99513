"""What does redaction cost per KB of chat, and what does a hostile text cost?

python benchmarks/redaction.py
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

import corpus

from contextwrap.redaction import RULES, redactor

if TYPE_CHECKING:
    from collections.abc import Callable

ROUNDS = 5
MEGABYTE = 1_000_000
MADE_UP = (
    "Hi, I'd like to book a table for 4 at 19:30 on 2026-03-12, near 221B Baker Street if you can.",
    "Sure! Is there a phone number or an e-mail I can send the confirmation to?",
    "Yes: anna.berg@example.org or 020 7946 0958. My card is 4111 1111 1111 1111, the order was 20391.",
    "Thank you, that is 54.90 in total. Is there anything else I can do for you today?",
)
HOSTILE = {
    "digits": "1",
    "digits and spaces": "1 ",
    "card-like groups": "4444 ",
    "almost cards": "4111 1111 1111 1112 ",
    "almost IBANs": "DE00 ",
    "phone-like": "01 ",
    "phone-like, by dots": "0123.",
    "plus": "+",
    "plus digits": "+2",
    "@": "@",
    "a@": "a@",
    "a.a@": "a.",
    "dots": ".",
    "a-": "a-",
    "sk-": "sk-",
    "eyJ": "eyJaaaaaaaaaa.",
    "PEM": "-----BEGIN PRIVATE KEY-----",
    "colons": ":",
    "hex and colons": "1:",
    "octets": "1.",
    "words": "word ",
}


def seconds(mask: Callable[[str], str], texts: list[str]) -> float:
    """The best of some rounds over all texts."""
    best = float("inf")
    for _ in range(ROUNDS):
        began = time.perf_counter()
        for text in texts:
            mask(text)
        best = min(best, time.perf_counter() - began)
    return best


def chat() -> list[str]:
    """Real messages where there are some on this machine, else made-up ones."""
    path = corpus.find()
    if path is None:
        print("CONTEXTWRAP_DATA has no dialogues: measured on made-up ones")
        return list(MADE_UP) * 2500
    return [text for dialogue in corpus.read(path, limit=700) for _, text in dialogue.messages]


def main() -> None:
    """Print the cost of each rule beside what writing the same text as JSON costs."""
    texts = chat()
    size = sum(len(text.encode()) for text in texts) / 1000
    plain = seconds(json.dumps, texts)
    print(f"{len(texts)} messages, {size:.0f} KB; json.dumps takes {plain / size * 1e6:.2f} µs per KB")
    names = dict.fromkeys(rule.name for rule in RULES)
    for name in (*names, "all"):
        mask = redactor(name)
        assert mask is not None
        cost = seconds(mask, texts)
        print(f"{name:>8} {cost / size * 1e6:7.2f} µs per KB, {cost / plain:5.1f} times json.dumps")
    everything = redactor("all")
    assert everything is not None
    print("\nhostile texts of 1 MB: the slowest rule, all")
    for title, unit in HOSTILE.items():
        text = (unit * (MEGABYTE // len(unit) + 1))[:MEGABYTE] + "@1"
        took = {rule.name: took_once(rule, text) for rule in RULES}
        slowest = max(took, key=lambda name: took[name])
        whole = took_once(everything, text)
        print(f"{title:>20}  {slowest:>8} {took[slowest]:.3f} s   all {whole:.3f} s")


def took_once(mask: Callable[[str], str], text: str) -> float:
    """Seconds of one call."""
    began = time.perf_counter()
    mask(text)
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
