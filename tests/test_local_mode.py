"""The way without a network: a process records, and `contextwrap serve` on the same home shows it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import httpx
import processes
from serving import serving

from contextwrap.server.run import running

if TYPE_CHECKING:
    from pathlib import Path

APP = """
    import os, time
    from langchain_core.language_models import FakeListChatModel
    from langchain_core.prompts import ChatPromptTemplate
    import contextwrap

    prompt = ChatPromptTemplate.from_messages([("user", "{question}")])
    bot = contextwrap.wrap(prompt | FakeListChatModel(responses=["an answer"]))

    @contextwrap.track_context(user_id="{user}", thread_id="{user}-1")
    def answer(question, user):
        return bot.invoke({"question": question})

    answer("a question", user="ada")
"""


def _conversations(home: Path) -> list[dict[str, Any]]:
    server = running(home)
    assert server is not None
    headers = {"Authorization": f"Bearer {server.token}"}
    answer = httpx.get(f"{server.url}/api/v1/conversations", headers=headers).json()
    found: list[dict[str, Any]] = answer["conversations"]
    return found


def _said(conversations: list[dict[str, Any]]) -> list[tuple[str, str, list[str]]]:
    return [
        (item["id"], item["metadata"]["user_id"], [message["message"] for message in item["messages"]])
        for item in conversations
    ]


def test_a_process_that_kills_itself_right_after_the_call_has_recorded_it(tmp_path: Path) -> None:
    """Killed with signal 9 once the call has returned: `contextwrap serve` on that home shows the turn, once."""
    process = processes.start(f"{APP}\n    os.kill(os.getpid(), 9)", CONTEXTWRAP_HOME=tmp_path)
    assert process.wait(60) == -9, process.stderr
    process.communicate()
    for _ in range(2):
        with serving(tmp_path):
            found = _until_some(tmp_path)
            assert _said(found) == [("ada-1", "ada", ["a question", "an answer"])]


def test_a_server_takes_what_a_living_process_records(tmp_path: Path) -> None:
    """Nothing has to end or be flushed: the server reads the outbox of a process that goes on."""
    script = f"{APP}\n    print('ready', flush=True)\n    time.sleep(60)"
    with serving(tmp_path), processes.start(script, CONTEXTWRAP_HOME=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        assert _said(_until_some(tmp_path)) == [("ada-1", "ada", ["a question", "an answer"])]
        assert process.poll() is None
        process.kill()


def _until_some(home: Path) -> list[dict[str, Any]]:
    """The conversations, once the server has taken them out of the outbox."""
    deadline = time.monotonic() + 15
    while not (found := _conversations(home)) and time.monotonic() < deadline:
        time.sleep(0.05)
    return found
