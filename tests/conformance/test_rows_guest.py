"""Rows H06, H08 to H13, H32: a guest in the app's process, which waits for nothing and loses nothing."""

from __future__ import annotations

import asyncio
import gc
import json
import threading
import time
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from arrivals import TOKEN, configured, waiting
from click.testing import CliRunner
from fakemodels import Echo
from fakeserver import HANG, OK, Answer, FakeServer
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda
from parcels import lines
from processes import run, start

import contextwrap
from contextwrap import ContextCallbackHandler, wrap
from contextwrap.cli import cli
from contextwrap.outbox import Outbox, outbox_files
from contextwrap.recorder import Recorder

PROMPT = ChatPromptTemplate.from_template("{question}")
MEGABYTE = 1_000_000
TESTS = Path(__file__).parent.parent


def _turn(said):
    return [("user", said), ("assistant", f"echo: {said}")]


# What is held.


def test_h06_the_memory_is_flat_over_many_calls(home):
    """Of 20,000 calls of 2 KB each nothing is held: all that the second half leaves behind is the ids of its runs."""
    client = contextwrap.configure(home=home)
    answer = RunnableLambda(lambda text: text[::-1])
    config = {"callbacks": [ContextCallbackHandler()]}

    def call(numbers):
        for number in numbers:
            answer.invoke(f"{number:2000}", config)

    call(range(10_001))
    tracemalloc.start()
    try:
        call(range(10_000))
        gc.collect()
        left = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert (Recorder.runs.roots, Recorder.runs.of) == ({}, {})
    assert (client.stats().recorded, client.stats().lost) == (20_001, {})
    # The runs that ended last are known by their ids.
    assert len(Recorder.runs._closed) == 20_000
    # What was said is 40 MB.
    assert left < 6 * MEGABYTE


# What cannot be delivered.


@pytest.mark.parametrize("status", [400, 403, 404, 413, 422])
def test_h09_a_refused_record_is_a_dead_letter_with_its_reason(home, status):
    """What the server will never take is kept with the reason it gave; what comes after arrives."""
    refusal = Answer(status=status, body=b'{"error":{"code":"no","message":"not this one"}}')
    with FakeServer(refusal, always=OK) as server:
        arrived = configured(server, home)
        bot = wrap(PROMPT | Echo())
        bot.invoke({"question": "mine"}, {"metadata": {"user_id": "ada"}})
        server.wait_for(1)
        bot.invoke({"question": "yours"}, {"metadata": {"user_id": "bob"}})
        left = contextwrap.flush(20)
        assert (left.delivered, left.pending, left.dead) == (1, 0, 1)
        assert [lines(asked.log.conversation) for asked in arrived.server.asked] == [_turn("mine"), _turn("yours")]
    contextwrap.shutdown()
    (path,) = outbox_files(home / "outbox")
    kept = Outbox(path)
    (letter,) = kept.dead_letters()
    kept.close()
    assert letter.reason == f"HTTP {status}: (no) not this one"
    assert letter.body == server.asked[0].body


def test_h09_a_token_that_is_not_known_is_no_records_fault(home):
    """After a 401 all waits, with that reason, and arrives by itself once the server knows the token."""
    refusal = Answer(status=401, body=b'{"error":{"code":"no","message":"who are you?"}}')
    with FakeServer(*[refusal] * 3, always=OK) as server:
        arrived = configured(server, home)
        bot = wrap(PROMPT | Echo())
        bot.invoke({"question": "mine"}, {"metadata": {"user_id": "ada"}})
        left = contextwrap.flush(20)
        assert (left.delivered, left.pending, left.dead) == (1, 0, 0)
        assert [lines(asked.log.conversation) for asked in arrived.server.asked] == [_turn("mine")] * 4
        assert len({asked.key for asked in arrived.server.asked}) == 1


def test_h09_the_command_line_shows_dead_letters(home):
    """`contextwrap doctor` says how many there are, and the reason of the newest."""
    refusal = Answer(status=422, body=b'{"error":{"code":"no","message":"not this one"}}')
    with FakeServer(refusal) as server:
        configured(server, home)
        wrap(Echo()).invoke("hi")
        assert contextwrap.flush(20).dead == 1
        contextwrap.shutdown()
        doctor = start(DOCTOR, **_environ(server, home))
        said, _ = doctor.communicate(timeout=60)
        found = {check["name"]: (check["status"], check["said"]) for check in json.loads(said)["checks"]}
    assert found[f"outbox to {server.url}"] == (
        "warn",
        "dead letters: 1, the newest for: HTTP 422: (no) not this one",
    )


def test_h09_a_dead_letter_can_be_retried(home):
    """`contextwrap outbox` shows it with its reason; after `outbox retry` a server that takes it gets it, once."""
    refusal = Answer(status=422, body=b'{"error":{"code":"no","message":"not this [red]one"}}')
    with FakeServer(refusal) as server:
        configured(server, home)
        wrap(Echo()).invoke("hi")
        assert contextwrap.flush(20).dead == 1
        shell = CliRunner()
        shown = shell.invoke(cli, ["outbox", "--home", str(home)], env={"COLUMNS": "200"}).output
        assert "0 waiting" in shown
        assert "HTTP 422: (no) not this [red]one" in shown
        assert "1 dead letters" in shell.invoke(cli, ["outbox", "retry", "--home", str(home)]).output
        result = contextwrap.flush(20)
        assert (result.delivered, result.pending, result.dead) == (1, 0, 0)
        assert "no dead letters" in shell.invoke(cli, ["outbox", "--home", str(home)]).output
        assert [asked.body for asked in server.asked] == [server.asked[0].body] * 2


