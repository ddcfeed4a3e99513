"""contextwrap beside its peers: what each costs a call, and what is lost, held up or hung when a process ends or forks.

python benchmarks/peers/compare.py [--only langfuse] [--question overhead] [--calls 200] [--rounds 7]
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import select
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import traceback
import venv
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from sink import Sink, unused

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))
import report  # noqa: E402  it stands one folder up

PEERS = "contextwrap langfuse langsmith opik openinference openinference_simple mlflow oldhandler".split()
SHORT, LONG = "short", "20 kB"
CAP = 90
PACE = 0.05
KILLS = 3
OVER = ("no-op", "thread", "process", "all")


def python_of(peer: str, folder: Path) -> Path:
    """Its environment's Python; made, or made anew when its requirements have changed."""
    wanted = HERE / f"{peer.partition('_')[0]}.txt"
    home = folder / wanted.stem
    stamp = home / "made-of"
    digest = hashlib.sha256(wanted.read_bytes()).hexdigest()
    if not stamp.is_file() or stamp.read_text() != digest:
        print(f"making {home}", file=sys.stderr)
        venv.create(home, clear=True, with_pip=True)
        install = [home / "bin" / "python", "-m", "pip", "install", "--quiet", "-r", wanted.name]
        done = subprocess.run(install, cwd=HERE, capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"pip: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
        stamp.write_text(digest)
    return home / "bin" / "python"


def packages(peer: str) -> list[str]:
    """The names in its requirements."""
    names = (HERE / f"{peer.partition('_')[0]}.txt").read_text().split()
    return ["contextwrap" if name == "../.." else name for name in names if name != "-e"]


class Driver:
    """driver.py in a peer's environment, in a process and a home of its own; killed with its children at the end."""

    def __init__(self, python: Path, *words: object, home: str) -> None:
        # Nothing of ours, no proxy, and no setting of this machine's user.
        environ = {"PATH": os.environ["PATH"], "HOME": home, "TMPDIR": home, "PYTHONHASHSEED": "0"}
        self.log = Path(home) / "log"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [python, HERE / "driver.py", *map(str, words)],
                env=environ,
                cwd=home,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # The group may be empty already.
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def ask(self, line: object) -> None:
        """Give it a line."""
        self.process.stdin.write(json.dumps(line).encode() + b"\n")
        self.process.stdin.flush()

    def said(self, cap: float = CAP) -> dict | None:
        """Its next line; None when none comes in time. RuntimeError with its last words when it has ended."""
        if not select.select([self.process.stdout], [], [], cap)[0]:
            return None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError((self.log.read_text().strip().splitlines() or ["it ended"])[-1][:200])
        return json.loads(line)

    def gone(self, cap: float = CAP) -> float | None:
        """When it was gone, in seconds since 1970; None when it is not in time."""
        try:
            self.process.wait(cap)
        except subprocess.TimeoutExpired:
            return None
        return time.time()


@contextmanager
def home():
    """A folder for one run."""
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        yield name


def versions(peer: str, python: Path) -> dict:
    """Of what was installed."""
    names = ",".join(dict.fromkeys([*packages(peer), "langchain-core"]))
    with home() as name, Driver(python, peer, "versions", "-", "--run", names, home=name) as driver:
        return driver.said()


def overhead(peer: str, python: Path, given: argparse.Namespace) -> dict:
    """Medians of µs a call: bare, and over a handler that does nothing, that is in a process without the peer."""
    spent: dict[tuple[str, str], list[dict]] = {}
    arrived = {SHORT: 0, LONG: 0}
    sent = {SHORT: 0, LONG: 0}
    size = ("--calls", given.calls)
    with (
        home() as here,
        home() as there,
        Sink() as sink,
        Driver(python, peer, "plain", sink.url, *size, home=here) as plain,
        Driver(python, peer, "overhead", sink.url, *size, home=there) as recorded,
    ):
        for turn in range(given.rounds + 1):
            for length in (SHORT, LONG):
                for way in ("bare", "no-op", "peer"):
                    driver = recorded if way == "peer" else plain
                    driver.ask([way, length == LONG])
                    found = driver.said(600)
                    if found is None:
                        raise RuntimeError("a round took more than ten minutes")
                    # The first round warms up.
                    if turn:
                        spent.setdefault((length, way), []).append(found)
                if turn:
                    arrived[length] += sink.arrived("run", given.calls)
                    sent[length] += sink.bytes
                sink.clear()

    def median(length: str, way: str, what: str) -> float:
        return statistics.median(one[what] for one in spent[length, way])

    return {
        length: {
            "bare": round(median(length, "bare", "thread")),
            "no-op": round(median(length, "no-op", "thread") - median(length, "bare", "thread")),
            **{
                what: round(median(length, "peer", what) - median(length, "no-op", what))
                for what in ("thread", "process", "all")
            },
            "arrived": round(arrived[length] / given.calls / given.rounds, 3),
            "kB": round(sent[length] / given.calls / given.rounds / 1000, 1),
        }
        for length in (SHORT, LONG)
    }


def killed(peer: str, python: Path, given: argparse.Namespace) -> dict:
    """How many of 100 calls arrive after kill -9 when the last has returned, and one new start that flushes."""
    found: dict[str, list[int]] = {}
    for pace, words in (("at once", ()), ("50 ms each", ("--sleep", PACE))):
        for _ in range(KILLS):
            with home() as name, Sink() as sink:
                with Driver(python, peer, "kill", sink.url, *words, home=name) as driver:
                    driver.said()
                    driver.gone()
                with Driver(python, peer, "flush", sink.url, home=name) as driver:
                    driver.gone()
                found.setdefault(pace, []).append(sink.arrived("run", 100))
    return found


def ended(peer: str, python: Path, given: argparse.Namespace) -> dict:
    """Seconds that 100 calls take, and from then until the process is gone, by what the server does."""
    found = {}
    for state in ("up", "down", "hung"):
        with home() as name, Sink(hung=state == "hung") as sink:
            url = f"http://127.0.0.1:{unused()}" if state == "down" else sink.url
            with Driver(python, peer, "end", url, home=name) as driver:
                said = driver.said()
                gone = driver.gone() if said else None
                found[state] = {
                    "calls": round(said["took"], 2) if said else None,
                    "exit": round(gone - said["at"], 2) if gone else None,
                    "arrived": sink.arrived("run", 100),
                }
    return found


def kept(peer: str, python: Path, given: argparse.Namespace) -> dict:
    """Of 100 calls of a process that ends while its server is down, how many arrive at the next start, with it up."""
    port = unused()
    with home() as name:
        with Driver(python, peer, "end", f"http://127.0.0.1:{port}", home=name) as driver:
            if driver.said():
                driver.gone()
        with Sink(port=port) as sink, Driver(python, peer, "flush", sink.url, home=name) as driver:
            driver.gone()
            return {"arrived": sink.arrived("run", 100)}


def forked(peer: str, python: Path, given: argparse.Namespace) -> dict:
    """Of five calls before a fork and five in the child, how many arrive; which of the two did not end."""
    with home() as name, Sink() as sink:
        with Driver(python, peer, "fork", sink.url, "--calls", 10, home=name) as driver:
            said = driver.said()
            gone = driver.gone(20)
        return {
            "arrived": sink.arrived("run", 10),
            "child": "ended" if said and said["ended"] else "hung",
            "parent": "ended" if gone else "hung",
        }


QUESTIONS = {"overhead": overhead, "killed": killed, "ended": ended, "kept": kept, "forked": forked}


def table(head: list[str], rows: dict[str, list[object]]) -> str:
    """Markdown."""
    lines = [head, ["---"] * len(head), *([name, *row] for name, row in rows.items())]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines) + "\n"


