"""Where apps run: a script, uvicorn, a notebook's kernel, a function that is frozen between two calls.

The processes are real. What they recorded is looked for at their server, and in their home.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from contextlib import contextmanager

import httpx
import pytest
from fakeserver import HANG, FakeServer, free_port
from parcels import lines, sent
from processes import ROOT, run, start

from contextwrap.boxfiles import outbox_files
from contextwrap.settings import load

# The apps are made of this folder's chain.
PATH = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"


def environ_of(server, home):
    """The environment of an app that records to the server."""
    return {"CONTEXTWRAP_ENDPOINT": server.url, "CONTEXT_API_TOKEN": "t", "CONTEXTWRAP_HOME": home, "PYTHONPATH": PATH}


def told(logs):
    """Who asked what, in order: (user, words) of each turn."""
    return [(log.conversation.user_id, lines(log.conversation)[0][1]) for log in logs if log.conversation]


def arrived(server):
    """What the server was told, each turn once: what is sent again has the key it had."""
    # Of a process that ends in the middle of a request the headers may come without their body.
    whole = [one for one in server.asked if len(one.body) == int(one.headers["content-length"])]
    return told({one.key: one.log for one in whole}.values())


def waiting(environ):
    """What waits for the server in the app's home."""
    address = load({"endpoint": environ["CONTEXTWRAP_ENDPOINT"], "token": "t"}, environ={}).address
    return told(sent(environ["CONTEXTWRAP_HOME"], address))


SCRIPT = """
    import sys
    from chains import chain
    from contextwrap import session, wrap

    bot = wrap(chain())
    with session(user_id="ada"):
        for number in range(3):
            bot.invoke({"question": f"q{number}"})
"""
SAID = [("ada", f"q{number}") for number in range(3)]
ENDS = {"its last line": ("", 0), "sys.exit": ("sys.exit(3)", 3), "an exception": ("raise ValueError", 1)}


@pytest.mark.parametrize("end", ENDS)
def test_a_script_has_delivered_all_when_it_has_ended(home, end):
    """However a script ends, its server has everything and its home is empty."""
    last, code = ENDS[end]
    with FakeServer() as server:
        process = start(f"{SCRIPT}\n    {last}", **environ_of(server, home))
        process.communicate(timeout=60)
        assert process.returncode == code
        assert arrived(server) == SAID
    assert not outbox_files(home / "outbox")


def test_a_script_without_a_server_leaves_all_in_its_home(home):
    """With no setting but the home, everything lies there when the script has ended."""
    run(SCRIPT, CONTEXTWRAP_HOME=home, PYTHONPATH=PATH)
    assert told(sent(home)) == SAID


APP = """
from contextlib import asynccontextmanager

from chains import chain
from fastapi import FastAPI
from fastapi.responses import StreamingResponse

import contextwrap
from contextwrap import wrap
from contextwrap.web import ContextMiddleware

bot = wrap(chain())
slow = wrap(chain(pause=0.02))


@asynccontextmanager
async def lifespan(app):
    yield
    {at_the_end}


app = FastAPI(lifespan=lifespan)
app.add_middleware(ContextMiddleware)


@app.get("/ask")
async def ask(question: str):
    return await bot.ainvoke({{"question": question}})


@app.get("/wait")
def wait(question: str):
    return bot.invoke({{"question": question}})


@app.get("/read")
async def read(question: str):
    return StreamingResponse(slow.astream({{"question": question}}), media_type="text/plain")
"""
STREAMED = " ".join(f"word{number}" for number in range(20))


@contextmanager
def uvicorn(folder, *, workers=1, at_the_end="pass", **environ):
    """The app under `python -m uvicorn`: the process, and a client that asks it. SIGTERM is the test's to send."""
    (folder / "app.py").write_text(APP.format(at_the_end=at_the_end))
    command = [sys.executable, "-m", "uvicorn", "app:app", "--app-dir", folder, "--port", "0", "--workers", workers]
    environ = {**os.environ, **{name: str(value) for name, value in environ.items()}}
    with subprocess.Popen([*map(str, command)], stderr=subprocess.PIPE, text=True, env=environ) as process:
        said = ""
        # Of several workers each is listening when it has started up; a single one says so itself, after that.
        while said.count("startup complete") < workers or "running on" not in said:
            line = process.stderr.readline()
            assert line, said
            said += line
        url = re.search(r"http://\S+", said)
        try:
            with httpx.Client(base_url=url[0], timeout=30) as http:
                yield process, http
            process.communicate(timeout=30)
        finally:
            process.kill()


