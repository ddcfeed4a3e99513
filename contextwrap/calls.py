"""A tracked call is itself the conversation when LangChain has no part in it: its texts in, its result out.

Knows arguments and results; nothing of how the call is made or how long its result is read.
"""

from __future__ import annotations

import asyncio
import codecs
import dataclasses
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from langchain_core.agents import AgentFinish
from langchain_core.messages import BaseMessage

from contextwrap import responses, transcript
from contextwrap.client import default_client
from contextwrap.identity import current_scope
from contextwrap.model import Message
from contextwrap.recorder import Recorder
from contextwrap.turns import Spoken, log_turn

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from datetime import datetime

    from contextwrap.identity import Scope
    from contextwrap.runs import Root


@dataclass(slots=True, kw_only=True)
class Call:
    """One call under way: what it was asked, and what it has answered so far. `began` is monotonic, in seconds."""

    scope: Scope
    asked: tuple[Message, ...]
    around: Root | None
    begun_at: datetime
    began: float = field(default_factory=time.monotonic)
    media_type: str | None = None
    over: bool = False
    _parts: list[str] = field(default_factory=list)
    _decoder: codecs.IncrementalDecoder = field(default_factory=codecs.getincrementaldecoder("utf-8"))
    _binary: bool = False

    def took(self, chunk: object) -> None:
        """The reader of its stream gets a chunk."""
        if self._recorded_otherwise() or self._binary or self.over:
            self._parts.clear()
            return
        with default_client().guard("track_context"):
            if self.media_type is not None and not responses.is_readable(self.media_type):
                return
            if isinstance(chunk, str):
                self._parts.append(chunk)
            elif isinstance(chunk, BaseMessage):
                self._parts.append(transcript.text_of(chunk))
            elif isinstance(chunk, (bytes, bytearray, memoryview)):
                self._decode(bytes(chunk))

    def returned(self, result: object) -> None:
        """It is over, its stream too."""
        self._end(lambda: self._told() or _answer(result))

    def raised(self, error: BaseException) -> None:
        """It failed, was cancelled, or its stream was abandoned."""
        if isinstance(error, (GeneratorExit, asyncio.CancelledError)):
            self._end(self._told, interrupted=True)
        else:
            self._end(lambda: None, error=error)

    def _told(self) -> str:
        text = "".join(self._parts)
        return text if self.media_type is None else responses.told(self.media_type, text)

    def _decode(self, data: bytes) -> None:
        try:
            self._parts.append(self._decoder.decode(data))
        except UnicodeDecodeError:
            self._binary = True

    def _recorded_otherwise(self) -> bool:
        """Whether something in here was recorded, or the run around it is going to be."""
        return self.scope.activity.any or (self.around is not None and bool(self.around.wanted))

    def _end(
        self, answer: Callable[[], str | None], *, interrupted: bool = False, error: BaseException | None = None
    ) -> None:
        if self.over:
            return
        self.over = True
        self._log(answer, interrupted=interrupted, error=error)
        # A stream may be read when the session it was made in is over.
        if self.scope.activity.outer is None or current_scope() is None:
            default_client().call_over()

    def _log(self, answer: Callable[[], str | None], *, interrupted: bool, error: BaseException | None) -> None:
        with default_client().guard("track_context"):
            if self._recorded_otherwise() or self.scope.identity.capture == "off":
                return
            text = answer()
            if not self.asked and not text:
                return
            facts = {"latency_ms": str(round((time.monotonic() - self.began) * 1000))}
            if interrupted:
                facts["interrupted"] = "true"
            row = Message(role="assistant", message=text or "", metadata=facts) if text or interrupted else None
            failed = () if error is None else (transcript.error_row(error),)
            spoken = Spoken(heard=self.asked, between=failed, answer=row)
            log_turn(spoken, self.scope, begun_at=self.begun_at)
            self.scope.activity.note()


def begin(scope: Scope, arguments: Mapping[str, Any], *, apart_from: frozenset[str]) -> Call:
    """A call with these arguments by name; those of `apart_from` say whose it is, and are nothing said."""
    asked: tuple[Message, ...] = ()
    if scope.identity.capture != "off":
        with default_client().guard("track_context"):
            asked = tuple(_asked(arguments, apart_from))
    return Call(scope=scope, asked=asked, around=Recorder.runs.around(), begun_at=default_client().now())


def _asked(arguments: Mapping[str, Any], apart_from: frozenset[str]) -> Iterator[Message]:
    given = [(name, value) for name, value in _flat(arguments) if value is not None and name not in apart_from]
    named = [(name, value) for name, value in given if name in _NAMES]
    for name, value in named or given:
        if name in _NAMES or not _only_strings(value):
            yield from (row for row in transcript.said(value) or () if row.message or row.type != "message")


def _flat(arguments: Mapping[str, Any]) -> Iterable[tuple[str, Any]]:
    """Arguments by name; those of *args and **kwargs one by one."""
    for name, value in arguments.items():
        if name == "args" and isinstance(value, tuple):
            yield from (("", one) for one in value)
        elif name == "kwargs" and isinstance(value, dict):
            yield from value.items()
        elif name not in {"self", "cls"}:
            yield name, value


def _only_strings(value: object) -> bool:
    """Whether it is a list of plain strings: labels, names, paths; messages are hardly ever written so."""
    return isinstance(value, (list, tuple)) and all(isinstance(item, str) for item in value)


def _answer(result: object) -> str | None:
    result = responses.answer_in_flask(result)
    if responses.is_response(result):
        result = responses.body(result)
    return transcript.answered(result) if _says(result) else None


def _says(result: object) -> bool:
    """Whether it holds something to tell: bytes and opaque objects do not."""
    structured = dataclasses.is_dataclass(result) or hasattr(type(result), "model_fields")
    return structured or isinstance(result, (str, int, float, list, tuple, Mapping, BaseMessage, AgentFinish))


_NAMES: Final = frozenset({"messages", *transcript.INPUT_KEYS})
