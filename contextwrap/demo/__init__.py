"""`contextwrap demo`: a small application with sixty simulated users, recorded for real, shown on the dashboard.

It keeps to a home of its own, which it empties at each start and knows by a marker file.
"""

from __future__ import annotations

import random
import shutil
import socket
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from contextwrap.errors import ConfigurationError, HomeInUseError

if TYPE_CHECKING:
    from contextwrap.store.records import Totals

SEED: Final = 20_000
_MARKER: Final = ".contextwrap-demo"


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What the demo has left in its home, and how long recording it took, in seconds."""

    home: Path
    turns: int
    failed: int
    seconds: float
    totals: Totals


def default_demo_home() -> Path:
    """The demo's own folder: never the one where real records are."""
    import platformdirs  # noqa: PLC0415

    return Path(platformdirs.user_data_dir("contextwrap-demo"))


def record_demo(home: Path) -> Recorded:
    """Empty `home`, let everybody ask, and bring it all into the store.

    Raises ConfigurationError for a home that is not a demo's, HomeInUseError for one that is being served.
    """
    from contextwrap.client import configure, reset_defaults  # noqa: PLC0415
    from contextwrap.server.run import running  # noqa: PLC0415

    served = running(home)
    if served is not None:
        raise HomeInUseError(f"a demo is being served on {served.url}: stop it first, or choose another --home")
    _empty(home)
    began = time.perf_counter()
    clock = _Clock(datetime.now(UTC))
    configure(home=home, clock=clock.now)
    try:
        asked, failed = _ask_all(clock)
    finally:
        reset_defaults()
    totals = _drain(home)
    return Recorded(home=home, turns=asked, failed=failed, seconds=time.perf_counter() - began, totals=totals)


class _Clock:
    def __init__(self, moment: datetime) -> None:
        self.moment = moment

    def now(self) -> datetime:
        return self.moment


def _ask_all(clock: _Clock) -> tuple[int, int]:
    from contextwrap import rate  # noqa: PLC0415
    from contextwrap.demo import app, people  # noqa: PLC0415

    dice = random.Random(SEED)  # noqa: S311  a simulation, and it has to repeat
    asked = failed = 0
    for turn in people.turns(seed=SEED, today=clock.moment):
        clock.moment = turn.at
        asked += 1
        try:
            reply = app.answer(
                turn.question, user=turn.user, thread=turn.thread, release=turn.release, patience=turn.patience
            )
        except TimeoutError:
            failed += 1
            continue
        view = people.opinion(dice, found=reply != app.UNKNOWN)
        if view is not None:
            rate(view.rating, thread=turn.thread, feedback=view.feedback)
    return asked, failed


def _drain(home: Path) -> Totals:
    from contextwrap.server.house import open_house  # noqa: PLC0415

    with open_house(home, carrying=False) as house:
        house.pipeline.drain()
        return house.store.totals()


def _empty(home: Path) -> None:
    if home.exists() and any(home.iterdir()):
        if not (home / _MARKER).exists():
            raise ConfigurationError(f"{home} holds something that is not a demo: choose another --home")
        shutil.rmtree(home)
    home.mkdir(parents=True, exist_ok=True, mode=0o700)
    (home / _MARKER).touch()


def run_demo(*, home: Path | None = None, serve: bool = True, host: str = "127.0.0.1", port: int = 8321) -> None:
    """Record the demo, print what it holds, and serve it unless told not to."""
    place = home or default_demo_home()
    if serve:
        _check_free(host, port)
    recorded = record_demo(place)
    totals = recorded.totals
    print(  # noqa: T201  the command's output
        f"Recorded {recorded.turns} turns of {totals.users} users in {recorded.seconds:.1f} s: "
        f"{totals.conversations} conversations, {totals.messages} messages, "
        f"{totals.positive} thumbs up, {totals.negative} thumbs down, {recorded.failed} turns that failed.\n"
        f"Home: {place}"
    )
    if serve:
        from contextwrap.server import run  # noqa: PLC0415

        run.serve(host=host, port=port, home=place)


def _check_free(host: str, port: int) -> None:
    """Say that the port is taken before a demo's worth of work, not after."""
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            taken = f"cannot listen on {host}:{port} ({error.strerror}): choose another --port"
            raise ConfigurationError(taken) from error