DOCTOR = """
    import sys
    from contextwrap.__main__ import main
    sys.argv = ["contextwrap", "doctor", "--json"]
    main()
"""


@pytest.fixture
def hanging(home):
    """A server that takes every request and never answers one."""
    with FakeServer(always=HANG) as server:
        arrived = configured(server, home, exit_timeout=0.0)
        yield server
        assert arrived.client.stats().lost == {}
        contextwrap.shutdown()


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream"])
def test_h10_a_call_does_not_wait_for_the_network(hanging, way):
    """A call is over though the server has answered nothing yet, and never will."""
    bot = wrap(PROMPT | Echo())
    bot.invoke({"question": "first"})
    hanging.wait_for(1)
    for number in range(20):
        asked = {"question": f"q{number}"}
        if way == "invoke":
            said = bot.invoke(asked).text
        elif way == "stream":
            said = "".join(part.text for part in bot.stream(asked))
        else:
            said = asyncio.run(bot.ainvoke(asked)).text
        assert said == f"echo: q{number}"
    assert len(hanging.asked) == 1


@pytest.mark.parametrize("status", [500, 502, 503])
def test_h11_errors_of_the_server_cost_the_call_nothing(home, status):
    """Calls go on while every attempt fails, and what they said waits in their order."""
    with FakeServer(always=Answer(status=status)) as server:
        arrived = configured(server, home, exit_timeout=0.0)
        bot = wrap(PROMPT | Echo())
        bot.invoke({"question": "q0"})
        began = time.monotonic()
        for number in range(1, 20):
            bot.invoke({"question": f"q{number}"})
        # Each of the old handler's calls waited 4.85 s.
        assert time.monotonic() - began < 4.85
        server.wait_for(1)
        left = contextwrap.shutdown()
        assert (left.delivered, left.pending, left.dead) == (0, 20, 0)
    assert waiting(home, arrived) == [_turn(f"q{number}") for number in range(20)]


APP = """
    import sys
    sys.path.insert(0, sys.argv[1])
    from fakemodels import Echo
    from contextwrap import wrap
    bot = wrap(Echo())
    for number in range(3):
        print(bot.invoke(f"q{number}").text)
    print("done", flush=True)
"""


def test_h12_exit_is_bounded_and_what_waits_stays_on_disk(home):
    """With a server that hangs the process ends when it may, and its records are delivered by the next."""
    with FakeServer(always=HANG) as server:
        process = start(APP, TESTS, **_environ(server, home))
        out = "".join(process.stdout.readline() for _ in range(4))
        done = time.monotonic()
        process.communicate(timeout=60)
        took = time.monotonic() - done
        assert (process.returncode, out) == (0, "echo: q0\necho: q1\necho: q2\ndone\n")
        # Two seconds by default, and what the interpreter takes to go.
        assert took < 5
    left = [_turn(f"q{number}") for number in range(3)]
    with FakeServer(port=int(server.url.rpartition(":")[2])) as again:
        arrived = configured(again, home)
        assert waiting(home, arrived) == left
        wrap(Echo()).invoke("new")
        again.wait_for(4)
        assert sorted(arrived.turns()) == sorted([_turn("new"), *left])
        contextwrap.shutdown()


def _environ(server, home):
    return {"CONTEXTWRAP_ENDPOINT": server.url, "CONTEXT_API_TOKEN": TOKEN, "CONTEXTWRAP_HOME": home}


def test_h13_async_calls_need_no_thread_of_the_apps_executor(hanging):
    """Sixty calls at once end while the server hangs and the loop's own executor is busy with something else."""
    release = threading.Event()

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_default_executor(ThreadPoolExecutor(1))
        busy = loop.run_in_executor(None, release.wait, 30)
        bot = wrap(PROMPT | Echo())
        try:
            async with asyncio.timeout(20):
                answers = await asyncio.gather(*(bot.ainvoke({"question": f"q{number}"}) for number in range(60)))
            waited = busy.done()
        finally:
            release.set()
            await busy
        return [answer.text for answer in answers], waited

    assert asyncio.run(main()) == ([f"echo: q{number}" for number in range(60)], False)


def test_h32_langchain_community_is_never_imported(server, home):
    """From import to delivery nothing loads langchain-community, the heaviest thing the old handler needed."""
    script = """
        import sys
        sys.path.insert(0, sys.argv[1])
        from fakemodels import Echo
        from contextwrap import ContextCallbackHandler, flush, rate, session, track_context, wrap
        with session(user_id="ada") as here:
            track_context(wrap(Echo()).invoke)("hi", {"callbacks": [ContextCallbackHandler()]})
            here.rate(1)
        assert (flush().pending, flush().delivered) == (0, 2)
        print(sorted(name for name in sys.modules if name.startswith("langchain_community")))
    """
    assert run(script, TESTS, **_environ(server, home)) == "[]\n"
    assert lines(server.asked[0].log.conversation) == _turn("hi")