def ask_all_ways(http, times=2):
    """Who asked what, in turn in each of the app's ways."""
    asked = [(f"u{number}", f"q{number}") for number in range(3 * times)]
    for way, (user, question) in zip(["/ask", "/wait", "/read"] * times, asked, strict=True):
        answer = http.get(way, params={"question": question}, headers={"x-user-id": user})
        assert question in answer.text
    return asked


@pytest.mark.parametrize("workers", [1, 2])
def test_sigterm_loses_nothing_that_uvicorn_served(tmp_path, home, workers):
    """A SIGTERM ends uvicorn without atexit: what has not arrived lies in the home, and the next start sends it."""
    with FakeServer() as server:
        environ = environ_of(server, home)
        with uvicorn(tmp_path, workers=workers, **environ) as (process, http):
            asked = ask_all_ways(http)
            process.terminate()
        assert {*arrived(server), *waiting(environ)} == {*asked}
        run("import contextwrap; contextwrap.flush(20)", **environ)
        assert sorted(arrived(server)) == asked
    assert not outbox_files(home / "outbox")


@pytest.mark.parametrize("line", ["pass", "contextwrap.shutdown()"])
def test_an_app_under_the_middleware_has_delivered_all_when_it_has_shut_down(tmp_path, home, line):
    """Where the disk goes with the process, the middleware sends everything before the end, or a line of the app's."""
    with FakeServer() as server:
        environ = environ_of(server, home)
        with uvicorn(tmp_path, at_the_end=line, **environ) as (process, http):
            asked = ask_all_ways(http)
            process.terminate()
        assert sorted(arrived(server)) == asked
    assert waiting(environ) == []


def test_an_answer_that_streams_while_uvicorn_stops_is_recorded_whole(tmp_path, home):
    """A request in progress at SIGTERM goes on to its end, and so does its record."""
    with uvicorn(tmp_path, CONTEXTWRAP_HOME=home, PYTHONPATH=PATH) as (process, http):
        with http.stream("GET", "/read", params={"question": STREAMED}) as answer:
            pieces = answer.iter_text()
            said = next(pieces)
            process.terminate()
            said += "".join(pieces)
        assert said == f"echo: {STREAMED}"
    assert [lines(log.conversation) for log in sent(home)] == [[("user", STREAMED), ("assistant", said)]]


KERNEL = """
    import ast, asyncio, inspect, sys

    async def kernel(cells):
        names = {"__name__": "__main__"}
        for cell in cells:
            code = compile(cell, "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
            waits = eval(code, names)
            if inspect.iscoroutine(waits):
                await waits

    asyncio.run(kernel(sys.argv[1:]))
"""
FIRST_CELL = """
from chains import chain
import asyncio, contextwrap
from contextwrap import session, wrap
client = contextwrap.configure()
bot = wrap(chain())
"""


def test_a_notebook_records_and_flushes_inside_its_running_loop(home):
    """Cells with and without await are recorded, once also when the first cell is run again; both flushes end."""
    cells = [
        FIRST_CELL,
        'bot.invoke({"question": "called"})',
        'await bot.ainvoke({"question": "awaited"})',
        'with session(user_id="ada") as here:\n    bot.invoke({"question": "with"})\n    here.rate(+1)',
        'async with session(user_id="bob"):\n    [piece async for piece in bot.astream({"question": "streamed"})]',
        FIRST_CELL,
        "bot = wrap(bot)",
        'bot.invoke({"question": "called again"})',
        "print(contextwrap.flush(20).pending)",
        'await asyncio.gather(*[bot.ainvoke({"question": "at once"}) for _ in range(3)])',
        "print((await contextwrap.aflush(20)).pending)",
    ]
    with FakeServer() as server:
        assert run(KERNEL, *cells, **environ_of(server, home)) == "0\n0\n"
        found = [text for _, text in arrived(server)]
    assert sorted(found) == sorted(["called", "awaited", "with", "streamed", "called again", *["at once"] * 3])
    assert not outbox_files(home / "outbox")


def test_flushing_a_notebook_to_a_hung_server_ends_in_time(home):
    """A server that never answers costs a cell the seconds that it gave; the loop goes on while aflush waits."""
    cells = [
        FIRST_CELL,
        'bot.invoke({"question": "called"})',
        "print(contextwrap.flush(0.3).pending)",
        "waits = asyncio.ensure_future(client.aflush(0.3))",
        "await asyncio.sleep(0.01)\nprint(waits.done())",
        "print((await waits).pending)",
    ]
    with FakeServer(always=HANG) as server:
        environ = environ_of(server, home) | {"CONTEXTWRAP_EXIT_TIMEOUT": 0}
        assert run(KERNEL, *cells, **environ) == "1\nFalse\n1\n"
        assert waiting(environ) == [(None, "called")]


