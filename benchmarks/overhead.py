"""What does recording cost the call? CPU of the calling thread per call of prompt | model | parser, side by side.

Bare, with a handler that does nothing, wrapped, and unwrapped in a process where something else is wrapped; the rounds
take turns, so that a busy machine is as busy for all. Medians of rounds, and the ratio to bare.

    python benchmarks/overhead.py [--calls 200] [--rounds 15]
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate

import contextwrap
from contextwrap import session, wrap
from contextwrap.recorder import hook

ASKED = {"question": "How many people does it take?"}


class Nothing(BaseCallbackHandler):
    """A handler that does nothing, in the caller's thread."""

    run_inline = True


def chain():
    """What is called: LangChain's own parts, and a model that costs nothing."""
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "{question}")])
    return prompt | FakeListChatModel(responses=["Two."]) | StrOutputParser()


def measured(call, calls: int) -> float:
    """CPU of this thread, µs a call."""
    began = time.thread_time()
    for _ in range(calls):
        call()
    return (time.thread_time() - began) / calls * 1e6


def main() -> None:
    """Take turns, and print the table."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--calls", type=int, default=200)
    options.add_argument("--rounds", type=int, default=15)
    given = options.parse_args()
    contextwrap.configure(home=Path(tempfile.mkdtemp()))
    bare, wrapped = chain(), wrap(chain())
    nothing = {"callbacks": [Nothing()]}

    def unheard(call):
        def alone():
            hook.listening = False
            call()
            hook.listening = True

        return alone

    def in_a_session():
        with session(user_id="ada"):
            bare.invoke(ASKED)

    ways = {
        "bare": unheard(lambda: bare.invoke(ASKED)),
        "with a handler that does nothing": unheard(lambda: bare.invoke(ASKED, nothing)),
        "wrapped, recorded on disk": lambda: wrapped.invoke(ASKED),
        "unwrapped in a session, recorded on disk": in_a_session,
        "unwrapped, beside something wrapped": lambda: bare.invoke(ASKED),
    }
    for call in ways.values():
        measured(call, 50)
    rounds = {name: [] for name in ways}
    for _ in range(given.rounds):
        for name, call in ways.items():
            rounds[name].append(measured(call, given.calls))
    base = statistics.median(rounds["bare"])
    print(f"{'':45}{'µs a call':>10}{'over bare':>11}{'ratio':>8}")
    for name, times in rounds.items():
        median = statistics.median(times)
        print(f"{name:45}{median:10.0f}{median - base:11.0f}{median / base:8.2f}")


if __name__ == "__main__":
    main()
