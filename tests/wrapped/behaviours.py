"""What can be seen of a Runnable from outside, each as something to compare.

A behaviour gets a `Subject`: how to make the Runnable, bare or wrapped, as often as it is wanted, and what to ask it.
"""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from heart import Heart
from kinds import Kind, fresh
from plain import AsyncHost, Host, acame_of, came_of

Behaviour = Callable[["Subject"], Any]


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One kind, bare or wrapped."""

    kind: Kind
    wrapped: bool

    def make(self, heart: Heart) -> Any:
        """A fresh one."""
        bare = fresh(self.kind, heart)
        if not self.wrapped:
            return bare
        from contextwrap import wrap

        return wrap(bare)

    def config(self, **more: Any) -> Any:
        """The config that the kind needs, and more."""
        return {**(self.kind.config or {}), **more}

    def host_config(self, *handlers: Any) -> Any:
        """All that a host may say of a run."""
        return self.config(
            tags=["host"], metadata={"page": "/help"}, run_name="asked", callbacks=list(handlers), max_concurrency=1
        )


def failing() -> Heart:
    """A heart that fails always."""
    return Heart(error=ValueError("mine", 7))


def invoke(s: Subject) -> Any:
    heart = Heart()
    runnable = s.make(heart)
    return came_of(lambda: [runnable.invoke(one, s.config()) for one in (s.kind.asked, s.kind.again)]), heart.seen


def stream(s: Subject) -> Any:
    runnable = s.make(Heart())
    parts = came_of(lambda: list(runnable.stream(s.kind.asked, s.config())))
    return sorted(parts, key=str) if s.kind.concurrent else parts


def batch(s: Subject) -> Any:
    runnable = s.make(Heart())
    return came_of(lambda: runnable.batch([s.kind.asked, s.kind.again], s.config(max_concurrency=1)))


def batch_as_completed(s: Subject) -> Any:
    runnable = s.make(Heart())
    both = [s.kind.asked, s.kind.again]
    return came_of(lambda: sorted(runnable.batch_as_completed(both, s.config()), key=lambda one: one[0]))


def transform(s: Subject) -> Any:
    runnable = s.make(Heart())
    parts = came_of(lambda: list(runnable.transform(iter([s.kind.asked]), s.config())))
    return sorted(parts, key=str) if s.kind.concurrent else parts


def errors(s: Subject) -> Any:
    found = []
    both = [s.kind.asked, s.kind.again]
    for call in (
        lambda x: x.invoke(s.kind.asked, s.config()),
        lambda x: list(x.stream(s.kind.asked, s.config())),
        lambda x: list(x.transform(iter([s.kind.asked]), s.config())),
        lambda x: x.batch(both, s.config(max_concurrency=1)),
        lambda x: x.batch(both, s.config(max_concurrency=1), return_exceptions=True),
        lambda x: sorted(x.batch_as_completed(both, s.config(), return_exceptions=True), key=lambda one: one[0]),
    ):
        heart = failing()
        found.append(came_of(lambda call=call, heart=heart: call(s.make(heart)), heart.error))
    return found


def errors_of_input(s: Subject) -> Any:
    """An input that no kind can take."""
    return came_of(lambda: s.make(Heart()).invoke(object(), s.config()))


def unknown_argument(s: Subject) -> Any:
    return came_of(lambda: s.make(Heart()).invoke(s.kind.asked, s.config(), stop=["it"], temper="mild"))


def broken_off(s: Subject) -> Any:
    heart = Heart()
    parts = s.make(heart).stream(s.kind.asked, s.config())
    first = came_of(lambda: next(iter(parts)))
    parts.close()
    # Which branch is first is a race.
    return None if s.kind.concurrent else (first, heart.seen)


def closed_unread(s: Subject) -> Any:
    heart = Heart()
    s.make(heart).stream(s.kind.asked, s.config()).close()
    return heart.seen


def host_hears(s: Subject) -> Any:
    hosts = [Host(), Host(), Host(), Host()]
    runnable = s.make(Heart())
    config = [s.host_config(host) for host in hosts]
    came_of(lambda: runnable.invoke(s.kind.asked, config[0]))
    came_of(lambda: list(runnable.stream(s.kind.asked, config[1])))
    came_of(lambda: runnable.batch([s.kind.asked, s.kind.again], config[2]))
    if not s.kind.concurrent:  # Whether the other branch still ends is a race, bare as well.
        came_of(lambda: s.make(failing()).invoke(s.kind.asked, config[3]))
    return [sorted(host.heard, key=str) for host in hosts]


def order_heard(s: Subject) -> Any:
    host = Host()
    came_of(lambda: s.make(Heart()).invoke(s.kind.asked, s.host_config(host)))
    return sorted(one[:2] for one in host.heard) if s.kind.concurrent else [one[:2] for one in host.heard]


def concurrency(s: Subject) -> Any:
    found = []
    for limit in (1, 2):
        heart = Heart()
        runnable = s.make(heart)
        came_of(
            lambda runnable=runnable, limit=limit: runnable.batch([s.kind.asked] * 5, s.config(max_concurrency=limit))
        )
        found.append(heart.most <= limit)
    return found


def _round_trip(s: Subject, there_and_back: Callable[[Any], Any]) -> Any:
    return came_of(lambda: there_and_back(s.make(Heart())).invoke(s.kind.asked, s.config()))


def copied(s: Subject) -> Any:
    return _round_trip(s, copy.copy)


def deepcopied(s: Subject) -> Any:
    return _round_trip(s, copy.deepcopy)


def pickled(s: Subject) -> Any:
    return _round_trip(s, lambda x: pickle.loads(pickle.dumps(x)))


async def ainvoke(s: Subject) -> Any:
    heart = Heart()
    runnable = s.make(heart)
    return await acame_of(lambda: runnable.ainvoke(s.kind.asked, s.config())), heart.seen


async def _all(parts: Any) -> list[Any]:
    return [part async for part in parts]


async def astream(s: Subject) -> Any:
    parts = await acame_of(lambda: _all(s.make(Heart()).astream(s.kind.asked, s.config())))
    return sorted(parts, key=str) if s.kind.concurrent else parts


async def abatch(s: Subject) -> Any:
    both = [s.kind.asked, s.kind.again]
    return await acame_of(lambda: s.make(Heart()).abatch(both, s.config(max_concurrency=1)))


async def abatch_as_completed(s: Subject) -> Any:
    parts = await acame_of(lambda: _all(s.make(Heart()).abatch_as_completed([s.kind.asked, s.kind.again], s.config())))
    return sorted(parts, key=str)


async def _one(value: Any) -> Any:
    yield value


async def atransform(s: Subject) -> Any:
    parts = await acame_of(lambda: _all(s.make(Heart()).atransform(_one(s.kind.asked), s.config())))
    return sorted(parts, key=str) if s.kind.concurrent else parts


async def _events(runnable: Any, s: Subject) -> list[Any]:
    events = [event async for event in runnable.astream_events(s.kind.asked, s.config(tags=["host"]), version="v2")]
    for event in events:
        event["parent_ids"] = len(event["parent_ids"])
    return sorted(events, key=str) if s.kind.concurrent or s.kind.unordered else events


async def astream_events(s: Subject) -> Any:
    return await acame_of(lambda: _events(s.make(Heart()), s))


async def astream_log(s: Subject) -> Any:
    patches = await acame_of(lambda: _all(s.make(Heart()).astream_log(s.kind.asked, s.config())))
    if not (s.kind.concurrent or s.kind.unordered):
        return patches
    # Which branch goes on first decides how the steps fall into patches, and which of them begins the output.
    steps = [str(step) for patch in patches for step in patch]
    return sorted(step for step in steps if "'path': '/final_output" not in step)


async def aerrors(s: Subject) -> Any:
    found = []
    both = [s.kind.asked, s.kind.again]
    for call in (
        lambda x: x.ainvoke(s.kind.asked, s.config()),
        lambda x: _all(x.astream(s.kind.asked, s.config())),
        lambda x: _all(x.atransform(_one(s.kind.asked), s.config())),
        lambda x: _events(x, s),
        lambda x: x.abatch(both, s.config(max_concurrency=1)),
        lambda x: x.abatch(both, s.config(max_concurrency=1), return_exceptions=True),
    ):
        heart = failing()
        found.append(await acame_of(lambda call=call, heart=heart: call(s.make(heart)), heart.error))
    return found


async def cancelled(s: Subject) -> Any:
    found = []
    for call in (
        lambda x: x.ainvoke(s.kind.asked, s.config()),
        lambda x: _all(x.astream(s.kind.asked, s.config())),
        lambda x: x.abatch([s.kind.asked], s.config()),
    ):
        heart = Heart(hangs=True)
        task = asyncio.ensure_future(call(s.make(heart)))
        while "waits" not in heart.seen and not task.done():  # noqa: ASYNC110  the heart may beat in another loop
            await asyncio.sleep(0)
        task.cancel("enough")
        done, _ = await asyncio.wait([task], timeout=10)
        assert done, heart.seen
        reason = None
        try:
            task.result()
        except asyncio.CancelledError as error:
            reason = error.args
        except Exception as error:  # noqa: BLE001  whatever it is, is compared
            reason = error
        found.append((task.cancelled(), str(reason), heart.seen))
    return found


async def abroken_off(s: Subject) -> Any:
    heart = Heart()
    parts = s.make(heart).astream(s.kind.asked, s.config())
    first = await acame_of(lambda: anext(parts))
    await parts.aclose()
    # Whoever is left behind is finalised by the loop, a layer a turn.
    for _ in range(100):
        await asyncio.sleep(0)
    return None if s.kind.concurrent else (first, heart.seen)


async def ahost_hears(s: Subject) -> Any:
    return [await _aheard(s, host) for host in (Host, AsyncHost)]


async def _aheard(s: Subject, host: type[Any]) -> Any:
    hosts = [host(), host(), host(), host()]
    config = [s.host_config(one) for one in hosts]
    runnable, both = s.make(Heart()), [s.kind.asked, s.kind.again]
    await acame_of(lambda: runnable.ainvoke(s.kind.asked, config[0]))
    await acame_of(lambda: _all(runnable.astream(s.kind.asked, config[1])))
    await acame_of(lambda: runnable.abatch(both, config[2]))
    if not s.kind.concurrent:
        await acame_of(lambda: s.make(failing()).ainvoke(s.kind.asked, config[3]))
    return [sorted(one.heard, key=str) for one in hosts]


CALLS = [
    invoke, stream, batch, batch_as_completed, transform, errors, errors_of_input, unknown_argument, broken_off,
    closed_unread, host_hears, order_heard, concurrency, copied, deepcopied, pickled,
]  # fmt: skip
ACALLS = [
    ainvoke, astream, abatch, abatch_as_completed, atransform, astream_events, astream_log, aerrors, cancelled,
    abroken_off, ahost_hears,
]  # fmt: skip
