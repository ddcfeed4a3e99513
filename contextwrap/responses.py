"""What the answer of a web handler holds: a Starlette, FastAPI, Werkzeug or Flask response, finished or a stream.

None of them is imported: who has made a response has done so. An odd one has no text, and is never touched.
"""

from __future__ import annotations

import json
import sys
from collections.abc import AsyncIterator, Iterator
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable

_KINDS: Final = (("starlette.responses", "Response"), ("werkzeug.wrappers", "Response"))
_STREAMS: Final = ("body_iterator", "response")
_READABLE: Final = ("json", "+json", "x-ndjson", "jsonl")


def is_response(value: object) -> bool:
    """Whether it is a response of a framework that this process has."""
    kinds = (getattr(sys.modules.get(module), name, None) for module, name in _KINDS)
    return any(isinstance(value, kind) for kind in kinds if isinstance(kind, type))


def answer_in_flask(result: object) -> object:
    """The body alone, when a Flask view gives (body, status), (body, headers) or both; anything else as it is."""
    flask: Any = sys.modules.get("flask")
    if not isinstance(result, tuple) or len(result) not in {2, 3} or flask is None:
        return result
    return result[0] if flask.has_request_context() else result


def media_type(response: Any) -> str:
    """Its content type without parameters, in lower case."""
    headers: Any = getattr(response, "headers", None)
    said = headers.get("content-type") if hasattr(headers, "get") else None
    return str(said or "").partition(";")[0].strip().lower()


def is_readable(kind: str) -> bool:
    """Whether a body of that content type is something a person is told."""
    return kind.startswith("text/") or kind.endswith(_READABLE)


def body(response: Any) -> object:
    """What a finished response says: its text, or what its JSON means; None when it holds neither."""
    kind = media_type(response)
    if not is_readable(kind):
        return None
    read = getattr(response, "get_data", None)
    streams = getattr(response, "is_streamed", False) or getattr(response, "direct_passthrough", False)
    try:
        data = getattr(response, "body", b"") if read is None else b"" if streams else read()
        text = data.decode() if isinstance(data, (bytes, bytearray)) else bytes(memoryview(data)).decode()
        return (json.loads(text) if kind.endswith("json") else text) if text else None
    except (TypeError, ValueError):
        return None


def replace_stream(response: Any, by: Callable[[Any], Any]) -> bool:
    """Put `by(stream)` in the place of what a streaming response reads its body from; False when it is finished."""
    for name in _STREAMS:
        stream = getattr(response, name, None)
        if isinstance(stream, (Iterator, AsyncIterator)):
            setattr(response, name, by(stream))
            return True
    return False


def told(kind: str, text: str) -> str:
    """What a streamed body tells a person: server-sent events their data, anything else itself."""
    if kind != "text/event-stream":
        return text
    told = (line.removeprefix("data:").removeprefix(" ") for line in text.splitlines() if line.startswith("data:"))
    return "".join(part for part in told if part != "[DONE]")
