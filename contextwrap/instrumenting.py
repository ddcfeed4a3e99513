"""instrument: record everything LangChain runs in this process, and carry sessions into bare threads.

Python's ContextVars do not reach a `Thread` or a `ThreadPoolExecutor`: `in_session` carries the session for one
function, `instrument(threads=True)` for all. Only the session goes along, no other ContextVar of the host's.
"""

from __future__ import annotations

import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import wrapt

from contextwrap.identity import Identity, Scope, Turn, current_scope
from contextwrap.recorder import hook
from contextwrap.runs import ambient_parent
from contextwrap.streams import entered

if TYPE_CHECKING:
    from collections.abc import Callable

P = ParamSpec("P")
R = TypeVar("R")


def in_session(function: Callable[P, R]) -> Callable[P, R]:
    """The function, to be run in another thread as if it ran here: in this session, below this run of LangChain's.

    For whoever starts threads: `pool.submit(in_session(ask), question)`. Outside of both it is the function itself.
    """
    scope, parent = current_scope(), ambient_parent()
    if scope is None and parent is None:
        return function
    # Without a session there is nobody to name, only the run to belong to.
    here = (scope or Scope(identity=Identity(), turn=Turn(), asked=False)).below(parent)

    @functools.wraps(function)
    def inside(*args: P.args, **kwargs: P.kwargs) -> R:
        with entered(here):
            return function(*args, **kwargs)

    return inside


def instrument(*, threads: bool = False) -> None:
    """Record every root run of LangChain's in this process, wrapped or not, with no other change to the app.

    With `threads` what is started as a Thread or submitted to a ThreadPoolExecutor works in the session it was
    started in, for as long as it runs: a worker for all users that is first started inside one user's session
    needs `threading.Thread.start` called outside of it. `uninstrument` takes both back.
    """
    hook.everywhere = True
    if threads:
        for owner, name, carried in _CARRIED:
            if not isinstance(owner.__dict__[name], wrapt.FunctionWrapper):
                setattr(owner, name, wrapt.FunctionWrapper(owner.__dict__[name], carried))


def uninstrument() -> None:
    """Record only what is wrapped or in a session again."""
    hook.everywhere = False
    for owner, name, _ in _CARRIED:
        carried = owner.__dict__[name]
        if isinstance(carried, wrapt.FunctionWrapper):
            setattr(owner, name, carried.__wrapped__)


def _start(wrapped: Callable[[], None], thread: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    run = thread.run
    # A pool's own thread works for whoever submits: `_submit` carries each.
    of_a_pool = getattr(getattr(thread, "_target", None), "__module__", None) == "concurrent.futures.thread"
    carried = run if of_a_pool else in_session(run)
    if carried is not run:

        def once() -> None:
            # As Thread.run forgets its target: a thread that holds itself is never freed.
            del thread.run
            carried()

        thread.run = once
    wrapped(*args, **kwargs)


def _submit(wrapped: Callable[..., Any], _: object, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if not args:
        return wrapped(*args, **kwargs)
    return wrapped(in_session(args[0]), *args[1:], **kwargs)


_CARRIED: Final = ((threading.Thread, "start", _start), (ThreadPoolExecutor, "submit", _submit))
