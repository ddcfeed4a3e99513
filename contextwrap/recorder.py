"""Recorder: listens to LangChain, collects one root run at a time and logs it as one turn.

State is kept per root run only (`runs`) and gone when the root ends. Handlers are called in the host's own
thread, so nothing here does more than dict work, until the root ends and the turn is appended to the outbox.

Once there is something to record anywhere in the process, the `Listener` hears every run through LangChain's
configure hook: only so is the whole chain around a wrapped model known, and every Runnable derived from it. A
root is logged when a session is around it, or when a run inside it carries a handler (`handler`).
"""

from __future__ import annotations

import asyncio
import functools
import os
import re
import sys
import time
import weakref
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self, TypeVar, cast

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.tracers.context import register_configure_hook

from contextwrap import transcript
from contextwrap.client import default_client, is_idle
from contextwrap.identity import Scope, Turn, current_scope, scope_var
from contextwrap.model import Message
from contextwrap.runs import Client, Root, Runs
from contextwrap.turns import Spoken, log_turn
from contextwrap.whose import WRAPPED, another, explicit, found, found_ids, in_headers

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from uuid import UUID

    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult

    from contextwrap.guard import Guard

Event = TypeVar("Event", bound="Callable[..., None]")


@dataclass(slots=True)
class Start:
    """What the start of a run tells of where it belongs; `here` is the session it begins in, `wants` who wants it."""

    # Not frozen: one is made for every run, and that would cost more than all that is done with it.

    key: int
    parent: int | None
    metadata: Mapping[str, Any]
    tags: list[str]
    here: Scope | None
    wants: tuple[Client, ...]

    def root(self) -> Root:
        """The run as a root; one in a session is wanted."""
        here = self.here
        identity = explicit(self.metadata)
        if here is not None:
            identity = identity.over(here.identity)
        identity = identity.over(found(self.metadata, self.tags))
        if here is None:
            scope = Scope(identity=identity, turn=Turn())
        else:
            scope = here if identity is here.identity else replace(here, identity=identity)
        root = Root(key=self.key, scope=scope, around=here, started_at=default_client().now())
        if hook.everywhere or (here is not None and here.asked):
            root.wanted[None] = None
        return root

    def apart(self, root: Root) -> bool:
        """Inside a run that nobody asked for, a session or a user of one's own begins a conversation."""
        if root.wanted:
            return False
        here = self.here
        if here is not None and here.asked and (root.around is None or here.identity is not root.around.identity):
            return True
        return bool(self.wants) and another(found_ids(self.metadata), root.scope.identity.over(found_ids({})))


