"""Small parts the fault tests share: scripts that end well, keys, waiting, and a process that delivers what is left."""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from typing import TYPE_CHECKING

from processes import start

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable
    from pathlib import Path

SEED = 20261123

DRAIN = """
    import sys
    from contextwrap.client import ContextWrap
    with ContextWrap(home=sys.argv[1]) as client:
        print(client.flush(60))
"""
CONTEXTWRAP = "from contextwrap.__main__ import main; main()"


def finished(script: str, *arguments: object, **environ: object) -> str:
    """What the script said; it has to end well."""
    process = start(script, *arguments, **environ)
    out, err = process.communicate(timeout=110)
    assert process.returncode == 0, err
    return out


def drain(home: Path, **environ: object) -> None:
    """A next process delivers all that is left in this home."""
    said = finished(DRAIN, home, **environ)
    assert "pending=0, dead=0" in said, said


def created_key(home: Path) -> str:
    """A fresh key of the server of `home`, as its owner makes one."""
    return finished(CONTEXTWRAP, "keys", "create", "--scope", "admin", CONTEXTWRAP_HOME=home).strip()


def until(met: Callable[[], bool], seconds: float = 30) -> None:
    """Wait until it is so."""
    deadline = time.monotonic() + seconds
    while not met():
        assert time.monotonic() < deadline, "it never came to be"
        time.sleep(0.01)


def end_all_of(process: subprocess.Popen[str]) -> None:
    """Kill the process, started in a session of its own, with all it forked."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
