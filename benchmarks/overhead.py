"""What does recording cost the call? Over bare LangChain, beside a handler that does nothing, in each situation.

CPU of the calling thread, or of the whole process where the call itself uses more threads; then CPU and waiting time
with the server up, down and hanging; then everything, delivery to `contextwrap serve` and the last flush included.
The rounds take turns, so that a busy machine is as busy for all; medians.

    python benchmarks/overhead.py [--calls 200] [--rounds 15] [--only chain]
"""

from __future__ import annotations

import argparse
import asyncio
import socket
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import report
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from replay import served

import contextwrap
from contextwrap import session, wrap
from contextwrap.recorder import hook

if TYPE_CHECKING:
    from collections.abc import Callable

ASKED = {"question": "How many people does it take?"}
HISTORY = [kind("Say that once more, please. " * 18) for _ in range(20) for kind in (HumanMessage, AIMessage)][1:]
AT_ONCE = 100
THREADS = 8
CHUNKS = 50


class Usual(BaseCallbackHandler):
    """A handler that does nothing, as handlers are written: for `ainvoke` LangChain takes it to another thread."""


class Nothing(Usual):
    """A handler that does nothing, in the caller's own thread."""

    run_inline = True


def model(answer: str = "Two.") -> FakeListChatModel:
    """One that costs nothing."""
    return FakeListChatModel(responses=[answer])


def chain(answer: str = "Two."):
    """What is called: LangChain's own parts."""
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), ("user", "{question}")])
    return prompt | model(answer) | StrOutputParser()


async def _gather(bot, config):
    await asyncio.gather(*[bot.ainvoke(ASKED, config) for _ in range(AT_ONCE)])


@dataclass(frozen=True, kw_only=True)
class Situation:
    """What is wrapped, how it is called, how many calls that is, and whose CPU it costs."""

    made: Callable[[], Any] = chain
    call: Callable[[Any, Any], object]
    each: int = 1
    cpu: Callable[[], float] = time.thread_time


def _in_threads(bot, config):
    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(lambda _: bot.invoke(ASKED, config), range(AT_ONCE)))


SITUATIONS = {
    "chat": Situation(made=model, call=lambda bot, config: bot.invoke("How many?", config)),
    "chain": Situation(call=lambda bot, config: bot.invoke(ASKED, config)),
    "100 ainvoke at once": Situation(
        call=lambda bot, config: asyncio.run(_gather(bot, config)), each=AT_ONCE, cpu=time.process_time
    ),
    "the same, loop's thread": Situation(call=lambda bot, config: asyncio.run(_gather(bot, config)), each=AT_ONCE),
    "stream of 50 chunks": Situation(
        made=lambda: chain("x" * CHUNKS), call=lambda bot, config: list(bot.stream(ASKED, config))
    ),
    "batch of 100": Situation(
        call=lambda bot, config: bot.batch([ASKED] * AT_ONCE, config), each=AT_ONCE, cpu=time.process_time
    ),
    "8 threads": Situation(call=_in_threads, each=AT_ONCE, cpu=time.process_time),
    "history of 20 kB": Situation(made=model, call=lambda bot, config: bot.invoke(HISTORY, config)),
}


def unheard(call: Callable[[], object]) -> Callable[[], None]:
    """As in a process that has never imported `wrap`."""

    def alone() -> None:
        hook.listening = False
        call()
        hook.listening = True

    return alone


def in_turns(
    ways: dict[str, Callable[[], object]], *, cpu: Callable[[], float], calls: int, rounds: int
) -> dict[str, float]:
    """Median µs of CPU a call of each way."""
    found: dict[str, list[float]] = {name: [] for name in ways}
    for turn in range(rounds + 1):
        for name, call in ways.items():
            begun = cpu()
            for _ in range(calls):
                call()
            # The first round warms up.
            if turn:
                found[name].append((cpu() - begun) / calls * 1e6)
    return {name: statistics.median(times) for name, times in found.items()}


