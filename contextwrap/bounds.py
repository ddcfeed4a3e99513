"""What the Context API takes of one conversation: what is beyond is cut, and said, instead of refused later.

Pure. `lost` is told each kind of cut once a conversation, in words a user can read.
"""

from __future__ import annotations

import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from contextwrap.ids import derived_id
from contextwrap.model import (
    MAX_DEPTH,
    MAX_ID,
    MAX_MESSAGES,
    MAX_METADATA_KEYS,
    MAX_METADATA_VALUE,
    MAX_TEXT,
    Conversation,
    Message,
    has_half_characters,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Bounded = TypeVar("Bounded", Conversation, Message)

_LONG_ID: Final = f"replaced: an id that is no text of 1 to {MAX_ID} characters"
_MANY_KEYS: Final = f"cut: metadata with more than {MAX_METADATA_KEYS} keys"
_LONG_VALUE: Final = f"cut: a metadata value longer than {MAX_METADATA_VALUE} characters"
_LONG_TEXT: Final = f"cut: text longer than {MAX_TEXT} characters"
_DEEP_INPUT: Final = f"cut: a tool's input nested deeper than {MAX_DEPTH - 8} levels"


def bounded(conversation: Conversation, *, lost: Callable[[str], None]) -> Conversation:
    """The conversation within the API's bounds; `lost` hears what was cut."""
    cuts: dict[str, None] = {}
    result = _changed(
        conversation,
        id=None if conversation.id is None else _id(conversation.id, cuts),
        metadata=_metadata(conversation.metadata, cuts),
        messages=tuple([_message(message, cuts) for message in conversation.messages]),
        feedback=_text(conversation.feedback, cuts),
    )
    for cut in cuts:
        lost(cut)
    return result


def bounded_id(text: str, *, lost: Callable[[str], None]) -> str:
    """The same id as `bounded` gives a thread or message of this one."""
    cuts: dict[str, None] = {}
    result = _id(text, cuts)
    for cut in cuts:
        lost(cut)
    return result


def parts(conversation: Conversation) -> Iterator[Conversation]:
    """The conversation in as many calls as it takes; each appends to the one before."""
    batch: list[Message] = []
    size = 0
    for message in conversation.messages:
        length = len(message.message) + len(message.observation or "") + len(message.thought or "")
        if batch and (len(batch) == MAX_MESSAGES or size + length > MAX_TEXT):
            yield replace(conversation, messages=tuple(batch))
            batch, size = [], 0
        batch.append(message)
        size += length
    yield replace(conversation, messages=tuple(batch))


def _id(text: str, cuts: dict[str, None]) -> str:
    if 0 < len(text) <= MAX_ID and not has_half_characters(text):
        return text
    cuts[_LONG_ID] = None
    return derived_id("id", text.encode("utf-8", "backslashreplace").decode())


def _metadata(metadata: Mapping[str, str], cuts: dict[str, None]) -> Mapping[str, str]:
    if len(metadata) <= MAX_METADATA_KEYS and all(len(value) <= MAX_METADATA_VALUE for value in metadata.values()):
        return metadata
    if len(metadata) > MAX_METADATA_KEYS:
        cuts[_MANY_KEYS] = None
        # Whose it is goes before what is noted of it.
        keys = sorted(metadata, key=lambda key: key != "user_id")[:MAX_METADATA_KEYS]
        metadata = {key: metadata[key] for key in keys}
    if any(len(value) > MAX_METADATA_VALUE for value in metadata.values()):
        cuts[_LONG_VALUE] = None
    return {key: value[:MAX_METADATA_VALUE] for key, value in metadata.items()}


def _message(message: Message, cuts: dict[str, None]) -> Message:
    return _changed(
        message,
        id=None if message.id is None else _id(message.id, cuts),
        message=_text(message.message, cuts) or "",
        thought=_text(message.thought, cuts),
        observation=_text(message.observation, cuts),
        input=_input(message.input, cuts),
        metadata=_metadata(message.metadata, cuts),
    )


def _changed(thing: Bounded, **fields: Any) -> Bounded:
    """`replace`, but the thing itself where nothing is new: that is nearly always, and ten times as quick."""
    if all(getattr(thing, name) is value or getattr(thing, name) == value for name, value in fields.items()):
        return thing
    return replace(thing, **fields)


def _text(text: str | None, cuts: dict[str, None]) -> str | None:
    if text is None or len(text) <= MAX_TEXT:
        return text
    cuts[_LONG_TEXT] = None
    return text[:MAX_TEXT]


def _input(value: Any, cuts: dict[str, None]) -> Any:
    if value is None or isinstance(value, (bool, int, float)):
        return value
    if isinstance(value, str):
        return _text(value, cuts)
    # The message around it has levels of its own.
    if _deeper(value, MAX_DEPTH - 8):
        cuts[_DEEP_INPUT] = None
        return _text(str(value), cuts)
    text = json.dumps(value, default=str)
    return value if len(text) <= MAX_TEXT else _text(text, cuts)


def _deeper(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        level = [inner for one in level for inner in _inside(one)]
        if not level:
            return False
    return True


def _inside(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value.values())
    return list(value) if isinstance(value, (list, tuple)) else []