FUNCTION = """
    import asyncio, itertools, os, signal, sys, time
    from contextlib import suppress
    from chains import chain
    from contextwrap import session, track_context, wrap

    bot = wrap(chain())

    @track_context(user_id="{event[user]}")
    def tracked(event, context):
        return bot.invoke(event)

    def scoped(event, context):
        with session(user_id=event["user"]):
            return bot.invoke(event)

    def plain(event, context):
        return bot.invoke(event, {"metadata": {"user_id": event["user"]}})

    def failing(event, context):
        with session(user_id=event["user"]):
            bot.invoke(event)
            raise ValueError

    @track_context(user_id="{event[user]}")
    async def awaited(event):
        return await bot.ainvoke(event)

    def asynchronous(event, context):
        return asyncio.run(awaited(event))

    @track_context(user_id="{event[user]}")
    def streaming(event, context):
        yield from bot.stream(event)

    def streamed(event, context):
        return list(streaming(event, context))

    for number in itertools.count():
        # The last one is called again and again.
        name = sys.argv[1:][min(number, len(sys.argv) - 2)]
        begun = time.monotonic()
        with suppress(ValueError):
            globals()[name]({"user": name, "question": f"q{number}"}, None)
        print(time.monotonic() - begun, flush=True)
        # The machine stops as soon as the handler has returned.
        os.kill(os.getpid(), signal.SIGSTOP)
"""
HANDLERS = ["tracked", "scoped", "plain", "failing", "asynchronous", "streamed"]
LAMBDA = {"AWS_LAMBDA_FUNCTION_NAME": "x"}


@contextmanager
def function(*handlers, **environ):
    """The function's handlers, called in turn: each `next` is the seconds that one took, and finds it frozen."""
    process = start(FUNCTION, *handlers, **environ)

    def calls():
        while True:
            took = process.stdout.readline()
            assert took, process.stderr.read()
            assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
            yield float(took)
            process.send_signal(signal.SIGCONT)

    try:
        yield calls()
    finally:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("durability", ["call", "background"])
def test_a_frozen_function_has_delivered_its_call(home, durability):
    """On AWS Lambda the record has arrived when the handler returns, whatever the handler is, and if it fails."""
    with FakeServer() as server:
        environ = environ_of(server, home) | {"CONTEXTWRAP_DURABILITY": durability} | LAMBDA
        said = [(name, f"q{number}") for number, name in enumerate(HANDLERS)]
        with function(*HANDLERS, **environ) as calls:
            for number in range(1, len(said) + 1):
                next(calls)
                assert arrived(server) == said[:number]
                assert waiting(environ) == []


def test_a_hung_server_holds_a_function_for_exit_timeout(home):
    """The handler returns in time; what did not arrive lies in the home, and goes when the server is back."""
    handlers = ["tracked", "asynchronous", "scoped"]
    port = free_port()
    with FakeServer(always=HANG, port=port) as server:
        environ = environ_of(server, home) | LAMBDA | {"CONTEXTWRAP_EXIT_TIMEOUT": 0.3}
        with function(*handlers, **environ) as calls:
            for number in (1, 2):
                # The rest is the call itself, on a machine that may be busy; a second wait would be 1.5 s.
                assert next(calls) < 0.3 + 1.0
                assert len(waiting(environ)) == number
            server.__exit__()
            with FakeServer(port=port) as back:
                number = next(number for number, _ in enumerate(calls, 3) if not waiting(environ))
                said = [(handlers[min(one, 2)], f"q{one}") for one in range(number)]
                assert arrived(back) == said


def test_a_function_that_is_told_not_to_flush_does_not_wait(home):
    """`CONTEXTWRAP_FLUSH_CALLS=0` is heard on AWS Lambda: the record is on disk, and the server is not waited for."""
    with FakeServer(always=HANG) as server:
        environ = environ_of(server, home) | LAMBDA
        environ |= {"CONTEXTWRAP_FLUSH_CALLS": 0, "CONTEXTWRAP_EXIT_TIMEOUT": 30}
        with function("scoped", **environ) as calls:
            assert next(calls) < 1.4
            assert waiting(environ) == [("scoped", "q0")]
