"""Handlers of FastAPI and Flask, tracked: what they answer and stream is their user's, and they answer as before."""

from __future__ import annotations

import functools
from typing import Annotated

import flask
import pytest
from chains import ASKED, chain
from fastapi import Depends, FastAPI
from fastapi import Request as WebRequest
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from fastapi.testclient import TestClient
from parcels import conversations, lines

from contextwrap import track_context

pytestmark = pytest.mark.usefixtures("recording")
TURN = ("u", [("user", "hi"), ("assistant", "echo: hi")])


def turns(home):
    """The user and the lines of each turn."""
    return [(one.user_id, lines(one)) for one in conversations(home)]


def _words(user):
    yield from chain().stream(ASKED)


async def _async_words(user):
    async for part in chain().astream(ASKED):
        yield part


def _user(request: WebRequest) -> str:
    return request.headers["x-user"]


Who = Annotated[str, Depends(_user)]
tracked = track_context(user_id="{user}")


@tracked
def sync(user: Who, page: int = 1) -> dict[str, str]:
    return {"answer": chain().invoke(ASKED), "page": str(page)}


@tracked
async def asynchronous(user: Who) -> dict[str, str]:
    return {"answer": await chain().ainvoke(ASKED)}


@tracked
def streaming(user: Who) -> StreamingResponse:
    return StreamingResponse(_words(user), media_type="text/plain")


@tracked
async def async_streaming(user: Who) -> StreamingResponse:
    return StreamingResponse(_async_words(user), media_type="text/plain")


@tracked
async def untyped_streaming(user: Who) -> StreamingResponse:
    return StreamingResponse(iter([chain().invoke(ASKED)]))


class Handler:
    """Methods as handlers, and an object that is one."""

    @tracked
    async def method(self, user: Who) -> dict[str, str]:
        return {"answer": await chain().ainvoke(ASKED)}

    async def __call__(self, user: Who) -> dict[str, str]:
        return {"answer": await chain().ainvoke(ASKED)}


async def _paged(page: int, user: Who) -> dict[str, str]:
    return {"answer": await chain().ainvoke(ASKED), "page": str(page)}


HANDLERS = {
    "sync": sync,
    "async": asynchronous,
    "streaming": streaming,
    "async streaming": async_streaming,
    "untyped streaming": untyped_streaming,
    "method": Handler().method,
    "object": tracked(Handler()),
    "partial": tracked(functools.partial(_paged, 1)),
}


@pytest.mark.parametrize("name", HANDLERS)
def test_fastapi_handlers_are_sessions(home, name):
    """Handlers of every kind, streaming ones too, are recorded under the user their dependency found."""
    app = FastAPI()
    app.get("/")(HANDLERS[name])
    with TestClient(app) as client:
        for user in ("u", "v"):
            answer = client.get("/", headers={"x-user": user})
            assert answer.status_code == 200
            assert answer.text == "echo: hi" or answer.json()["answer"] == "echo: hi"
    assert turns(home) == [TURN, ("v", TURN[1])]


def test_fastapi_sees_the_same_parameters():
    """The OpenAPI document of a tracked handler is that of the plain one."""

    async def handler(question: str, user: Who, page: int = 1) -> dict[str, str]:
        """Answers."""
        return {}

    documents = []
    for one in (handler, track_context(user_id="{user}")(handler)):
        app = FastAPI()
        app.get("/")(one)
        documents.append(app.openapi())
    assert documents[0] == documents[1]


def _sse():
    yield "data: good \n\n"
    yield "event: x\ndata: day\n\ndata: [DONE]\n\n"


class Body(Response):
    """A response that cannot be read."""

    media_type = "text/plain"
    body = None

    def __init__(self):
        super().__init__("good day")
        self.body = 5


