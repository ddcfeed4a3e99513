"""`serve`: open a home, listen, and leave everything on disk when told to stop."""

from __future__ import annotations

import json
import os
import signal
import socket
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

import uvicorn

from contextwrap.analytics.pipeline import Pipeline
from contextwrap.errors import ConfigurationError, HomeInUseError
from contextwrap.outbox import Outbox
from contextwrap.server.app import create_app
from contextwrap.server.house import House
from contextwrap.server.keys import Keys, Viewer
from contextwrap.settings import LOOPBACK
from contextwrap.store.duckdb import DuckDBStore

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RUNNING: Final = "running.json"
STOP_SECONDS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Where the server of a home is, and a key for whoever may read that home's files."""

    url: str
    pid: int
    token: str


def serve(*, host: str = "127.0.0.1", port: int = 8321, home: Path) -> None:
    """Serve `home` until SIGINT or SIGTERM. Prints where, and a link that signs in once.

    Raises, each in one line that says what to do: ConfigurationError for an address that cannot be listened on,
    a home that cannot be written, or a public address while nobody has a key; HomeInUseError when another server
    has the home; OutboxError for a journal that cannot be opened.
    """
    with open_house(home, hosts=frozenset({host})) as house:
        if host not in LOOPBACK and not house.keys.list():
            raise ConfigurationError(
                f"{host} can be reached by others and nobody has a key: make one first with "
                "`contextwrap keys create --scope admin`"
            )
        with closing(_listen(host, port)) as listener:
            url = f"http://{_in_url(host)}:{listener.getsockname()[1]}"
            with _announced(home, house, url):
                link = f"{url}/signin?token={quote(house.keys.make_link(Viewer(scope='admin')))}"
                print(f"contextwrap serves {home} on {url}\nSign in (once): {link}", flush=True)  # noqa: T201
                config = uvicorn.Config(
                    create_app(house),
                    log_level="warning",
                    access_log=False,
                    server_header=False,
                    timeout_graceful_shutdown=STOP_SECONDS,
                )
                with _stopped_by_signals():
                    uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def open_house(home: Path, *, hosts: frozenset[str] = frozenset()) -> Iterator[House]:
    """The home's parts, opened and working; at the end what is in the journal is stored and all is closed."""
    folder = home / "server"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError as error:
        raise ConfigurationError(f"cannot write to {home} ({error.strerror}): choose another --home") from error
    with (
        closing(Keys(folder / "keys.sqlite")) as keys,
        closing(DuckDBStore.open(folder / "store.duckdb")) as store,
        closing(_journal(folder / "journal.sqlite")) as journal,
    ):
        pipeline = Pipeline(store=store, journal=journal, outboxes=home / "outbox")
        pipeline.start()
        try:
            yield House(home=home, store=store, journal=journal, pipeline=pipeline, keys=keys, hosts=hosts)
        finally:
            pipeline.settle(STOP_SECONDS)
            pipeline.stop()
            store.checkpoint()


def running(home: Path) -> Running | None:
    """The server that works on `home` now, or None."""
    try:
        said = json.loads((home / "server" / RUNNING).read_text())
        found = Running(url=said["url"], pid=said["pid"], token=said["token"])
        os.kill(found.pid, 0)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found


@contextmanager
def _announced(home: Path, house: House, url: str) -> Iterator[None]:
    """Let commands on this home find the server: a file only its owner can read, gone when the server is."""
    token = house.keys.lend(Viewer(scope="admin", key_id="home"))
    path = home / "server" / RUNNING
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_EXCL, 0o600)
    with os.fdopen(handle, "w") as file:
        json.dump({"url": url, "pid": os.getpid(), "token": token}, file)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def _journal(path: Path) -> Outbox:
    """The journal, with what a killed server had at hand given back."""
    journal = Outbox.adopt(path)
    if journal is None:
        raise HomeInUseError(f"{path.parent} is in use by another contextwrap process: stop it first")
    return journal


@contextmanager
def _stopped_by_signals() -> Iterator[None]:
    """SIGINT and SIGTERM end the body and nothing more: uvicorn, once stopped, raises them anew."""
    try:
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    except ValueError:
        # Not in the main thread: whoever runs this there gets the signals.
        yield
        return
    try:
        yield
    except KeyboardInterrupt:
        return
    finally:
        signal.signal(signal.SIGTERM, before)


def _listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a port in use is known before anything else is said."""
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigurationError(
            f"cannot listen on {host}:{port} ({error.strerror}): choose another --port or --host"
        ) from error
    listener.set_inheritable(True)
    return listener


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
