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
from urllib.parse import parse_qs, quote, unquote, urlsplit

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

    def to_wire(self) -> dict[str, Any]:
        """The message as the API's JSON object; absent fields are left out."""
        wire: dict[str, Any] = {"type": self.type, "role": self.role, "message": self.message}
        for key in ("id", "rating", "name", "thought", "input", "observation"):
            value = getattr(self, key)
            if value is not None:
                wire[key] = value
        if self.event_timestamp is not None:
            wire["event_timestamp"] = to_iso(self.event_timestamp)
        if self.metadata:
            wire["metadata"] = dict(self.metadata)
        return wire

    @classmethod
    def from_wire(cls, wire: object, *, where: str = "message") -> Message:
        """The message in `wire`; WireError names `where` and what is wrong with it."""
        item = _object(wire, where)
        kind = _choice(item.get("type") or "message", MESSAGE_TYPES, f"{where}.type")
        role = item.get("role")
        if role is None and kind != "message":
            role = "assistant" if kind == "tool" else "system"
        rating = item.get("rating")
        return cls(
            role=cast("Role", _choice(role, ROLES, f"{where}.role")),
            message=_text(item.get("message"), f"{where}.message", required=kind == "message") or "",
            id=_id(item.get("id"), f"{where}.id"),
            type=cast("MessageType", kind),
            rating=None if rating is None else _rating(rating, f"{where}.rating"),
            event_timestamp=from_iso(item.get("event_timestamp"), where=f"{where}.event_timestamp"),
            metadata=_metadata(item.get("metadata"), f"{where}.metadata"),
            name=_text(item.get("name"), f"{where}.name"),
            thought=_text(item.get("thought"), f"{where}.thought"),
            input=item.get("input"),
            observation=_text(item.get("observation"), f"{where}.observation"),
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
            metadata=_metadata(item.get("metadata"), f"{where}.metadata"),
            id=_id(item.get("id"), f"{where}.id"),
            feedback=_text(item.get("feedback"), f"{where}.feedback"),
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
            replace(
                message,
                id=message.id or derived_id(key, "message", str(index)),
                event_timestamp=message.event_timestamp or at,
            )
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
        """The call by its request's parts, with `body` as JSON reads it; WireError says what is not of the API's form.

        https://www.rfc-editor.org/rfc/rfc9112#name-request-target: path and query, in origin form.
        """
        path, tenant = _split(target)
        if len(tenant) >= MAX_TENANT:
            raise WireError(f"tenant_id must be shorter than {MAX_TENANT} characters")
        route = _PATHS.get(path)
        if method == "POST" and route is not None:
            conversation = Conversation.from_wire(_object(body, "body").get("conversation"))
            if route is not Route.THREAD:
                conversation = replace(conversation, id=None)
            return cls(route=route, tenant_id=tenant, conversation=conversation)
        if method == "PATCH" and path.startswith(_RATING_PREFIX):
            rated = unquote(path.removeprefix(_RATING_PREFIX))
            return cls(route=Route.RATING, tenant_id=tenant, rated=rated, marks=_marks(body))
        raise WireError(f"{method[:20]} {path[:200]} is not a log route")


@lru_cache(maxsize=1024)
def _split(target: str) -> tuple[str, str]:
    """A target's path, and the tenant in its query."""
    try:
        parts = urlsplit(target)
    except ValueError:
        raise WireError("the target is no path") from None
    return parts.path, parse_qs(parts.query).get("tenant_id", [""])[-1]


def has_half_characters(text: str) -> bool:
    """Whether it holds lone surrogates, which no URL and no UTF-8 can carry."""
    return _SURROGATE.search(text) is not None


def to_json(value: object) -> bytes:
    """Compact JSON in UTF-8; lone surrogates, which UTF-8 cannot carry, stay escaped."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    try:
        return text.encode()
    except UnicodeEncodeError:
        return json.dumps(value, separators=(",", ":"), default=str).encode()


def from_json(body: bytes | str) -> Any:
    """The JSON value in `body`; WireError when it is none or nests too deep."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise WireError(f"the body is not JSON: {error}") from None


def to_iso(moment: datetime) -> str:
    """ISO 8601 in UTC with milliseconds and a Z, as context-python writes it."""
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def from_iso(value: object, *, where: str) -> datetime | None:
    """The moment in an ISO 8601 string, UTC when it names no zone; WireError names `where`."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise WireError(f"{where} must be an ISO 8601 string")
    try:
        moment = datetime.fromisoformat(value)
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise WireError(f"{where} is not an ISO 8601 time: {value[:40]!r}") from None


def _object(value: object, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise WireError(f"{where} must be an object")
    return value


def _choice(value: object, choices: Sequence[str], where: str) -> str:
    if isinstance(value, str) and value.lower() in choices:
        return value.lower()
    raise WireError(f"{where} must be one of {', '.join(choices)}")


def _rating(value: object, where: str) -> Rating:
    if isinstance(value, bool) or value not in RATINGS:
        raise WireError(f"{where} must be -1, 0 or 1")
    return value


def _text(value: object, where: str, *, required: bool = False) -> str | None:
    if value is None and not required:
        return None
    if not isinstance(value, str):
        raise WireError(f"{where} must be a string")
    return value


def _id(value: object, where: str) -> str | None:
    text = _text(value, where)
    if text is not None and not 0 < len(text) <= MAX_ID:
        raise WireError(f"{where} must have 1 to {MAX_ID} characters")
    if text is not None and has_half_characters(text):
        raise WireError(f"{where} has half of a character in it")
    return text


def _metadata(value: object, where: str) -> dict[str, str]:
    if value is None:
        return {}
    item = _object(value, where)
    if len(item) > MAX_METADATA_KEYS:
        raise WireError(f"{where} has more than {MAX_METADATA_KEYS} keys")
    said = {key: value for key, value in item.items() if value is not None}
    metadata = {key: value if isinstance(value, str) else json.dumps(value) for key, value in said.items()}
    for key, text in metadata.items():
        if len(text) > MAX_METADATA_VALUE:
            raise WireError(f"{where}[{key[:40]!r}] is longer than {MAX_METADATA_VALUE} characters")
    return metadata


def _marks(body: object) -> tuple[RatingMark, ...]:
    if not isinstance(body, list) or not body:
        raise WireError('the body must be a list like [{"rating": 1}]')
    items = [_object(item, f"body[{index}]") for index, item in enumerate(body)]
    return tuple(
        RatingMark(
            rating=_rating(item.get("rating"), f"body[{index}].rating"),
            feedback=_text(item.get("feedback"), f"body[{index}].feedback"),
        )
        for index, item in enumerate(items)
    )