def seconds(one: dict) -> str:
    """Until gone; with what the calls took, where that is more than they take alone."""
    if one["calls"] is None:
        return f"calls >{CAP}"
    exits = f">{CAP}" if one["exit"] is None else f"{one['exit']:.2f}"
    return f"{exits} (calls {one['calls']:.1f})" if one["calls"] > 1 else exits


def spread(found: list[int]) -> str:
    """From the least to the most."""
    least, most = min(found), max(found)
    return str(least) if least == most else f"{least} to {most}"


def tables(found: dict) -> str:
    """One a question."""

    def rows(question: str, cells) -> dict[str, list[object]]:
        made = {}
        for peer in PEERS:
            if one := found.get(peer, {}).get(question):
                made[peer] = ["not run: " + one["error"]] if "error" in one else cells(one)
        return made

    def costs(one: dict) -> list[object]:
        return [one["bare"], *(f"{one[what]:+}" for what in OVER), f"{one['kB']:.1f}", f"{one['arrived']:.1%}"]

    over = ["bare", "no-op", "thread", "process", "all in", "kB", "arrived"]
    named = {peer: [", ".join(f"{k} {v}" for k, v in one.get("versions", {}).items())] for peer, one in found.items()}
    return "\n".join(
        [
            *(
                table([f"µs a call, {length}", *over], rows("overhead", lambda one, length=length: costs(one[length])))
                for length in (SHORT, LONG)
            ),
            table(
                ["killed: arrived of 100", "at once", "50 ms each"],
                rows("killed", lambda one: [*map(spread, one.values())]),
            ),
            table(["seconds to exit", "up", "down", "hung"], rows("ended", lambda one: [*map(seconds, one.values())])),
            table(["ended with the server down", "arrived of 100"], rows("kept", lambda one: [*one.values()])),
            table(["fork", "arrived of 10", "child", "parent"], rows("forked", lambda one: [*one.values()])),
            table(["", "versions"], {peer: named[peer] for peer in PEERS if peer in named}),
        ]
    )


def main() -> None:
    """Make the environments, ask, print the tables."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", choices=PEERS, action="append")
    options.add_argument("--question", choices=QUESTIONS, action="append")
    options.add_argument("--calls", type=int, default=200, help="calls a round of overhead")
    options.add_argument("--rounds", type=int, default=7)
    options.add_argument("--venvs", type=Path, default=HERE / ".venvs", help="where the environments are kept")
    given = options.parse_args()
    kept = report.RESULTS / "peers.json"
    found: dict[str, dict] = json.loads(kept.read_text())["found"] if kept.is_file() else {}
    for peer in given.only or PEERS:
        one = found.setdefault(peer, {})
        for question in given.question or QUESTIONS:
            print(f"{peer}: {question}", file=sys.stderr)
            try:
                python = python_of(peer, given.venvs.absolute())
                one["versions"] = versions(peer, python)
                one[question] = QUESTIONS[question](peer, python, given)
            except Exception as error:  # noqa: BLE001  the row says why
                traceback.print_exc()
                one[question] = {"error": f"{type(error).__name__}: {error}"}
            report.write("peers", found)
    print(tables(found))


if __name__ == "__main__":
    main()
