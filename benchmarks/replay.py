"""Does every dialogue arrive as one conversation, every message once, in order, under its own user?

Replays the user turns of 2,388 real dialogues, 16 at a time, through `wrap(prompt | model | parser)`, each
dialogue in its own session, against a served home, first in threads and then in asyncio tasks; reads all back
with the unmodified context-python client and compares. Prints conversations per second.

    python benchmarks/replay.py [HOW_MANY]
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import URLError
from urllib.request import urlopen

from azure.core.credentials import AzureKeyCredential
from azure.core.pipeline.policies import AzureKeyCredentialPolicy
from getcontext import ContextAPI
from getcontext.token import Credential
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate

import contextwrap

if __name__ == "__main__":
    import corpus
else:
    from benchmarks import corpus

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from langchain_core.runnables import Runnable

    Dialogue = corpus.Dialogue

AT_ONCE = 16


class NextLine(BaseChatModel):
    """Answers with the dialogue's next assistant message; the system message says which dialogue and turn."""

    lines: dict[str, str]

    @property
    def _llm_type(self) -> str:
        return "next-line"

    def _generate(self, messages: list[Any], stop: Any = None, run_manager: Any = None, **_: Any) -> ChatResult:
        answer = AIMessage(content=self.lines[str(messages[0].content)])
        return ChatResult(generations=[ChatGeneration(message=answer)])


def make_bot(dialogues: Sequence[Dialogue]) -> Runnable[dict[str, str], str]:
    """The wrapped chain that knows these dialogues."""
    lines = {f"{d.id} {turn}": answer for d in dialogues for turn, (_, answer) in enumerate(d.turns)}
    prompt = ChatPromptTemplate.from_messages([("system", "{dialogue} {turn}"), ("user", "{text}")])
    return contextwrap.wrap(prompt | NextLine(lines=lines) | StrOutputParser())


def in_threads(bot: Runnable[dict[str, str], str], dialogues: Sequence[Dialogue]) -> None:
    """Every dialogue through the chain, 16 threads at a time."""

    def one(dialogue: Dialogue) -> None:
        with contextwrap.session(user_id=dialogue.user_id, thread_id=dialogue.id):
            for turn, (text, _) in enumerate(dialogue.turns):
                bot.invoke({"text": text, "dialogue": dialogue.id, "turn": str(turn)})

    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(one, dialogues))


def in_tasks(bot: Runnable[dict[str, str], str], dialogues: Sequence[Dialogue]) -> None:
    """Every dialogue through the chain, 16 tasks at a time on one event loop."""

    async def one(dialogue: Dialogue, places: asyncio.Semaphore) -> None:
        async with places, contextwrap.session(user_id=dialogue.user_id, thread_id=dialogue.id):
            for turn, (text, _) in enumerate(dialogue.turns):
                await bot.ainvoke({"text": text, "dialogue": dialogue.id, "turn": str(turn)})

    async def everyone() -> None:
        places = asyncio.Semaphore(AT_ONCE)
        await asyncio.gather(*(one(dialogue, places) for dialogue in dialogues))

    asyncio.run(everyone())


@contextmanager
def served(home: Path) -> Iterator[tuple[str, str]]:
    """`contextwrap serve` on `home` in a process of its own; gives its URL and an admin key."""
    command = [sys.executable, "-m", "contextwrap"]
    scope = ["keys", "create", "--scope", "admin", "--home", str(home)]
    key = subprocess.run([*command, *scope], check=True, capture_output=True, text=True).stdout.strip()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    serve = [*command, "serve", "--home", str(home), "--port", str(port)]
    with subprocess.Popen(serve, stdout=subprocess.DEVNULL) as server:
        try:
            _wait(f"{url}/healthz", server)
            yield url, key
        finally:
            server.terminate()


def read_back(url: str, key: str) -> dict[str, Any]:
    """Every conversation by its id, through context-python's own client."""
    policy = AzureKeyCredentialPolicy(AzureKeyCredential(key), "Authorization", prefix="Bearer")
    client = ContextAPI(Credential(key), endpoint=url, authentication_policy=policy, retry_total=0)
    found: dict[str, Any] = {}
    page: int | None = 1
    with client:
        while page:
            answer = client.conversations(page=page, per_page=100)
            for conversation in answer.conversations:
                assert conversation.id not in found, f"{conversation.id} is listed twice"
                found[conversation.id] = conversation
            page = answer.pagination.next_page
    return found


def differences(dialogues: Sequence[Dialogue], stored: dict[str, Any]) -> list[str]:
    """What is not as it was said: missing, too many, out of order, crossed, under another user."""
    wrong = [f"{extra}: not one of ours" for extra in stored.keys() - {dialogue.id for dialogue in dialogues}]
    for dialogue in dialogues:
        conversation = stored.get(dialogue.id)
        if conversation is None:
            wrong.append(f"{dialogue.id}: missing")
            continue
        said = [(item.role, item.message) for item in conversation.messages if item.role != "system"]
        if said != list(dialogue.messages):
            wrong.append(f"{dialogue.id}: {len(said)} messages of {len(dialogue.messages)}, or out of order")
        if conversation.metadata.get("user_id") != dialogue.user_id:
            wrong.append(f"{dialogue.id}: under {conversation.metadata.get('user_id')}")
    return wrong


def _wait(url: str, server: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urlopen(url, timeout=1):
                return
        except (URLError, OSError):
            time.sleep(0.05)
    raise RuntimeError("the server did not start")


def main() -> None:
    """Print, for threads and for tasks, how fast the dialogues were said and how fast they arrived."""
    path = corpus.find()
    if path is None:
        sys.exit(f"no dialogues in {corpus.FOLDER}: set CONTEXTWRAP_DATA to the folder of sgd_train.jsonl.gz")
    dialogues = corpus.read(path, limit=int(sys.argv[1]) if len(sys.argv) > 1 else None)
    turns = sum(len(dialogue.turns) for dialogue in dialogues)
    print(f"{len(dialogues)} dialogues, {turns} turns, {AT_ONCE} at a time, Python {sys.version.split()[0]}")
    for replay in (in_threads, in_tasks):
        with tempfile.TemporaryDirectory() as folder:
            os.environ["CONTEXTWRAP_HOME"] = f"{folder}/app"
            with served(Path(folder) / "server") as (url, key):
                contextwrap.configure(endpoint=url, token=key)
                began = time.perf_counter()
                replay(make_bot(dialogues), dialogues)
                said = time.perf_counter() - began
                result = contextwrap.flush(600)
                arrived = time.perf_counter() - began
                wrong = differences(dialogues, read_back(url, key))
                contextwrap.shutdown()
        print(
            f"{replay.__name__:>10}: said in {said:.1f} s ({len(dialogues) / said:.0f} conversations/s), "
            f"all delivered in {arrived:.1f} s ({len(dialogues) / arrived:.0f}/s); "
            f"pending {result.pending}, dead {result.dead}, wrong {len(wrong)}"
        )
        if wrong:
            sys.exit("\n".join(wrong[:20]))


if __name__ == "__main__":
    main()
