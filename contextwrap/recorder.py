"""ContextCallbackHandler: collects one root run at a time and hands it to the client as one turn.

State is kept per root run only (`runs`) and gone when the root ends. Handlers are called in the host's own
thread, so nothing here does more than dict work, until the root ends and the turn is appended to the outbox.
"""

from __future__ import annotations

import asyncio
import os
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, cast
from weakref import WeakKeyDictionary, WeakSet

from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.runnables.config import var_child_runnable_config
from langchain_core.tracers.context import register_configure_hook

from contextwrap import transcript
from contextwrap.client import ContextWrap, configure, default_client, is_configured
from contextwrap.heard import Heard
from contextwrap.identity import Identity, Scope, Turn, current_scope
from contextwrap.ids import new_id
from contextwrap.model import Conversation, Message
from contextwrap.runs import Root, Runs

if TYPE_CHECKING:
    from pathlib import Path
    from uuid import UUID

    from langchain_core.messages import BaseMessage
    from langchain_core.outputs import LLMResult

Handler = TypeVar("Handler", bound="ContextCallbackHandler")

USER_KEYS: Final = ("user_id",)
THREAD_KEYS: Final = ("thread_id", "session_id", "conversation_id")


class ContextCallbackHandler(BaseCallbackHandler):
    """LangChain's callback handler for contextwrap.

    Without arguments it is the one shared handler, and every such call answers the same instance. With a
    token or endpoint it configures the default client, if nothing has yet, or else has a client of its own.
    `verbose` is accepted for the old class's sake. Raises ConfigurationError for settings that cannot work.
    """

    raise_error = False

    def __new__(
        cls,
        token: str | None = None,
        verbose: bool = False,  # noqa: FBT001, FBT002  the old class's own signature
        *,
        endpoint: str | None = None,
        home: str | Path | None = None,
    ) -> Self:
        """The shared handler, or one for other settings."""
        if token is None and endpoint is None and home is None:
            return _shared_for(cls)
        if not is_configured():
            configure(token=token, endpoint=endpoint, home=home)
            return _shared_for(cls)
        client = ContextWrap(token=token, endpoint=endpoint, home=home)
        if client.settings == default_client().settings:
            return _shared_for(cls)
        return _make(cls, client)

    def __init__(
        self,
        token: str | None = None,
        verbose: bool = False,  # noqa: FBT001, FBT002  the old class's own signature
        *,
        endpoint: str | None = None,
        home: str | Path | None = None,
    ) -> None:
        """All is done in `__new__`: the shared handler must not begin anew."""

    _client: ContextWrap | None
    _runs: Runs
    _heard: WeakKeyDictionary[ContextWrap, Heard]

    @property
    def client(self) -> ContextWrap:
        """Where the turns go: this handler's own client, or the default one as it is now."""
        return self._client or default_client()

    @property
    def run_inline(self) -> bool:  # type: ignore[override]  # a plain attribute there
        """True: a hop to an executor costs every ainvoke more than the whole chain.

        But not towards `AsyncCallbackManager.on_llm_start`, which drops that event for everybody else when any
        handler is inline (https://github.com/langchain-ai/langchain/issues/39633).
        """
        return sys._getframe(1).f_code.co_name != "on_llm_start"  # noqa: SLF001  no public way tells who asks

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return (type(self), ())

    def on_chain_start(
        self,
        serialized: dict[str, Any] | None,
        inputs: Any,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        metadata: dict[str, Any] | None = None,
        tags: list[str] | None = None,
        **_: Any,
    ) -> None:
        """A chain begins: a root, or one below it."""
        with self.client.guard("on_chain_start"):
            root = self._begin(run_id, parent_run_id, metadata, tags, rootable=True)
            if root is not None and root.run_id == run_id:
                root.streaming = _is_placeholder(inputs)
                root.said = None if root.streaming else transcript.said(inputs)

    def on_chain_end(self, outputs: Any, *, run_id: UUID, inputs: Any = None, **_: Any) -> None:
        """A chain has ended; with the root the turn is complete."""
        with self.client.guard("on_chain_end"):
            root = self._runs.end(run_id)
            if root is not None:
                if root.streaming and inputs is not None:
                    root.said = transcript.said(inputs)
                # A sync stream that is broken off ends its root first, as if all were well.
                interrupted = root.streaming and bool(root.open)
                self._record(root, outputs, interrupted=interrupted)

    def on_chain_error(self, error: BaseException, *, run_id: UUID, inputs: Any = None, **_: Any) -> None:
        """A chain has failed, was cancelled or abandoned."""
        with self.client.guard("on_chain_error"):
            root = self._runs.end(run_id)
            if root is not None:
                if root.streaming and inputs is not None:
                    root.said = transcript.said(inputs)
                self._fail(root, error)

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
        with self.client.guard("on_chat_model_start"):
            asked = transcript.rows(messages[0]) if messages else ()
            self._ask(run_id, parent_run_id, metadata, tags, asked, kwargs)

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
        with self.client.guard("on_llm_start"):
            asked = tuple(Message(role="user", message=prompt) for prompt in prompts[:1])
            self._ask(run_id, parent_run_id, metadata, tags, asked, kwargs)

    def on_llm_new_token(self, token: object, *, run_id: UUID, **_: Any) -> None:
        """A model streams: kept in case the stream is broken off."""
        root = self._runs.of(run_id)
        if root is not None and isinstance(token, str):
            root.partial.append(token)

    def on_llm_end(self, response: LLMResult, *, run_id: UUID, **_: Any) -> None:
        """A model has answered."""
        with self.client.guard("on_llm_end"):
            root = self._runs.of(run_id)
            if root is None:
                return
            metadata, params = root.prompted.pop(run_id, ({}, {}))
            root.completion = transcript.completion(response) or root.completion
            root.facts |= transcript.model_facts(response, metadata, params)
            for key, count in transcript.usage(response).items():
                root.usage[key] = root.usage.get(key, 0) + count
            if self._runs.end(run_id) is not None:
                self._record(root, transcript.answer_message(response) or root.completion)

    def on_llm_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """A model has failed, was cancelled or abandoned."""
        with self.client.guard("on_llm_error"):
            known = self._runs.of(run_id)
            if known is not None and not _broken_off(error):
                known.failures += 1
                known.partial.clear()
            root = self._runs.end(run_id)
            if root is not None:
                self._fail(root, error)

    def on_tool_start(
        self,
        serialized: dict[str, Any] | None,
        input_str: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        inputs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """A tool is called; one that no chain called is nobody's conversation."""
        with self.client.guard("on_tool_start"):
            root = self._begin(run_id, parent_run_id, None, None, rootable=False)
            if root is not None:
                name = (serialized or {}).get("name") or kwargs.get("name") or "tool"
                root.calls[run_id] = (str(name), input_str if inputs is None else inputs)

    def on_tool_end(self, output: Any, *, run_id: UUID, **_: Any) -> None:
        """A tool has answered."""
        with self.client.guard("on_tool_end"):
            self._tool(run_id, output, failed=False)

    def on_tool_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """A tool has failed."""
        with self.client.guard("on_tool_error"):
            self._tool(run_id, f"{type(error).__name__}: {error}", failed=True)

    def on_retriever_start(
        self,
        serialized: dict[str, Any] | None,
        query: str,
        *,
        run_id: UUID,
        parent_run_id: UUID | None = None,
        **_: Any,
    ) -> None:
        """A retriever searches: known only so that what runs below it finds its root."""
        with self.client.guard("on_retriever_start"):
            self._begin(run_id, parent_run_id, None, None, rootable=False)

    def on_retriever_end(self, documents: Any, *, run_id: UUID, **_: Any) -> None:
        """A retriever has found."""
        self._runs.end(run_id)

    def on_retriever_error(self, error: BaseException, *, run_id: UUID, **_: Any) -> None:
        """A retriever has failed."""
        self._runs.end(run_id)

    def _begin(
        self,
        run_id: UUID,
        parent: UUID | None,
        metadata: Mapping[str, Any] | None,
        tags: list[str] | None,
        *,
        rootable: bool,
    ) -> Root | None:
        """The root that `run_id` belongs to, perhaps itself; None for a run of no conversation."""

        def make() -> Root:
            return Root(run_id=run_id, scope=_scope(metadata, tags), started_at=self.client.now())

        root = self._runs.begin(run_id, parent, make=make if rootable else None)
        if root is not None and root.run_id == run_id:
            for lost in self._runs.overdue():
                self._record(lost, None, interrupted=True)
        return root

    def _ask(
        self,
        run_id: UUID,
        parent: UUID | None,
        metadata: Mapping[str, Any] | None,
        tags: list[str] | None,
        asked: tuple[Message, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        root = self._begin(run_id, parent, metadata, tags, rootable=True)
        if root is None:
            return
        params = kwargs.get("invocation_params") or {}
        root.prompted[run_id] = (metadata or {}, params)
        root.scope = _with_headers(root.scope, params)
        # Tokens are those of the model that speaks now.
        root.partial.clear()
        if not root.asked:
            root.asked = asked
        if root.run_id == run_id:
            root.said = asked
            self._watch(root)

    def _watch(self, root: Root) -> None:
        """A cancelled model call ends no run: its task's end has to."""
        try:
            task = asyncio.current_task()
        except RuntimeError:
            return
        # `abatch` starts its runs in tasks of the callback manager's own, over before the run has begun.
        if task is None or _managers_own(task):
            return

        def over(_: asyncio.Task[Any]) -> None:
            with self.client.guard("task end"):
                if self._runs.end(root.run_id) is not None:
                    self._record(root, None, interrupted=True)

        task.add_done_callback(over)
        root.unwatch = lambda: task.remove_done_callback(over)

    def _tool(self, run_id: UUID, result: object, *, failed: bool) -> None:
        root = self._runs.of(run_id)
        if root is not None:
            name, call = root.calls.pop(run_id, ("tool", None))
            root.tools.append(transcript.tool_row(name=name, call=call, result=result, failed=failed))
        self._runs.end(run_id)

    def _fail(self, root: Root, error: BaseException) -> None:
        if _broken_off(error):
            self._record(root, None, interrupted=True)
        else:
            self._record(root, None, error=error)

    def _record(
        self, root: Root, outputs: object, *, interrupted: bool = False, error: BaseException | None = None
    ) -> None:
        """Hand the turn to the client: what is new of what was said, the tools, then the answer or the error."""
        scope = root.scope
        heard = root.said if root.said is not None else root.asked
        if interrupted:
            answer: str | None = "".join(root.partial)
        elif error is not None:
            answer = None
        else:
            answer = transcript.answered(outputs) if outputs is not None else root.completion or None
        last = () if error is not None or answer is None else (self._answer(root, answer, interrupted=interrupted),)
        failed = () if error is None else (transcript.error_row(error),)
        thread = scope.identity.thread_id or new_id()
        # What another client was told, this one has not heard.
        memory = self._heard.setdefault(self.client, Heard())
        news = memory.news(thread, heard, (*root.tools, *last)) if scope.identity.thread_id else heard
        begun = (replace(item, event_timestamp=root.started_at) for item in news)
        messages = (*begun, *root.tools, *transcript.calls(outputs), *failed, *last)
        if not messages:
            return
        kept = self.client.record(Conversation(id=thread, metadata=_conversation_metadata(root), messages=messages))
        if kept is not None and last:
            self._remember_answer(scope, thread, kept.messages[-1])

    def _answer(self, root: Root, answer: str, *, interrupted: bool) -> Message:
        facts = dict(root.facts)
        facts |= {key: str(count) for key, count in root.usage.items()}
        facts["latency_ms"] = str(round((time.monotonic() - root.started) * 1000))
        if root.failures:
            facts["attempts"] = str(root.failures + 1)
        if interrupted:
            facts["interrupted"] = "true"
        return Message(role="assistant", message=answer, metadata=facts)

    def _remember_answer(self, scope: Scope, thread: str, answer: Message) -> None:
        early, scope.turn.early = scope.turn.early, None
        scope.turn.answer_id = answer.id
        if early is not None:
            self.client.rate(early[0], message=answer.id, thread=thread, feedback=early[1])


def shared_handler() -> ContextCallbackHandler:
    """The one handler that everything wrapped shares."""
    return ContextCallbackHandler()


def _make(cls: type[Handler], client: ContextWrap | None) -> Handler:
    handler = object.__new__(cls)
    handler._client = client
    handler._runs = Runs()
    handler._heard = WeakKeyDictionary()
    _living.add(handler)
    return handler


def _shared_for(cls: type[Handler]) -> Handler:
    with _making:
        if cls not in _shared:
            _shared[cls] = _make(cls, None)
        return cast("Handler", _shared[cls])


def _is_placeholder(inputs: object) -> bool:
    """Whether a stream has begun whose input is yet to come; compared with care, for inputs may be arrays."""
    match inputs:
        case {"input": str(text), **more}:
            return not text and not more
    return False


def _scope(metadata: Mapping[str, Any] | None, tags: list[str] | None) -> Scope:
    """Whose run this is, read once at its start: session > run metadata > configurable."""
    around = current_scope()
    config = var_child_runnable_config.get() or {}
    places = (metadata or {}, config.get("configurable") or {})
    found = Identity(user_id=_first(USER_KEYS, places), thread_id=_first(THREAD_KEYS, places), tags=tuple(tags or ()))
    if around is None:
        return Scope(identity=found, turn=Turn())
    return Scope(identity=around.identity.over(found), turn=around.turn)


def _with_headers(scope: Scope, params: Mapping[str, Any]) -> Scope:
    """The scope, with the user from the model's own headers when nobody else has said who it is."""
    headers = params.get("extra_headers") or params.get("headers")
    user = _first(USER_KEYS, (headers,)) if isinstance(headers, Mapping) else None
    if user is None or scope.identity.user_id is not None:
        return scope
    return replace(scope, identity=replace(scope.identity, user_id=user))


def _first(keys: tuple[str, ...], places: tuple[Mapping[str, Any], ...]) -> str | None:
    for place in places:
        for key in keys:
            if place.get(key) is not None:
                return str(place[key])
    return None


def _conversation_metadata(root: Root) -> dict[str, str]:
    identity = root.scope.identity
    metadata = {key: str(value)[:4096] for key, value in identity.metadata.items()}
    if identity.user_id is not None:
        metadata["user_id"] = identity.user_id
    if identity.tags:
        metadata["tags"] = ",".join(identity.tags)
    if "model" in root.facts:
        metadata.setdefault("model", root.facts["model"])
    return metadata


def _managers_own(task: asyncio.Task[Any]) -> bool:
    code = getattr(task.get_coro(), "cr_code", None)
    return code is not None and code.co_filename.endswith(("callbacks/manager.py", "callbacks\\manager.py"))


def _broken_off(error: BaseException) -> bool:
    """Whether nobody waits for the answer any more: an abandoned stream or a cancelled task is no failure."""
    return isinstance(error, (GeneratorExit, asyncio.CancelledError))


class _SessionHook:
    """Answers LangChain's question for an ambient handler: ours, inside a session."""

    def get(self) -> ContextCallbackHandler | None:
        return shared_handler() if current_scope() is not None else None


def _in_child() -> None:
    """In a child of fork: open runs are the parent's, and so are locks that its threads held."""
    for handler in list(_living):
        handler._runs = Runs()  # noqa: SLF001
        handler._heard = WeakKeyDictionary()  # noqa: SLF001


_making = threading.Lock()
_shared: dict[type[Any], Any] = {}
_living: WeakSet[ContextCallbackHandler] = WeakSet()
_hook: Any = _SessionHook()
register_configure_hook(_hook, inheritable=True)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