@pytest.mark.parametrize(
    ("make", "answer"),
    [
        (lambda: PlainTextResponse("good day"), "good day"),
        (lambda: JSONResponse({"answer": "good day", "k": 1}), "good day"),
        (lambda: JSONResponse(["good", 1]), '["good", 1]'),
        (lambda: Response(b"good day", media_type="text/markdown; charset=utf-8"), "good day"),
        (lambda: Response(b"\xff", media_type="text/plain"), None),
        (lambda: Response(b"{", media_type="application/json"), None),
        (lambda: Response(b"good day", media_type="image/png"), None),
        (lambda: Response(status_code=204), None),
        (Body, None),
        (lambda: flask.Response("good day"), "good day"),
        (lambda: flask.Response('{"answer": "good day"}', mimetype="application/json"), "good day"),
        (lambda: flask.Response(b"good day", mimetype="image/png"), None),
        (lambda: flask.Response(status=204), None),
    ],
)
def test_a_response_says_what_its_body_says(home, make, answer):
    """The text or JSON in a finished response is the answer; odd ones have none and are never touched."""
    response = make()
    assert track_context(lambda question: response)("hi") is response
    (one,) = conversations(home)
    assert lines(one)[1:] == ([] if answer is None else [("assistant", answer)])


@pytest.mark.parametrize(
    ("make", "kind", "answer"),
    [
        (lambda: iter(["good ", "day"]), "text/plain", "good day"),
        (_sse, "text/event-stream", "good day"),
        (lambda: iter([b"good day"]), "image/png", None),
    ],
)
@pytest.mark.parametrize("response", [StreamingResponse, flask.Response])
async def test_a_streaming_response_says_what_it_streams(home, make, kind, answer, response):
    """A streaming response is the same object; what it streamed is the answer, of server-sent events their data."""
    name = {"media_type": kind} if response is StreamingResponse else {"mimetype": kind}
    streaming = response(make(), **name)
    assert track_context(lambda question: streaming)("hi") is streaming
    if response is StreamingResponse:
        parts = [part async for part in streaming.body_iterator]
    else:
        parts = list(streaming.response)
        streaming.close()
    assert parts == list(make())
    (one,) = conversations(home)
    assert lines(one)[1:] == ([] if answer is None else [("assistant", answer)])


def _flask():
    app = flask.Flask("app")
    tracked = track_context(user_id=lambda _: flask.request.headers["x-user"])

    @app.get("/plain")
    @tracked
    def plain():
        return chain().invoke(ASKED)

    @app.get("/returned")
    @tracked
    def returned():
        return _words("u")

    @app.get("/stream")
    @tracked
    def stream():
        return flask.Response(_words("u"), mimetype="text/plain")

    @app.get("/with-context")
    @tracked
    def with_context():
        def words():
            assert flask.request.headers["x-user"]
            yield from chain().stream(ASKED)
            assert flask.request.path == "/with-context"

        return flask.Response(flask.stream_with_context(words()), mimetype="text/plain")

    @app.get("/yielded")
    @tracked
    def yielded():
        yield from _words("u")

    @app.get("/status")
    @track_context(user_id="u")
    def status():
        return "good day", 201, {"x-a": "b"}

    return app


@pytest.mark.parametrize("path", ["plain", "returned", "stream", "with-context", "yielded"])
def test_flask_handlers_are_sessions(home, path):
    """Views, streaming ones too, are recorded under the user of their request."""
    client = _flask().test_client()
    for user in ("u", "v"):
        answer = client.get(f"/{path}", headers={"x-user": user})
        assert (answer.status_code, answer.text) == (200, "echo: hi")
    assert turns(home) == [TURN, ("v", TURN[1])]


def test_a_flask_view_may_give_a_status(home):
    """Of what a view gives with status and headers the body is the answer."""
    answer = _flask().test_client().get("/status")
    assert (answer.status_code, answer.text, answer.headers["x-a"]) == (201, "good day", "b")
    assert turns(home) == [("u", [("assistant", "good day")])]
