"""Conversations for the tests of the pages, as the wire has them: everyday ones, one with everything, and traps."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

NOW = datetime.now(UTC).replace(microsecond=0)
ZERO_WIDTH = "ze\u200bro\u200d wi\ufeffdth"
HOSTILE = (
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "</title></textarea></details><svg onload=alert(1)>",
    "\"'><a href=javascript:alert(1) style=position:fixed>x</a>",
    "{{7*7}} {% raw %} ${7*7} #{7*7} <%= 7*7 %> {# no #}",
    "javascript:alert(1) data:text/html,<script>alert(1)</script>",
    'https://evil.example/"onmouseover=alert(1) https://evil.example/<script>',
    "\u202eevil gnp.exe\u202c \u2066isolate",
    ZERO_WIDTH,
    "👩‍👩‍👧‍👦 🏳️‍🌈 é \U0001f600" + "z̷̢͎" * 50,
    "עברית and English; العربية",
    "a" * 3000,
    "x" * 999_000 + " the end",
)
ODD_IDS = ("a/b", "/x/", "50%25", "q?a=1#f", "sp ace", "ü 🦉", "a&b=c;d", "..%2f", "<b>", "a//b", "con+plus", '"quote"')

TOOLS = {
    "id": "with-tools",
    "metadata": {"user_id": "u_tools", "model": "gpt-4o-mini", "plan": "pro <b>"},
    "feedback": "Good in the end.",
    "messages": [
        {"role": "system", "message": "Be brief."},
        {"role": "user", "message": "What is the weather in Zürich? See https://example.com/zurich.", "id": "ask me"},
        {
            "role": "assistant",
            "type": "tool",
            "name": "weather",
            "thought": "Ask the station.",
            "input": {"city": "Zürich", "days": 2},
            "observation": '{"sky": "clear"}',
        },
        {"role": "assistant", "type": "tool", "name": "radar", "observation": "off", "metadata": {"error": "true"}},
        {
            "role": "assistant",
            "id": "answer-1",
            "message": "Clear, 21 °C.",
            "rating": -1,
            "metadata": {
                "model": "gpt-4o-mini",
                "total_tokens": "1234",
                "latency_ms": "1500",
                "finish_reason": "stop",
                "feedback": "It rained!",
            },
        },
        {"role": "user", "type": "event", "name": "upgraded", "message": "", "metadata": {"to": "team"}},
        {"role": "system", "type": "event", "name": "error", "message": "30 s", "metadata": {"error": "TimeoutError"}},
        {"role": "assistant", "message": "It will", "rating": 1, "metadata": {"interrupted": "true"}},
    ],
}  # fmt: skip


def _made_up():
    """Sixty conversations of eight users over sixty days, as the wire has them: no two at the same time."""
    dice = random.Random(7)
    for number in range(60):
        last = NOW - timedelta(days=number, minutes=dice.randrange(1, 600))
        messages = []
        turns = dice.randrange(1, 6)
        for turn in range(turns):
            at = last - timedelta(seconds=20 * (turns - turn))
            messages.append({"role": "user", "message": f"Question {number}.{turn}?", "event_timestamp": _iso(at)})
            answer = {"role": "assistant", "message": f"Answer {number}.{turn}.", "event_timestamp": _iso(at)}
            if dice.random() < 0.3:
                answer["rating"] = dice.choice((1, 1, -1))
            messages.append(answer)
        metadata = {"user_id": f"user {dice.randrange(8)}"} if number % 9 else {}
        yield {"id": f"c-{number:02}", "metadata": metadata, "messages": messages}


def _iso(moment):
    return moment.isoformat().replace("+00:00", "Z")


MADE_UP = tuple(_made_up())

HOSTILE_TALKS = tuple(
    {
        "id": f"hostile-{number}",
        "metadata": {"user_id": text[:200], text[:30]: text[:200]},
        "feedback": text[:2000],
        "messages": [
            {"role": "user", "message": text},
            {"role": "assistant", "type": "tool", "name": text[:200], "input": {text[:50]: text}, "observation": text},
            {
                "role": "assistant",
                "message": text,
                "rating": 1,
                "metadata": {"feedback": text[:2000], "error": text[:200]},
            },
        ],
    }
    for number, text in enumerate(HOSTILE)
)
ODD_TALKS = tuple({"id": name, "messages": [{"role": "user", "message": f"I am {name}"}]} for name in ODD_IDS)