def situation(name: str, *, calls: int, rounds: int) -> dict[str, float]:
    """Each way's µs a call, in this situation."""
    it = SITUATIONS[name]
    bare, wrapped = it.made(), wrap(it.made())
    quiet, usual = {"callbacks": [Nothing()]}, {"callbacks": [Usual()]}
    ways: dict[str, Callable[[], object]] = {
        "bare": unheard(lambda: it.call(bare, None)),
        "no-op": unheard(lambda: it.call(bare, quiet)),
        "usual no-op": unheard(lambda: it.call(bare, usual)),
        "wrapped": lambda: it.call(wrapped, None),
        "unwrapped beside": lambda: it.call(bare, None),
    }
    found: dict[str, float] = {}
    for durability in ("call", "background"):
        with tempfile.TemporaryDirectory() as home:
            contextwrap.configure(home=home, durability=durability)
            some = ways if durability == "call" else {"no-op": ways["no-op"], "background": ways["wrapped"]}
            times = in_turns(some, cpu=it.cpu, calls=max(2, calls // it.each), rounds=rounds)
            over = found["no-op"] - times["no-op"] if found else 0.0
            found |= {way: (spent + over) for way, spent in times.items() if way not in found}
            contextwrap.shutdown()
    return {way: spent / it.each for way, spent in found.items()}


def a_session(*, calls: int, rounds: int) -> float:
    """µs a call that an unwrapped chain costs in a session, over bare."""
    bare = chain()

    def inside() -> None:
        with session(user_id="ada"):
            bare.invoke(ASKED)

    with tempfile.TemporaryDirectory() as home:
        contextwrap.configure(home=home)
        ways = {"bare": unheard(lambda: bare.invoke(ASKED)), "inside": inside}
        found = in_turns(ways, cpu=time.thread_time, calls=calls, rounds=rounds)
        contextwrap.shutdown()
    return found["inside"] - found["bare"]


def waited(call: Callable[[], object], calls: int) -> tuple[float, list[float]]:
    """CPU µs a call, and how long each took, in µs."""
    took = []
    begun = time.thread_time()
    for _ in range(calls):
        before = time.perf_counter()
        call()
        took.append((time.perf_counter() - before) * 1e6)
    return (time.thread_time() - begun) / calls * 1e6, took


def server(state: str, *, calls: int, rounds: int) -> dict[str, float]:
    """What a recorded call adds to one with a handler that does nothing: CPU, and its 50th and 99th percentile."""
    bare, wrapped = chain(), wrap(chain())
    quiet = {"callbacks": [Nothing()]}
    ways: dict[str, Callable[[], object]] = {
        "no-op": unheard(lambda: bare.invoke(ASKED, quiet)),
        "wrapped": lambda: wrapped.invoke(ASKED),
    }
    with ExitStack() as stack:
        home = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url, key = None, None
        if state == "up":
            url, key = stack.enter_context(served(home / "server"))
        elif state != "none":
            # Whoever connects to the one is never answered; nobody listens any more where the other was.
            listening = stack.enter_context(closing(socket.create_server(("127.0.0.1", 0))))
            url, key = f"http://127.0.0.1:{listening.getsockname()[1]}", "t"
            if state == "down":
                listening.close()
        contextwrap.configure(home=home / "app", endpoint=url, token=key, exit_timeout=0.1)
        cpu: dict[str, list[float]] = {name: [] for name in ways}
        took: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(rounds + 1):
            for name, call in ways.items():
                spent, each = waited(call, calls)
                if turn:
                    cpu[name].append(spent)
                    took[name] += each
        contextwrap.shutdown()
    quantiles = {name: statistics.quantiles(each, n=100) for name, each in took.items()}
    return {
        "CPU": statistics.median(cpu["wrapped"]) - statistics.median(cpu["no-op"]),
        "p50": quantiles["wrapped"][49] - quantiles["no-op"][49],
        "p99": quantiles["wrapped"][98] - quantiles["no-op"][98],
    }


def all_in(*, calls: int) -> float:
    """µs of this process's CPU that recording and delivering a call adds to one with a handler that does nothing."""
    bare, wrapped = chain(), wrap(chain())
    quiet = {"callbacks": [Nothing()]}
    with tempfile.TemporaryDirectory() as name, served(Path(name) / "server") as (url, key):
        contextwrap.configure(home=Path(name) / "app", endpoint=url, token=key)
        # What is imported and connected once is paid once.
        for _ in range(100):
            wrapped.invoke(ASKED)
        contextwrap.flush(30)
        begun = time.process_time()
        for _ in range(calls):
            unheard(lambda: bare.invoke(ASKED, quiet))()
        between = time.process_time()
        for _ in range(calls):
            wrapped.invoke(ASKED)
        assert contextwrap.flush(60).pending == 0
        over = time.process_time()
        contextwrap.shutdown()
    return ((over - between) - (between - begun)) / calls * 1e6


def main() -> None:
    """Measure, and print the tables."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--calls", type=int, default=200)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--only", choices=SITUATIONS)
    given = options.parse_args()
    size = {"calls": given.calls, "rounds": given.rounds}
    columns = ("no-op", "usual no-op", "wrapped", "background", "unwrapped beside")
    print(f"{'µs of CPU a call':24}{'bare':>8}" + "".join(f"{column:>18}" for column in columns))
    situations = {}
    for name in [given.only] if given.only else SITUATIONS:
        found = situations[name] = situation(name, **size)
        added = "".join(f"{found[column] - found['bare']:+18.0f}" for column in columns)
        print(f"{name:24}{found['bare']:8.0f}{added}", flush=True)
    if given.only:
        return
    inside = a_session(**size)
    print(f"an unwrapped chain in a session: {inside:+.0f} over bare\n")
    print(f"{'chain, over no-op':22}{'CPU µs':>8}{'p50 µs':>10}{'p99 µs':>10}")
    states = {}
    for state in ("none", "up", "down", "hanging"):
        one = states[state] = server(state, **size)
        print(f"{'server ' + state:22}{one['CPU']:+8.0f}{one['p50']:+10.0f}{one['p99']:+10.0f}", flush=True)
    whole = statistics.median(all_in(calls=5 * given.calls) for _ in range(5))
    print(f"\nall in, delivery to contextwrap serve and the last flush included: {whole:+.0f} µs over no-op")
    report.write(
        "overhead", {"situations": situations, "in a session": inside, "server": states, "all in": round(whole, 1)}
    )


if __name__ == "__main__":
    main()
