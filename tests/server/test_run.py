"""`serve` as a process: how it starts, what it refuses, and what a kill leaves behind."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from typing import TYPE_CHECKING

import httpx
import pytest
from serving import serving

from contextwrap.server.keys import Keys
from contextwrap.server.run import running

if TYPE_CHECKING:
    from pathlib import Path


def _serve(home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "contextwrap", "serve", "--home", str(home), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    """A kill -9 right after the last 201: every call that was answered is there after the next start, once."""
    keys = Keys(tmp_path / "server" / "keys.sqlite")
    headers = {"Authorization": f"Bearer {keys.create(scope='admin')}"}
    keys.close()
    body = {"messages": [{"role": "user", "message": "hi"}, {"role": "assistant", "message": "hello"}]}
    with serving(tmp_path) as server, httpx.Client(base_url=server.url, headers=headers) as client:
        for number in range(60):
            sent = client.post("/api/v1/log/conversation/thread", json={"conversation": {**body, "id": f"t{number}"}})
            assert sent.status_code == 201
        server.process.kill()
        assert server.process.wait(10) == -signal.SIGKILL
    with serving(tmp_path) as server, httpx.Client(base_url=server.url, headers=headers) as client:
        found = client.get("/api/v1/conversations", params={"per_page": 100}).json()["conversations"]
        assert sorted(item["id"] for item in found) == sorted(f"t{number}" for number in range(60))
        assert {len(item["messages"]) for item in found} == {2}


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_cleanly(tmp_path: Path, sent: signal.Signals) -> None:
    """SIGTERM and Ctrl-C: exit code 0, the journal stored, nothing left that says it runs."""
    with serving(tmp_path) as server:
        assert running(tmp_path) is not None
        assert (tmp_path / "server" / "running.json").stat().st_mode & 0o077 == 0
        server.process.send_signal(sent)
        assert server.process.wait(15) == 0
    assert running(tmp_path) is None
    assert not (tmp_path / "server" / "running.json").exists()


def test_the_printed_link_signs_in(tmp_path: Path) -> None:
    """The link of each start opens the dashboard."""
    for _ in range(2):
        with serving(tmp_path) as server, httpx.Client(follow_redirects=True) as browser:
            assert browser.get(server.link).url.path == "/conversations"


def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    """The address is named and what to do about it; nothing is left running."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = _serve(tmp_path, "--port", str(port))
    assert ended.returncode == 1
    assert ended.stderr.strip().splitlines() == [
        f"Error: cannot listen on 127.0.0.1:{port} (Address already in use): choose another --port or --host"
    ]


def test_a_public_address_without_keys_is_refused(tmp_path: Path) -> None:
    """Nobody can reach a server by accident before somebody has a key."""
    ended = _serve(tmp_path, "--host", "0.0.0.0", "--port", "0")
    assert ended.returncode == 1
    assert "nobody has a key" in ended.stderr
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_home_that_is_served_is_not_served_twice(tmp_path: Path) -> None:
    """The second server says who has the home."""
    with serving(tmp_path) as server:
        ended = _serve(tmp_path, "--port", "0")
        assert ended.returncode == 1
        assert f"{server.process.pid}" in ended.stderr
        assert len(ended.stderr.strip().splitlines()) == 1


def test_an_unwritable_home_is_one_line(tmp_path: Path) -> None:
    """A home below a file cannot be made, and says so."""
    (tmp_path / "file").touch()
    ended = _serve(tmp_path / "file" / "home", "--port", "0")
    assert ended.returncode == 1
    assert ended.stderr.startswith("Error: cannot write to ")
    assert len(ended.stderr.strip().splitlines()) == 1


def test_a_dead_servers_note_is_not_believed(tmp_path: Path) -> None:
    """running.json of a process that is gone counts as nobody."""
    with serving(tmp_path) as server:
        note = (tmp_path / "server" / "running.json").read_text()
        server.process.kill()
        server.process.wait(10)
    assert str(server.process.pid) in note
    assert running(tmp_path) is None
    assert os.path.exists(tmp_path / "server" / "running.json")  # noqa: PTH110  it was left there
