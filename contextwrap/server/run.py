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

from contextwrap.errors import ConfigurationError
from contextwrap.server.app import create_app
from contextwrap.server.house import open_house
from contextwrap.server.keys import Viewer
from contextwrap.settings import LOOPBACK

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator
    from pathlib import Path

    from contextwrap.server.house import House

RUNNING: Final = "running.json"
STOP_SECONDS: Final = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Running:
    """Where the server of a home is, and a key for whoever may read that home's files."""

    url: str
    pid: int
    token: str


def serve(*, host: str = "127.0.0.1", port: int = 8321, home: Path, names: Collection[str] = ()) -> None:
    """Serve `home` until SIGINT or SIGTERM. Prints where, and a link that signs in once.

    `names` are more host names to answer to, as a proxy before it has them.

    Raises, each in one line that says what to do: ConfigurationError for an address that cannot be listened on,
    a home that cannot be written, or a public address while nobody has a key; HomeInUseError when another server
    has the home; OutboxError for a journal that cannot be opened.
    """
    with _stopped_by_signals(), open_house(home, hosts=frozenset({host, *names})) as house:
        if host not in LOOPBACK and not house.keys.list():
            raise ConfigurationError(
                f"{host} can be reached by others and nobody has a key: make one first with "
                "`contextwrap keys create --scope admin`"
            )
        with closing(listen(host, port)) as listener:
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
                uvicorn.Server(config).run(sockets=[listener])


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


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, so that a port in use is known before anything else is said."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # asyncio sets TCP_NODELAY only where TCP is named: without it every answer waits 40 ms for an ACK.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
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