def _guarded(event: Event) -> Event:
    """An event's handler whose failures are ours alone: counted under its name."""

    @functools.wraps(event)
    def heard(self: Recorder, *args: Any, **kwargs: Any) -> None:
        try:
            event(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001  the one shield
            self.guard.failed(event.__name__, error)

    return cast("Event", heard)


class Recorder(BaseCallbackHandler):
    """What hears LangChain's events; all recorders of the process share the open `runs`.

    `wants` are the clients that get the roots this recorder was given to on purpose.
    """

    raise_error = False
    # Plain attributes, where LangChain has properties: it asks before every event. Tools are asked for as agents.
    ignore_chain = ignore_chat_model = ignore_llm = ignore_retriever = ignore_agent = False
    ignore_custom_event = ignore_retry = True
    runs: ClassVar[Runs] = Runs()
    wants: tuple[Client, ...] = ()

    @property
    def guard(self) -> Guard:
        """What keeps our failures from the host."""
        return default_client().guard

    @property
    def run_inline(self) -> bool:  # type: ignore[override]  # a plain attribute there
        """True: a hop to an executor costs every ainvoke more than the whole chain.

        But not towards `AsyncCallbackManager.on_llm_start`, which drops that event for everybody else when any
        handler is inline (https://github.com/langchain-ai/langchain/issues/39633).
        """
        frame = sys._getframe(1)  # noqa: SLF001  no public way tells who asks
        # Before Python 3.12 a comprehension is a frame of its own.
        asking = frame.f_back if frame.f_code.co_name == "<listcomp>" and frame.f_back is not None else frame
        return asking.f_code.co_name != "on_llm_start"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    @_guarded
    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        tags: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """A chain begins: a root, or one below it."""
        # `map()` is no conversation: each of its inputs is one.
        rootable = not str(kwargs.get("name")).startswith("RunnableEach<")
        root, began = self._begin(self._start(run_id, parent_run_id, metadata, tags), rootable=rootable)
        if root is not None and began and root.key == run_id.int:
            root.streaming = _is_placeholder(inputs)
            root.said = None if root.streaming else transcript.said(inputs)

    @_guarded
    def on_chain_end(self, outputs: Any, *, run_id: UUID, inputs: Any = None, **_: Any) -> None:
        """A chain has ended; with the root the turn is complete."""
        root = self.runs.end(run_id.int, voice=self)
        if root is not None:
            if root.streaming and inputs is not None:
                root.said = transcript.said(inputs)
            # A sync stream that is broken off ends its root first, as if all were well.
            interrupted = root.streaming and bool(root.open)
            self._log(root, outputs, interrupted=interrupted)

    @_guarded
    def on_chain_error(self, error: BaseException, *, run_id: UUID, inputs: Any = None, **_: Any) -> None:
        """A chain has failed, was cancelled or abandoned."""
        root = self.runs.end(run_id.int, voice=self)
        if root is not None:
            if root.streaming and inputs is not None:
                root.said = transcript.said(inputs)
            self._fail(root, error)

    @_guarded
    def on_chat_model_start(
        self,
        serialized: dict[str, Any],
        messages: list[list[BaseMessage]],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        tags: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """A chat model is asked."""
        # The messages are as they are now, the list may grow.
        asked = functools.partial(transcript.rows, tuple(messages[0]) if messages else ())
        self._ask(run_id, self._start(run_id, parent_run_id, metadata, tags), asked, serialized, kwargs)

    @_guarded
    def on_llm_start(
        self,
        serialized: dict[str, Any],
        prompts: list[str],
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        tags: list[str] | None = None,
        **kwargs: Any,
    ) -> None:
        """A completion model is asked."""
        asked = functools.partial(_prompted, prompts)
        self._ask(run_id, self._start(run_id, parent_run_id, metadata, tags), asked, serialized, kwargs)

    def on_llm_new_token(self, token: object, *, run_id: UUID, **_: Any) -> None:
        """A model streams: kept in case the stream is broken off."""
        root = self.runs.told(run_id.int, self)
        if root is not None and isinstance(token, str):
            root.partial.append(token)

    @_guarded
    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        """A model has answered."""
        root = self.runs.told(run_id.int, self)
        if root is None:
            return
        metadata, params = root.prompted.pop(run_id.int, ({}, {}))
        root.completion = transcript.completion(response) or root.completion
        root.facts |= transcript.model_facts(response, metadata, params)
        for key, count in transcript.usage(response).items():
            root.usage[key] = root.usage.get(key, 0) + count
        if self.runs.end(run_id.int, voice=self) is not None:
            self._log(root, transcript.answer_message(response) or root.completion)

    @_guarded
    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """A model has failed, was cancelled or abandoned."""
        known = self.runs.told(run_id.int, self)
        if known is not None and not _broken_off(error):
            known.failures += 1
            known.partial.clear()
        root = self.runs.end(run_id.int, voice=self)
        if root is not None:
            self._fail(root, error)

    @_guarded
    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        tags: list[str] | None = None,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A tool is called; one that no chain called is nobody's conversation."""
        root, began = self._begin(self._start(run_id, parent_run_id, metadata, tags), rootable=False)
        if root is not None and began:
            name = (serialized or {}).get("name") or kwargs.get("name") or "tool"
            root.calls[run_id.int] = (str(name), input_str if inputs is None else inputs)

    @_guarded
    def on_tool_end(self, output: Any, *, run_id: UUID, **_: Any) -> None:
        """A tool has answered."""
        self._tool(run_id, output, failed=False)

    @_guarded
    def on_tool_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """A tool has failed."""
        self._tool(run_id, f"{type(error).__name__}: {error}", failed=True)

    @_guarded
    def on_retriever_start(
        self,
        serialized: dict[str, Any] | None,
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        tags: list[str] | None = None,
        **_: Any,
    ) -> None:
        """A retriever searches: known only so that what runs below it finds its root."""
        self._begin(self._start(run_id, parent_run_id, metadata, tags), rootable=False)

    def on_retriever_end(self, documents: Any, *, run_id: UUID, **_: Any) -> None:
        """A retriever has found."""
        self.runs.end(run_id.int, voice=self)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """A retriever has failed."""
        self.runs.end(run_id.int, voice=self)

    def _start(
        self, run_id: UUID, parent: UUID | None, metadata: Mapping[str, Any] | None, tags: list[str] | None
    ) -> Start:
        wants = self.wants
        if metadata and WRAPPED in metadata:
            # It carries no handler, and says that it would.
            wants = (*wants, None)
        above = None if parent is None else parent.int
        return Start(run_id.int, above, metadata or {}, tags or [], scope_var.get(), wants)

    def _begin(self, start: Start, *, rootable: bool) -> tuple[Root | None, bool]:
        """The root that a run belongs to, perhaps itself; and whether the run begins with this event."""
        if start.here is not None:
            start.here.activity.note()
        make = start.root if rootable else None
        root, began = self.runs.begin(start.key, start.parent, voice=self, make=make, apart=start.apart)
        if root is None:
            return None, False
        for client in start.wants:
            root.wanted[client] = None
        if root.key != start.key:
            if began or start.wants:
                _learn(root, start)
        elif began:
            for lost in self.runs.overdue():
                self._log(lost, None, interrupted=True)
        return root, began

    def _ask(
        self,
        run_id: UUID,
        start: Start,
        asked: Callable[[], tuple[Message, ...]],
        serialized: Mapping[str, Any] | None,
        kwargs: Mapping[str, Any],
    ) -> None:
        root, began = self._begin(start, rootable=True)
        if root is None or not began:
            return
        params = kwargs.get("invocation_params") or {}
        root.prompted[start.key] = (start.metadata, params)
        if root.scope.identity.user_id is None:
            identity = root.scope.identity.over(in_headers(params, serialized))
            if identity is not root.scope.identity:
                root.scope = replace(root.scope, identity=identity)
        # Tokens are those of the model that speaks now.
        root.partial.clear()
        if root.asked is None:
            root.asked = asked
        if root.key == start.key:
            self._watch(root, run_id)

    def _watch(self, root: Root, run_id: UUID) -> None:
        """A cancelled model call ends no run: the end of its task has to, or that of the run's own id.

        LangChain keeps the id object for as long as the call is under way, and nobody else needs to.
        """
        try:
            task = asyncio.current_task()
        except RuntimeError:
            return
        if task is None:
            return

        def over(_: object = None) -> None:
            with self.guard("task end"):
                if self.runs.close(root):
                    self._log(root, None, interrupted=True)

        loop = task.get_loop()

        def gone(_: object) -> None:
            # Whatever code happens to run now has to be left before anything is recorded.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(over)

        root.watched = weakref.ref(run_id, gone)
        # `abatch` starts its runs in tasks of the callback manager's own, over before the run has begun.
        if not _managers_own(task):
            task.add_done_callback(over)
            root.unwatch = functools.partial(task.remove_done_callback, over)

    def _tool(self, run_id: UUID, result: object, *, failed: bool) -> None:
        root = self.runs.told(run_id.int, self)
        if root is not None:
            name, call = root.calls.pop(run_id.int, ("tool", None))
            if len(root.tools) == MAX_TOOLS:
                # A loop that runs for days inside one run must not grow for days.
                self.guard.lost(f"cut: more than {MAX_TOOLS} tool calls in one turn")
                del root.tools[0]
            root.tools.append(transcript.tool_row(name=name, call=call, result=result, failed=failed))
        self.runs.end(run_id.int, voice=self)

    def _fail(self, root: Root, error: BaseException) -> None:
        if _broken_off(error):
            self._log(root, None, interrupted=True)
        else:
            self._log(root, None, error=error)

    def _log(
        self, root: Root, outputs: object, *, interrupted: bool = False, error: BaseException | None = None
    ) -> None:
        """Log the turn for all who want it; a root that nobody asked for is forgotten."""
        if not root.wanted:
            return
        attempts = max(root.attempts, root.failures + (error is None))
        if interrupted:
            answer: str | None = "".join(root.partial)
        elif error is not None:
            answer = None
        else:
            answer = transcript.answered(outputs) if outputs is not None else root.completion or None
        failed = () if error is None else (transcript.error_row(error, attempts=attempts),)
        spoken = Spoken(
            heard=_heard(root),
            between=(*root.tools, *transcript.calls(outputs), *failed),
            answer=None if answer is None else _answer(root, answer, interrupted=interrupted, attempts=attempts),
            source=transcript.source(outputs),
        )
        clients = [client or default_client() for client in root.wanted]
        log_turn(spoken, root.scope, begun_at=root.started_at, clients=clients)


def _learn(root: Root, start: Start) -> None:
    """What a run below says of whose the root is: all of it from one that is wanted itself, else only ids."""
    if start.tags:
        root.attempts = max(root.attempts, _attempt(tuple(start.tags)))
    scope = root.scope
    here = start.here
    if here is not None and root.around is None and here.turn is not scope.turn:
        # A session that begins inside the root is the root's, its ratings too.
        scope = replace(scope, turn=here.turn, identity=scope.identity.over(here.identity))
    identity = scope.identity
    if start.wants:
        identity = identity.over(found(start.metadata, start.tags))
        if start.metadata:
            identity = explicit(start.metadata).over(identity)
    elif root.wanted and (identity.user_id is None or identity.thread_id is None):
        identity = identity.over(found_ids(start.metadata))
    if identity is not scope.identity:
        scope = replace(scope, identity=identity)
    root.scope = scope


@functools.lru_cache(maxsize=1024)
def _attempt(tags: tuple[str, ...]) -> int:
    """Which attempt of a retried run it is, by LangChain's own tags; the first without any."""
    return max([int(tag.rpartition(":")[2]) for tag in tags if _ATTEMPT.fullmatch(tag)], default=1)


class Listener(Recorder):
    """Hears everything, and wants nothing for itself."""

    def __reduce__(self) -> str:
        return "listener"


class Hook:
    """Answers LangChain's question for an ambient handler: the listener, once there may be anything to record.

    `listening` since something can carry a handler, `everywhere` when the whole process is instrumented, `apart`
    when some handler has a client of its own, which records whatever the default one does.
    """

    def __init__(self) -> None:
        self.listening = False
        self.everywhere = False
        self.apart = False

    def get(self) -> Listener | None:
        """The listener or None, as a ContextVar of LangChain's would."""
        if is_idle() and not self.apart:
            return None
        return listener if self.listening or self.everywhere or current_scope() is not None else None


def _heard(root: Root) -> tuple[Message, ...]:
    if root.said is not None:
        return root.said
    return root.asked() if root.asked is not None else ()


def _answer(root: Root, text: str, *, interrupted: bool, attempts: int) -> Message:
    facts = dict(root.facts)
    facts |= {key: str(count) for key, count in root.usage.items()}
    facts["latency_ms"] = str(round((time.monotonic() - root.started) * 1000))
    if attempts > 1:
        facts["attempts"] = str(attempts)
    if interrupted:
        facts["interrupted"] = "true"
    return Message(role="assistant", message=text, metadata=facts)


def _prompted(prompts: list[str]) -> tuple[Message, ...]:
    return tuple(Message(role="user", message=prompt) for prompt in prompts[:1])


def _is_placeholder(inputs: object) -> bool:
    """Whether a stream has begun whose input is yet to come; compared with care, for inputs may be arrays."""
    match inputs:
        case {"input": str(text), **more}:
            return not text and not more
    return False


def _managers_own(task: asyncio.Task[Any]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and code.co_filename.endswith(("callbacks/manager.py", "callbacks\\manager.py"))


def _broken_off(error: BaseException) -> bool:
    """Whether nobody waits for the answer any more: an abandoned stream or a cancelled task is no failure."""
    return isinstance(error, (GeneratorExit, asyncio.CancelledError))


def _in_child() -> None:
    """In a child of fork: open runs are the parent's, and so are locks that its threads held."""
    Recorder.runs = Runs()


MAX_TOOLS: Final = 500
_ATTEMPT: Final = re.compile(r"retry:attempt:\d{1,9}")
listener: Final = Listener()
hook: Final = Hook()
# No listener where a handler of ours hears the run already, and all runs below it.
register_configure_hook(cast("Any", hook), inheritable=True, handle_class=Recorder)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
