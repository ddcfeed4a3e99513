"""Many users at once, with cancels, errors and streams broken off: nobody's words end up with anybody else."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from fakemodels import Echo
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from parcels import conversations

import contextwrap
from contextwrap import session, track_context, wrap
from contextwrap.recorder import Recorder

THREADS, USERS, CALLS = 50, 40, 2
WAYS = ("invoke", "stream", "broken", "error", "batch", "config", "tracked")


def _check(asked):
    if "error" in asked["question"]:
        raise RuntimeError(asked["question"])
    return asked


def make_bot(**options):
    """A wrapped chain that echoes, and fails when asked to."""
    prompt = ChatPromptTemplate.from_messages([("system", "be kind"), ("human", "{question}")])
    return wrap(RunnableLambda(_check) | prompt | Echo(**options) | StrOutputParser())


def ask(bot, user, text, way):
    """One call of one user, in one of the ways; each is a turn."""
    asked = {"question": text}

    @track_context(user_id="{user}")
    def tracked(user):
        return bot.invoke(asked)

    with suppress(RuntimeError):
        if way == "tracked":
            tracked(user)
        elif way == "config":
            bot.invoke(asked, {"metadata": {"user_id": user}})
        else:
            with session(user_id=user):
                if way == "stream":
                    assert "".join(bot.stream(asked)) == f"echo: {text}"
                elif way == "broken":
                    next(stream := bot.stream(asked))
                    stream.close()
                elif way == "batch":
                    bot.batch([asked])
                else:
                    bot.invoke(asked)


async def aask(bot, user, text, way):
    """The same for asyncio; a cancelled call is cancelled in the midst of it."""
    asked = {"question": text}
    with suppress(RuntimeError, TimeoutError):
        async with session(user_id=user):
            if way == "stream":
                assert "".join([part async for part in bot.astream(asked)]) == f"echo: {text}"
            elif way == "broken":
                stream = bot.astream(asked)
                await anext(stream)
                await stream.aclose()
            elif way == "cancel":
                await asyncio.wait_for(bot.ainvoke(asked), 0.001)
            elif way == "batch":
                await bot.abatch([asked])
            else:
                await bot.ainvoke(asked)


def a_text(user, number, way):
    return f"{user} asks {number} {way}"


def check(home, calls):
    """Every call is one turn of its own user, and holds nobody else's words; nothing is left behind."""
    gc.collect()
    found = conversations(home)
    assert Counter(one.messages[-2].message if one.messages[-2].role == "user" else "?" for one in found) == Counter(
        text for _, text, _ in calls
    )
    users = {text: user for user, text, _ in calls}
    for one in found:
        text = next(row.message for row in one.messages if row.role == "user")
        assert one.user_id == users[text]
        rows = [(row.type, row.message) for row in one.messages if row.role != "user"]
        assert rows[0] == ("message", "be kind") or rows[0][0] in {"message", "event"}
        answer = rows[-1][1]
        expected = f"RuntimeError: {text}" if "error" in text else f"echo: {text}"
        assert expected.startswith(answer)
        assert answer == expected or one.messages[-1].metadata.get("interrupted") == "true"
    assert (Recorder.runs.roots, Recorder.runs.of) == ({}, {})


def test_in_threads(home):
    """Fifty threads, forty users each: every turn is its own user's, whole, once."""
    contextwrap.configure(home=home)
    bot, chance = make_bot(), random.Random(7)
    calls = [
        (f"u{user}", a_text(f"u{user}", f"{thread}.{number}", way := chance.choice(WAYS)), way)
        for thread in range(THREADS)
        for user in range(USERS)
        for number in range(CALLS)
    ]
    chance.shuffle(calls)
    begin = threading.Barrier(THREADS)

    def work(mine):
        begin.wait()
        for user, text, way in mine:
            ask(bot, user, text, way)

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(work, [calls[index::THREADS] for index in range(THREADS)]))
    check(home, calls)


async def test_in_tasks(home):
    """The same in asyncio, a thousand tasks at once, some cancelled in the midst of the model's answer."""
    contextwrap.configure(home=home)
    bots, chance = {False: make_bot(), True: make_bot(pause=0.2)}, random.Random(8)
    ways = ("invoke", "stream", "broken", "error", "batch", "cancel")
    calls = [
        (f"u{user}", a_text(f"u{user}", number, way := chance.choice(ways)), way)
        for user in range(USERS)
        for number in range(25)
    ]
    chance.shuffle(calls)
    await asyncio.gather(*(aask(bots[way == "cancel"], user, text, way) for user, text, way in calls))
    await asyncio.sleep(0.05)
    check(home, [call for call in calls if call[2] != "cancel"] + _begun(home, calls))


def _begun(home, calls):
    """Of the cancelled calls, those that had begun before they were cancelled."""
    said = {row.message for one in conversations(home) for row in one.messages}
    return [call for call in calls if call[2] == "cancel" and call[1] in said]


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from(WAYS)), min_size=1, max_size=12))
def test_any_order_of_any_ways(tmp_path_factory, program):
    """Whatever the users do, in whatever order, on two threads: their turns are theirs."""
    home = tmp_path_factory.mktemp("home")
    contextwrap.configure(home=home)
    bot = make_bot()
    calls = [(f"u{user}", a_text(f"u{user}", number, way), way) for number, (user, way) in enumerate(program)]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda call: ask(bot, *call), calls))
    check(home, calls)


@pytest.mark.usefixtures("recording")
def test_generators_of_many_users_in_one_thread(home):
    """Streams of forty users, all open at once and read in turn, stay apart."""
    bot = make_bot()
    streams = {}
    for number in range(USERS):
        with session(user_id=f"u{number}"):
            streams[f"u{number}"] = bot.stream({"question": a_text(f"u{number}", number, "stream")})
    while streams:
        for user, stream in list(streams.items()):
            if next(stream, None) is None:
                del streams[user]
    check(home, [(f"u{number}", a_text(f"u{number}", number, "stream"), "stream") for number in range(USERS)])
