"""Real processes: what they say on standard output, and how they end."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from pathlib import Path

ROOT = Path(__file__).parent.parent


def start(script: str, *arguments: object, **environ: object) -> subprocess.Popen[str]:
    """A Python process running `script`; its environment is this one's and `environ`."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), **{name: str(value) for name, value in environ.items()}},
    )


def run(script: str, *arguments: object, **environ: object) -> str:
    """What the process said, once it has ended well."""
    process = start(script, *arguments, **environ)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    return out


def killed(script: str, *arguments: object, **environ: object) -> str:
    """What the process said up to its first line "ready", after which it is killed with signal 9."""
    process = start(script, *arguments, **environ)
    assert process.stdout is not None
    said = ""
    for line in process.stdout:
        if line.strip() == "ready":
            break
        said += line
    process.kill()
    _, err = process.communicate(timeout=30)
    assert process.returncode == -9, err
    return said
