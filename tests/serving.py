"""A real server on loopback for tests: in a thread, where its parts can be looked at, or in a process, to be killed."""

from __future__ import annotations

import re
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import uvicorn
from azure.core.credentials import AzureKeyCredential
from azure.core.pipeline.policies import AzureKeyCredentialPolicy
from getcontext import ContextAPI
from getcontext.token import Credential

from contextwrap.server.app import create_app
from contextwrap.server.house import open_house
from contextwrap.server.keys import Viewer
from contextwrap.server.run import listen

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from contextwrap.server.house import House


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """A running server: where it is and what it works with."""

    url: str
    house: House

    @property
    def home(self) -> Path:
        """Its home."""
        return self.house.home

    def key(self, scope: str = "admin", tenant: str = "") -> str:
        """A fresh key's secret."""
        return self.house.keys.create(scope=scope, tenant_id=tenant)

    def sign_in_url(self, tenant: str = "") -> str:
        """A link that signs in once."""
        return f"{self.url}/signin?token={self.house.keys.make_link(Viewer(scope='admin', tenant_id=tenant))}"

    def settle(self) -> None:
        """Wait until the store has what the journal had."""
        assert self.house.pipeline.settle(10)


@contextmanager
def served(home: Path) -> Iterator[Served]:
    """The server of `home`, in a thread."""
    with open_house(home, hosts=frozenset({"127.0.0.1"})) as house:
        listener = listen("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(create_app(house), log_level="warning", access_log=False))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        try:
            _until(lambda: server.started or not thread.is_alive())
            yield Served(url=f"http://127.0.0.1:{listener.getsockname()[1]}", house=house)
        finally:
            server.should_exit = True
            thread.join(10)
            listener.close()


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """`contextwrap serve` as a process of its own; `link` is the sign-in link it printed."""

    process: subprocess.Popen[str]
    url: str
    link: str


@contextmanager
def serving(home: Path, *options: str) -> Iterator[Process]:
    """`contextwrap serve` on `home` and a free port, ended by SIGTERM if it still runs."""
    command = [sys.executable, "-m", "contextwrap", "serve", "--home", str(home), "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = re.search(r"http://\S+", process.stdout.readline())
            link = re.search(r"http://\S+", process.stdout.readline())
            assert url is not None
            assert link is not None
            yield Process(process=process, url=url[0], link=link[0])
        finally:
            process.terminate()
            process.wait(20)


def context_client(url: str, key: str) -> ContextAPI:
    """context-python's own client, unmodified, with the one setting that plain http to loopback takes."""
    policy = AzureKeyCredentialPolicy(AzureKeyCredential(key), "Authorization", prefix="Bearer")
    return ContextAPI(Credential(key), endpoint=url, authentication_policy=policy, retry_total=0)


def _until(met: object, seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not met() and time.monotonic() < deadline:  # type: ignore[operator]
        time.sleep(0.01)
