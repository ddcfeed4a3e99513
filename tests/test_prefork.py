"""Servers and workers that fork after the app is loaded: what each child records arrives once, under its own user."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from contextlib import contextmanager

import httpx
from fakeserver import FakeServer, free_port
from parcels import lines
from processes import ROOT, run

BOT = """
    from langchain_core.language_models import FakeListChatModel
    from langchain_core.prompts import ChatPromptTemplate
    import contextwrap

    prompt = ChatPromptTemplate.from_messages([("user", "{q}")])
    bot = contextwrap.wrap(prompt | FakeListChatModel(responses=["ok"]))
    # Recording has begun before there are any children.
    with contextwrap.session(user_id="parent"):
        bot.invoke({"q": "preloaded"})
"""
WSGI = """
    from flask import Flask, request
    app = Flask(__name__)

    @app.get("/ask")
    def ask():
        with contextwrap.session(user_id=request.args["user"]):
            bot.invoke({"q": request.args["q"]})
        return "ok"
"""
TASKS = """
    from pathlib import Path
    from celery import Celery
    Path("mail").mkdir(exist_ok=True)
    folders = {"data_folder_in": "mail", "data_folder_out": "mail"}
    app = Celery("app", broker="filesystem://", broker_transport_options=folders)

    @app.task
    def ask(user, q):
        with contextwrap.session(user_id=user):
            return bot.invoke({"q": q})
"""
SEND = """
    from app import ask
    for number in range(20):
        ask.delay(f"u{number}", f"q{number}")
"""
EXPECTED = {"parent": {"preloaded"}} | {f"u{number}": {f"q{number}"} for number in range(20)}


@contextmanager
def running(folder, environ, *command):
    """The command in a process group of its own, until it has ended by SIGTERM."""
    environ = os.environ | {"PYTHONPATH": str(ROOT)} | environ
    process = subprocess.Popen(
        [sys.executable, "-m", *command],
        cwd=folder,
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield
        process.send_signal(signal.SIGTERM)
        said, _ = process.communicate(timeout=30)
        assert "Traceback" not in said
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def asked(server):
    """Each call that arrived: (key, user, question)."""
    calls = [(one.key, one.log.conversation) for one in server.asked if one.method == "POST"]
    return [(key, said.user_id, lines(said)[0][1]) for key, said in calls]


def arrived(server, environ):
    """Who asked what, once nothing waits any more; nothing came twice but under one key."""
    run("import contextwrap; assert contextwrap.flush(30).pending == 0", **environ)
    calls = set(asked(server))
    assert len({key for key, *_ in calls}) == len(calls)
    found = {}
    for _, user, question in calls:
        found.setdefault(user, []).append(question)
    return found


def until(true, seconds=30):
    """Wait for it."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def environ_of(server, home):
    """The environment of an app that records to the server."""
    return {"CONTEXTWRAP_ENDPOINT": server.url, "CONTEXT_API_TOKEN": "t", "CONTEXTWRAP_HOME": str(home)}


def test_gunicorn_with_a_preloaded_app(tmp_path, home):
    """Workers forked from an app that has recorded already, and replaced as they go, lose and repeat nothing."""
    (tmp_path / "app.py").write_text(textwrap.dedent(BOT) + textwrap.dedent(WSGI))
    port = free_port()
    with FakeServer() as server:
        environ = environ_of(server, home)
        options = ("--preload", "--workers", "2", "--max-requests", "5", "--bind", f"127.0.0.1:{port}", "app:app")
        with running(tmp_path, environ, "gunicorn", *options):
            until(lambda: server.asked)
            for number in range(20):
                query = {"user": f"u{number}", "q": f"q{number}"}
                assert httpx.get(f"http://127.0.0.1:{port}/ask", params=query, timeout=30).text == "ok"
        found = arrived(server, environ)
    assert {user: set(questions) for user, questions in found.items()} == EXPECTED
    assert sum(map(len, found.values())) == 21


def test_celery_with_forked_workers(tmp_path, home):
    """Tasks in forked workers are recorded by the worker that runs them; each task is one conversation of its user."""
    (tmp_path / "app.py").write_text(textwrap.dedent(BOT) + textwrap.dedent(TASKS))
    with FakeServer() as server:
        environ = environ_of(server, home)
        options = ("--pool", "prefork", "--concurrency", "2", "--without-gossip", "--without-mingle")
        with running(tmp_path, environ, "celery", "--app", "app", "worker", *options):
            until(lambda: server.asked)
            sending = [sys.executable, "-c", textwrap.dedent(SEND)]
            apart = {**os.environ, "PYTHONPATH": str(ROOT), "CONTEXTWRAP_DISABLED": "1"}
            subprocess.run(sending, cwd=tmp_path, env=apart, check=True, timeout=60)
            until(lambda: {user for _, user, _ in asked(server)} == EXPECTED.keys())
        found = arrived(server, environ)
    assert {user: set(questions) for user, questions in found.items()} == EXPECTED
    assert sum(map(len, found.values())) == 21
