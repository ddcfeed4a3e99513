"""Runs in a peer's own environment: makes the calls, and says as JSON lines what they cost and when they were over.

python driver.py PEER QUESTION URL [--calls N] [--sleep SECONDS] [--run NAME]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import time
from importlib import metadata

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models import FakeListChatModel
from langchain_core.messages import AIMessage, HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder

# 40 messages, 20 kB.
LONG = [kind("Say that once more, please. " * 18) for _ in range(20) for kind in (HumanMessage, AIMessage)]
SAYS = os.fdopen(os.dup(1), "w")


class Nothing(BaseCallbackHandler):
    """A handler that does nothing."""


class Echo(FakeListChatModel):
    """Answers each call by its name; a list of all the answers would be part of what most peers send of a model."""

    def _call(self, messages, *_, **__):
        if self.sleep:
            time.sleep(self.sleep)
        return messages[-1].content.replace("call", "answer")


def say(**found) -> None:
    """To whoever started this."""
    print(json.dumps(found), file=SAYS, flush=True)


def chain(sleep: float | None):
    """What is called: LangChain's own parts."""
    prompt = ChatPromptTemplate.from_messages([("system", "Be brief."), MessagesPlaceholder("messages")])
    return prompt | Echo(responses=["Two."], sleep=sleep) | StrOutputParser()


def call(ask, run: str, numbers: range, history=()) -> None:
    """So many calls."""
    for one in numbers:
        ask({"messages": [*history, HumanMessage(f"call {one} of {run}.")]})


def rounds(ways, flush, run: str, calls: int) -> None:
    """For each line that is read, one round of that way: µs of CPU a call."""
    for line in sys.stdin:
        way, long = json.loads(line)
        thread, process = time.thread_time(), time.process_time()
        call(ways[way], run, range(calls), LONG if long else ())
        thread, during = time.thread_time() - thread, time.process_time() - process
        flush()
        process = time.process_time() - process
        say(thread=thread / calls * 1e6, process=during / calls * 1e6, all=process / calls * 1e6)


def fork(ask, flush, run: str) -> None:
    """Five calls before a fork and five in the child; says whether the child ended."""
    call(ask, run, range(5))
    child = os.fork()
    if not child:
        call(ask, run, range(5, 10))
        flush()
        sys.exit()
    enough = time.monotonic() + 20
    while not (ended := os.waitpid(child, os.WNOHANG)[0]) and time.monotonic() < enough:
        time.sleep(0.02)
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    say(ended=bool(ended))
    flush()


def main() -> None:
    """What is asked."""
    options = argparse.ArgumentParser()
    options.add_argument("peer")
    options.add_argument("question", choices="versions plain overhead end kill flush fork".split())
    options.add_argument("url")
    options.add_argument("--calls", type=int, default=100)
    options.add_argument("--sleep", type=float)
    options.add_argument("--run", default="run")
    given = options.parse_args()
    # What a peer prints is not for whoever reads our lines.
    os.dup2(2, 1)
    if given.question == "versions":
        say(**{name: metadata.version(name) for name in given.run.split(",")})
        return
    bot = chain(given.sleep)
    if given.question == "plain":
        config = {"callbacks": [Nothing()]}
        ways = {"bare": bot.invoke, "no-op": lambda asked: bot.invoke(asked, config)}
        rounds(ways, lambda: None, given.run, given.calls)
        return
    app = importlib.import_module(f"apps.{given.peer}")
    ask = app.asking(bot, given.url)
    if given.question == "overhead":
        rounds({"peer": ask}, app.flush, given.run, given.calls)
    elif given.question == "fork":
        fork(ask, app.flush, given.run)
    elif given.question == "flush":
        app.flush()
    else:
        begun = time.time()
        call(ask, given.run, range(given.calls))
        say(took=time.time() - begun, at=time.time())
        if given.question == "kill":
            os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
