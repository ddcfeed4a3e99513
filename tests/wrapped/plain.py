"""What two runs have in common: values without ids, times and addresses; and a handler that notes what it hears."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from langchain_core.callbacks import AsyncCallbackHandler, BaseCallbackHandler
from langchain_core.load import Serializable
from langchain_core.messages import BaseMessage
from langchain_core.tracers.log_stream import RunLogPatch
from pydantic import BaseModel

_OF_ONE_RUN = (
    (re.compile(r"[0-9a-f]{8}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{4}-?[0-9a-f]{12}"), "<id>"),
    (re.compile(r"\b0x[0-9a-f]+"), "<at>"),
    (re.compile(r"\d{4}-\d\d-\d\dT[\d:.+]+"), "<time>"),
    # LangChain shows a model's callbacks in its repr, and that to every handler when the model is not serializable.
    (re.compile(r"callbacks=\[<contextwrap[^]]*>\](?:, | )?"), ""),
)
EVENTS = [name for name in dir(BaseCallbackHandler) if name.startswith("on_")]


def plain(value: Any) -> Any:
    """`value` as it is in every run of the same code; what has no parts is its repr."""
    match value:
        case str():
            return _without_what_is_of_one_run(value)
        case None | bool() | int() | float():
            return value
        case Mapping():
            return {plain(str(key)): plain(item) for key, item in value.items()}
        case list() | tuple():
            return [plain(item) for item in value]
        case set() | frozenset():
            return sorted(map(str, map(plain, value)))
    return _parts(value)


def _parts(value: Any) -> Any:
    if isinstance(value, RunLogPatch):
        return plain(value.ops)
    if isinstance(value, BaseException):
        return [type(value).__name__, plain(value.args)]
    if isinstance(value, BaseMessage) or (isinstance(value, BaseModel) and not isinstance(value, Serializable)):
        return [type(value).__name__, plain(dict(value))]
    return plain(repr(value))


def _without_what_is_of_one_run(text: str) -> str:
    for pattern, name in _OF_ONE_RUN:
        text = pattern.sub(name, text)
    return text


def came_of(call: Callable[[], Any], mine: BaseException | None = None) -> Any:
    """What a call returned, or what it raised and whether that was the very object `mine`."""
    try:
        return plain(call())
    except Exception as error:  # noqa: BLE001  whatever it is, is compared
        return ["raised", plain(error), error is mine]


async def acame_of(call: Callable[[], Any], mine: BaseException | None = None) -> Any:
    """The same of a coroutine function."""
    try:
        return plain(await call())
    except Exception as error:  # noqa: BLE001  whatever it is, is compared
        return ["raised", plain(error), error is mine]


class Notes:
    """Which events came, each with the names of the runs above it and everything that was said."""

    def __init__(self) -> None:
        self.heard: list[Any] = []
        self._paths: dict[Any, str] = {}

    def note(self, event: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Keep one."""
        said = dict(kwargs)
        run_id, parent = said.pop("run_id", None), said.pop("parent_run_id", None)
        if run_id not in self._paths:
            above = self._paths.get(parent, "" if parent is None else "unheard of")
            self._paths[run_id] = f"{above}/{said.get('name') or event}"
        self.heard.append([event, self._paths[run_id], plain(args), plain(said)])


def _hears(event: str) -> Any:
    def hear(self: Any, *args: Any, **kwargs: Any) -> None:
        self.note(event, args, kwargs)

    return hear


def _ahears(event: str) -> Any:
    async def hear(self: Any, *args: Any, **kwargs: Any) -> None:
        self.note(event, args, kwargs)

    return hear


Host = type("Host", (Notes, BaseCallbackHandler), {event: _hears(event) for event in EVENTS})
AsyncHost = type("AsyncHost", (Notes, AsyncCallbackHandler), {event: _ahears(event) for event in EVENTS})
