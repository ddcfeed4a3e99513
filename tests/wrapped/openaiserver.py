"""An OpenAI-compatible server on loopback: chat completions whole and streamed, tool calls, usage, and its failures."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from collections.abc import Iterator

MODEL = "gpt-scripted-2026"
USAGE = {"prompt_tokens": 11, "completion_tokens": 5, "total_tokens": 16}


class OpenAIServer:
    """Answers "said: <the last user's text>", or calls the first tool it is offered.

    It fails with the next of `failures` (HTTP statuses) while there are some. A refusal is the answer to "refuse". The
    stream for "slowly" stops after its first words until the client has gone.
    """

    def __init__(self, *failures: int) -> None:
        self.failures = list(failures)
        self.asked: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.closing = threading.Event()
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()


def _handler(server: OpenAIServer) -> type[BaseHTTPRequestHandler]:  # noqa: C901  its methods know the server
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = -1
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            server.asked.append(body)
            server.headers.append({name.lower(): value for name, value in self.headers.items()})
            if self.path != "/v1/chat/completions":
                self._json(404, {"error": {"message": "no such route", "type": "invalid_request_error"}})
            elif server.failures:
                status = server.failures.pop(0)
                self._json(status, {"error": {"message": f"failed with {status}", "type": "server_error"}})
            elif body.get("stream"):
                self._stream(body)
            else:
                message = _message(body)
                choice = {"index": 0, "message": message, "finish_reason": _reason(message)}
                self._json(200, _completion("chat.completion", choices=[choice], usage=USAGE))

        def _json(self, status: int, said: dict[str, Any]) -> None:
            body = json.dumps(said).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _stream(self, body: dict[str, Any]) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.send_header("Connection", "close")
            self.end_headers()
            self.close_connection = True
            for said in _chunks(body):
                if said is None:
                    self.wfile.flush()
                    server.closing.wait(60)
                    return
                self._event(**said)
            self.wfile.write(b"data: [DONE]\n\n")

        def _event(self, **said: Any) -> None:
            self.wfile.write(b"data: " + json.dumps(_completion("chat.completion.chunk", **said)).encode() + b"\n\n")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    return Handler


def _completion(kind: str, **said: Any) -> dict[str, Any]:
    return {"id": "chatcmpl-1", "object": kind, "created": 1_790_000_000, "model": MODEL, **said}


def _asked(body: dict[str, Any]) -> str:
    return next((str(one["content"]) for one in reversed(body["messages"]) if one["role"] == "user"), "")


def _message(body: dict[str, Any]) -> dict[str, Any]:
    asked = _asked(body)
    if asked == "refuse":
        return {"role": "assistant", "content": None, "refusal": "I can't help with that."}
    if body.get("tools") and body["messages"][-1]["role"] != "tool":
        function = body["tools"][0]["function"]
        arguments = json.dumps(dict.fromkeys(function["parameters"]["properties"], asked))
        call = {"id": "call_1", "type": "function", "function": {"name": function["name"], "arguments": arguments}}
        return {"role": "assistant", "content": None, "tool_calls": [call]}
    schema = (body.get("response_format") or {}).get("json_schema")
    if schema:
        return {"role": "assistant", "content": json.dumps(dict.fromkeys(schema["schema"]["properties"], asked))}
    return {"role": "assistant", "content": f"said: {asked}"}


def _chunks(body: dict[str, Any]) -> Iterator[dict[str, Any] | None]:
    """What is streamed, a chunk at a time; None where "slowly" goes on no further."""
    message = _message(body)
    for number, delta in enumerate(_deltas(message)):
        if number == 2 and _asked(body) == "slowly":
            yield None
        yield {"choices": [{"index": 0, "delta": delta, "finish_reason": None}]}
    yield {"choices": [{"index": 0, "delta": {}, "finish_reason": _reason(message)}]}
    if (body.get("stream_options") or {}).get("include_usage"):
        yield {"choices": [], "usage": USAGE}


def _reason(message: dict[str, Any]) -> str:
    return "tool_calls" if message.get("tool_calls") else "stop"


def _deltas(message: dict[str, Any]) -> list[dict[str, Any]]:
    """The message in pieces: its role, then its text word by word, or each call's name and its arguments."""
    deltas: list[dict[str, Any]] = [{"role": "assistant", "content": None if message["content"] is None else ""}]
    if message["content"] is not None:
        words = message["content"].split(" ")
        deltas += [{"content": word if not number else f" {word}"} for number, word in enumerate(words)]
    if message.get("refusal"):
        deltas.append({"refusal": message["refusal"]})
    for index, call in enumerate(message.get("tool_calls", [])):
        function = call["function"]
        deltas.append({"tool_calls": [{**call, "index": index, "function": {**function, "arguments": ""}}]})
        deltas.append({"tool_calls": [{"index": index, "function": {"arguments": function["arguments"]}}]})
    return deltas
