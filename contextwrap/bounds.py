"""What the Context API takes of one conversation: what is beyond is cut, and said, instead of refused later.

Pure. `lost` is told each kind of cut once a conversation, in words a user can read. `bounded` counts what the API
counts; `parts` has the last word, on bytes.
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
    to_json,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

Bounded = TypeVar("Bounded", Conversation, Message)

# A server takes 5 MiB a call; the ids and times that sealing adds are not in yet.
MAX_BYTES: Final = 4 * 1024 * 1024

# What JSON makes of one character at most: two escapes, beside a lone surrogate.
_WIDEST: Final = 12
# The keys and punctuation around one message.
_FRAME: Final = 256
_LONG_ID: Final = f"replaced: an id that is no text of 1 to {MAX_ID} characters"
_MANY_KEYS: Final = f"cut: metadata with more than {MAX_METADATA_KEYS} keys"
_LONG_VALUE: Final = f"cut: a metadata value longer than {MAX_METADATA_VALUE} characters"
_LONG_TEXT: Final = f"cut: text longer than {MAX_TEXT} characters"
_LARGE: Final = f"cut: a message larger than {MAX_BYTES} bytes"
_DEEP_INPUT: Final = f"cut: a tool's input nested deeper than {MAX_DEPTH - 8} levels"


def within(conversation: Conversation) -> bool:
    """Whether one call can carry it as it is, for certain: true of nearly all, and soon said."""
    characters = len(conversation.feedback or "")
    for row in conversation.messages:
        if row.input is not None:
            return False
        characters += len(row.message) + len(row.thought or "") + len(row.observation or "") + len(row.name or "")
    things: tuple[Conversation | Message, ...] = (conversation, *conversation.messages)
    for thing in things:
        if thing.id is not None:
            if not thing.id.isascii() or not 0 < len(thing.id) <= MAX_ID:
                return False
            characters += len(thing.id)
        if thing.metadata:
            noted = _length(thing.metadata)
            if noted > MAX_METADATA_VALUE or len(thing.metadata) > MAX_METADATA_KEYS:
                return False
            characters += noted
    count = len(conversation.messages)
    return count <= MAX_MESSAGES and _WIDEST * characters + _FRAME * (1 + count) <= MAX_BYTES


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


def bounded_text(text: str, *, lost: Callable[[str], None]) -> str:
    """The text as one call can carry it."""
    result, limit = text[:MAX_TEXT], MAX_TEXT
    while len(result) * _WIDEST > MAX_BYTES and len(to_json(result)) > MAX_BYTES:
        limit //= 2
        result = result[:limit]
    if result != text:
        lost(_LONG_TEXT)
    return result


def parts(conversation: Conversation, *, lost: Callable[[str], None]) -> Iterator[Conversation]:
    """The conversation in as many calls as it takes; each appends to the one before.

    A message that no call could carry is cut, and `lost` told.
    """
    messages = conversation.messages
    if len(messages) <= MAX_MESSAGES and _at_most(conversation) <= MAX_BYTES:
        yield conversation
        return
    # One lone surrogate, and all JSON of the call is escaped.
    encode = _escaped if has_half_characters(_json(conversation.to_wire())) else to_json
    whole = replace(conversation, messages=())
    frame = _fitting(whole, MAX_BYTES // 2, encode)
    room = MAX_BYTES - len(encode(frame.to_wire()))
    fitting = [_fitting(message, room, encode) for message in messages]
    if frame is not whole or any(one is not other for one, other in zip(fitting, messages, strict=True)):
        lost(_LARGE)
    batch: list[Message] = []
    filled = 0
    for message in fitting:
        size = len(encode(message.to_wire())) + 1
        if batch and (len(batch) == MAX_MESSAGES or filled + size > room):
            yield replace(frame, messages=tuple(batch))
            batch, filled = [], 0
        batch.append(message)
        filled += size
    yield replace(frame, messages=tuple(batch))


def _at_most(conversation: Conversation) -> int:
    """How many bytes its JSON can be, without making it."""
    characters = len(conversation.feedback or "") + _length(conversation.metadata)
    for row in conversation.messages:
        texts = (row.message, row.thought, row.observation, row.name, row.id)
        characters += sum([len(text) for text in texts if text]) + _length(row.metadata)
        if row.input is not None:
            characters += len(_json(row.input))
    return _WIDEST * characters + _FRAME * (1 + len(conversation.messages))


def _length(metadata: Mapping[str, str]) -> int:
    return sum([len(key) + len(value) + 1 for key, value in metadata.items()])


def _fitting(thing: Bounded, room: int, encode: Callable[[Any], bytes]) -> Bounded:
    limit = MAX_TEXT
    while len(encode(thing.to_wire())) > room:
        limit //= 2
        thing = _shortened(thing, limit)
    return thing


def _shortened(thing: Bounded, limit: int) -> Bounded:
    changes: dict[str, Any] = {"metadata": {key[:limit]: value[:limit] for key, value in thing.metadata.items()}}
    if isinstance(thing, Message):
        for name in ("message", "thought", "observation", "name"):
            text = getattr(thing, name)
            changes[name] = text and text[:limit]
        text = thing.input if isinstance(thing.input, str) else _json(thing.input)
        changes["input"] = thing.input if len(text) <= limit else text[:limit]
    else:
        changes["feedback"] = thing.feedback and thing.feedback[:limit]
    return _changed(thing, **changes)


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)


def _escaped(value: Any) -> bytes:
    return json.dumps(value, default=str).encode()


def _id(text: str, cuts: dict[str, None]) -> str:
    if 0 < len(text) <= MAX_ID and (text.isascii() or not has_half_characters(text)):
        return text
    cuts[_LONG_ID] = None
    return derived_id("id", text.encode("utf-8", "backslashreplace").decode())


def _metadata(metadata: Mapping[str, str], cuts: dict[str, None]) -> Mapping[str, str]:
    if not metadata or (len(metadata) <= MAX_METADATA_KEYS and max(map(len, metadata.values())) <= MAX_METADATA_VALUE):
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
    text = _json(value)
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
