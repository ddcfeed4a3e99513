"""What is recorded, in the Context API's own words; the one file that knows its JSON keys.

`Conversation` is both the API's Conversation and its Thread (one with an id). A `Log` is one call of one of
the four log routes: `to_request` seals it as an HTTP request, `from_request` opens one again, so outbox,
wire and journal all carry the same bytes.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from enum import StrEnum
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, cast
from urllib.parse import parse_qs, quote, unquote

from contextwrap.errors import WireError
from contextwrap.ids import derived_id

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

Role: TypeAlias = Literal["user", "assistant", "system"]
MessageType: TypeAlias = Literal["message", "tool", "event"]
Rating: TypeAlias = Literal[-1, 0, 1]

ROLES: Final = ("user", "assistant", "system")
MESSAGE_TYPES: Final = ("message", "tool", "event")
RATINGS: Final = (-1, 0, 1)
MAX_TENANT: Final = 40
MAX_METADATA_KEYS: Final = 64
MAX_METADATA_VALUE: Final = 4096
MAX_ID: Final = 256
MAX_MESSAGES: Final = 1000
MAX_TEXT: Final = 1_000_000
MAX_DEPTH: Final = 64
MAX_TARGET: Final = 4096
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One row of a conversation.

    `type` "message" is text by `role`; "tool" is a tool call (`name`, `thought`, `input`, `observation`);
    "event" is something that happened (`name`, `metadata`). `event_timestamp` is aware, in UTC.
    """

    role: Role
    message: str = ""
    id: str | None = None
    type: MessageType = "message"
    rating: Rating | None = None
    event_timestamp: datetime | None = None
    metadata: Mapping[str, str] = field(default_factory=dict)
    name: str | None = None
    thought: str | None = None
    input: Any = None
    observation: str | None = None

    def sealed(self, *, own_id: str | None, at: datetime) -> Message:
        """The same message with an id and a time, where it has none of its own."""
        # As dataclasses.replace does, in a third of the time: every message that is recorded passes here.
        return Message(
            role=self.role,
            message=self.message,
            id=self.id or own_id,
            type=self.type,
            rating=self.rating,
            event_timestamp=self.event_timestamp or at,
            metadata=self.metadata,
            name=self.name,
            thought=self.thought,
            input=self.input,
            observation=self.observation,
        )

    def to_wire(self) -> dict[str, Any]:
        """The message as the API's JSON object; absent fields are left out."""
        wire: dict[str, Any] = {"type": self.type, "role": self.role, "message": self.message}
        if self.id is not None:
            wire["id"] = self.id
        if self.rating is not None:
            wire["rating"] = self.rating
        if self.name is not None:
            wire["name"] = self.name
        if self.thought is not None:
            wire["thought"] = self.thought
        if self.input is not None:
            wire["input"] = self.input
        if self.observation is not None:
            wire["observation"] = self.observation
        if self.event_timestamp is not None:
            wire["event_timestamp"] = to_iso(self.event_timestamp)
        if self.metadata:
            wire["metadata"] = dict(self.metadata)
        return wire

    @classmethod
    def from_wire(cls, wire: object, *, where: str = "message") -> Message:
        """The message in `wire`; WireError names `where` and what is wrong with it."""
        item = _object(wire, where)
        kind = _choice(item, "type", MESSAGE_TYPES, where) if item.get("type") else "message"
        silent = kind != "message" and item.get("role") is None
        role = ("assistant" if kind == "tool" else "system") if silent else _choice(item, "role", ROLES, where)
        return cls(
            role=cast("Role", role),
            message=_text(item, "message", where, required=kind == "message") or "",
            id=_id(item, where),
            type=cast("MessageType", kind),
            rating=None if item.get("rating") is None else _rating(item, where),
            event_timestamp=from_iso(item.get("event_timestamp"), where=f"{where}.event_timestamp"),
            metadata=_metadata(item, where),
            name=_text(item, "name", where),
            thought=_text(item, "thought", where),
            input=item.get("input"),
            observation=_text(item, "observation", where),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversation:
    """Messages in order under one metadata; with an `id` it is the API's Thread."""

    messages: tuple[Message, ...]
    metadata: Mapping[str, str] = field(default_factory=dict)
    id: str | None = None
    feedback: str | None = None

    @property
    def user_id(self) -> str | None:
        """Who the conversation is with: the well-known metadata key."""
        return self.metadata.get("user_id")

    def to_wire(self) -> dict[str, Any]:
        """The conversation as the API's JSON object; absent fields are left out."""
        wire: dict[str, Any] = {"messages": [message.to_wire() for message in self.messages]}
        if self.metadata:
            wire["metadata"] = dict(self.metadata)
        if self.id is not None:
            wire["id"] = self.id
        if self.feedback is not None:
            wire["feedback"] = self.feedback
        return wire

    @classmethod
    def from_wire(cls, wire: object, *, where: str = "conversation") -> Conversation:
        """The conversation in `wire`; WireError names `where` and what is wrong with it."""
        item = _object(wire, where)
        messages = item.get("messages")
        if not isinstance(messages, list) or not messages:
            raise WireError(f"{where}.messages must be a list with at least one message")
        return cls(
            messages=tuple(
                Message.from_wire(message, where=f"{where}.messages[{index}]") for index, message in enumerate(messages)
            ),
            metadata=_metadata(item, where),
            id=_id(item, where),
            feedback=_text(item, "feedback", where),
        )


class Route(StrEnum):
    """The log routes, by what they do."""

    CONVERSATION = "conversation"
    UPSERT = "upsert"
    THREAD = "thread"
    RATING = "rating"


_PATHS: Final = {
    "/api/v1/log/conversation": Route.CONVERSATION,
    "/api/v1/log/conversation/upsert": Route.UPSERT,
    "/api/v1/log/conversation/thread": Route.THREAD,
}
_PATH_OF: Final = {route: path for path, route in _PATHS.items()}
_RATING_PREFIX: Final = "/api/v1/log/conversation/thread/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A log call as HTTP sees it: `target` is path and query, `body` is JSON in UTF-8."""

    method: Literal["POST", "PATCH"]
    target: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class RatingMark:
    """One element of a rating call: the mark and, as an extension, what the user said about it."""

    rating: Rating
    feedback: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Log:
    """One call of a log route.

    CONVERSATION, UPSERT and THREAD carry `conversation`; RATING carries `rated` (a message id or a thread id)
    and `marks`, newest answer first.
    """

    route: Route
    tenant_id: str = ""
    conversation: Conversation | None = None
    rated: str = ""
    marks: tuple[RatingMark, ...] = ()

    def sealed(self, *, key: str, at: datetime) -> Log:
        """The same call with every id and timestamp filled in, the same ones for the same idempotency `key`."""
        if self.conversation is None:
            return self
        conversation = self.conversation
        if conversation.id and all(message.id and message.event_timestamp for message in conversation.messages):
            return self
        thread = conversation.id or derived_id(key, "thread")
        messages = tuple(
            message.sealed(own_id=message.id or derived_id(key, "message", str(index)), at=at)
            for index, message in enumerate(conversation.messages)
        )
        return replace(self, conversation=replace(conversation, id=thread, messages=messages))

    def to_request(self) -> Request:
        """The call as the HTTP request that makes it."""
        query = f"?tenant_id={quote(self.tenant_id, safe='')}" if self.tenant_id else ""
        if self.route is Route.RATING:
            marks = [
                {"rating": mark.rating} | ({"feedback": mark.feedback} if mark.feedback is not None else {})
                for mark in self.marks
            ]
            target = _RATING_PREFIX + quote(self.rated, safe="") + query
            return Request(method="PATCH", target=target, body=to_json(marks))
        if self.conversation is None:
            raise WireError(f"a {self.route.value} call needs a conversation")
        body = to_json({"conversation": self.conversation.to_wire()})
        return Request(method="POST", target=_PATH_OF[self.route] + query, body=body)

    @classmethod
    def from_request(cls, request: Request) -> Log:
        """The call in `request`; WireError says what is not of the API's form."""
        return cls.of_call(request.method, request.target, from_json(request.body))

    @classmethod
    def of_call(cls, method: str, target: str, body: object) -> Log:
        """The call by its request's parts, with `body` as JSON reads it; WireError as `at` and `saying`."""
        return cls.at(method, target).saying(body)

    @classmethod
    def at(cls, method: str, target: str) -> Log:
        """The call as far as method and target tell; WireError when there is no such route.

        `target` is path and query: https://www.rfc-editor.org/rfc/rfc9112#name-origin-form.
        """
        if len(target) > MAX_TARGET or not target.isascii():
            raise WireError(f"target must be up to {MAX_TARGET} ASCII characters")
        path, _, query = target.partition("?")
        tenant = _tenant(query)
        if len(tenant) >= MAX_TENANT:
            raise WireError(f"tenant_id must be shorter than {MAX_TENANT} characters")
        route = _PATHS.get(path)
        if method == "POST" and route is not None:
            return cls(route=route, tenant_id=tenant)
        if method == "PATCH" and path.startswith(_RATING_PREFIX):
            return cls(route=Route.RATING, tenant_id=tenant, rated=unquote(path.removeprefix(_RATING_PREFIX)))
        raise WireError(f"{method[:20]} {path[:200]} is not a log route")

    def saying(self, body: object) -> Log:
        """The same call with what its body says, as JSON reads it; WireError says what is not of the API's form."""
        if self.route is Route.RATING:
            return Log(route=self.route, tenant_id=self.tenant_id, rated=self.rated, marks=_marks(body))
        conversation = Conversation.from_wire(_object(body, "body").get("conversation"))
        if self.route is not Route.THREAD:
            conversation = replace(conversation, id=None)
        return Log(route=self.route, tenant_id=self.tenant_id, conversation=conversation)


@lru_cache(maxsize=1024)
def _tenant(query: str) -> str:
    return parse_qs(query, keep_blank_values=True).get("tenant_id", [""])[-1]


def has_half_characters(text: str) -> bool:
    """Whether it holds lone surrogates, which no URL and no UTF-8 can carry."""
    return _SURROGATE.search(text) is not None


def to_json(value: object) -> bytes:
    """Compact JSON in UTF-8; lone surrogates, which UTF-8 cannot carry, stay escaped."""
    try:
        return _encode(value).encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"), default=str).encode()


# json.dumps makes an encoder for every call that is not of its own defaults.
_encode: Final = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode


def from_json(body: bytes | str) -> Any:
    """The JSON value in `body`; WireError when it is none or nests too deep."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WireError(f"the body is not JSON: {error}") from None


# A history's messages are all of one moment.
@lru_cache(maxsize=64)
def to_iso(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds and a Z, as context-python writes it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def from_iso(value: object, *, where: str) -> datetime | None:
    """The moment in an ISO 8601 string, UTC when it names no zone; WireError names `where`."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise WireError(f"{where} must be an ISO 8601 string")
    try:
        moment = datetime.fromisoformat(value)
        if moment.tzinfo is UTC:
            return moment
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise WireError(f"{where} is not an ISO 8601 time: {value[:40]!r}") from None


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise WireError(f"{where} must be an object")
    return value


def _choice(item: Mapping[str, Any], key: str, choices: Sequence[str], where: str) -> str:
    value = item.get(key)
    if value in choices:
        return cast("str", value)
    if isinstance(value, str) and value.lower() in choices:
        return value.lower()
    raise WireError(f"{where}.{key} must be one of {', '.join(choices)}")


def _rating(item: Mapping[str, Any], where: str) -> Rating:
    value = item.get("rating")
    if isinstance(value, bool) or value not in RATINGS:
        raise WireError(f"{where}.rating must be -1, 0 or 1")
    return cast("Rating", value)


def _text(item: Mapping[str, Any], key: str, where: str, *, required: bool = False) -> str | None:
    value = item.get(key)
    if isinstance(value, str) or (value is None and not required):
        return value
    raise WireError(f"{where}.{key} must be a string")


def _id(item: Mapping[str, Any], where: str) -> str | None:
    text = _text(item, "id", where)
    if text is None:
        return None
    if not 0 < len(text) <= MAX_ID:
        raise WireError(f"{where}.id must have 1 to {MAX_ID} characters")
    if has_half_characters(text):
        raise WireError(f"{where}.id has half of a character in it")
    return text


def _metadata(item: Mapping[str, Any], where: str) -> dict[str, str]:
    value = item.get("metadata")
    if value is None:
        return {}
    where = f"{where}.metadata"
    said = _object(value, where)
    if len(said) > MAX_METADATA_KEYS:
        raise WireError(f"{where} has more than {MAX_METADATA_KEYS} keys")
    metadata = {
        key: value if isinstance(value, str) else json.dumps(value) for key, value in said.items() if value is not None
    }
    for key, text in metadata.items():
        if len(text) > MAX_METADATA_VALUE:
            raise WireError(f"{where}[{key[:40]!r}] is longer than {MAX_METADATA_VALUE} characters")
    return metadata


def _marks(body: object) -> tuple[RatingMark, ...]:
    if not isinstance(body, list) or not body:
        raise WireError('the body must be a list like [{"rating": 1}]')
    items = [(_object(item, f"body[{index}]"), f"body[{index}]") for index, item in enumerate(body)]
    return tuple(
        RatingMark(rating=_rating(item, where), feedback=_text(item, "feedback", where)) for item, where in items
    )
