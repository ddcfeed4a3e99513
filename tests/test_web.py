"""The middleware: each request is a session of its user, whichever framework, endpoint and kind of answer."""

from __future__ import annotations

import asyncio
import contextvars
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import flask
import httpx
import pytest
import uvicorn
from chains import chain
from fakeserver import FakeServer
from fastapi import BackgroundTasks, Depends, FastAPI, WebSocket
from fastapi.responses import FileResponse, StreamingResponse
from fastapi.testclient import TestClient
from parcels import conversations, lines, ratings
from starlette.middleware.base import BaseHTTPMiddleware
from werkzeug.serving import make_server

import contextwrap
from contextwrap import rate, session
from contextwrap.errors import ConfigurationError
from contextwrap.identity import current_scope
from contextwrap.web import ANSWER_HEADER, ContextMiddleware, WSGIContextMiddleware

pytestmark = pytest.mark.usefixtures("recording")
BOT = chain()


def asked(question):
    return {"question": question}


def fastapi_app(**options):  # noqa: C901  an endpoint a kind
    """Endpoints of every kind behind the middleware."""
    app = FastAPI()

    @app.get("/sync/{question}")
    def sync(question: str):
        return {"answer": BOT.invoke(asked(question))}

    @app.get("/async/{question}")
    async def asynchronous(question: str):
        return {"answer": await BOT.ainvoke(asked(question))}

    @app.get("/stream/{question}")
    def stream(question: str):
        return StreamingResponse(BOT.stream(asked(question)), media_type="text/plain")

    @app.get("/astream/{question}")
    async def astream(question: str):
        return StreamingResponse(BOT.astream(asked(question)), media_type="text/plain")

    @app.get("/background/{question}")
    async def background(question: str, tasks: BackgroundTasks):
        tasks.add_task(BOT.invoke, asked(question))
        return {"answer": "later"}

    @app.get("/nothing")
    async def nothing():
        return {"answer": "nothing"}

    @app.get("/failing")
    async def failing():
        raise ValueError("the app's own")

    @app.get("/file")
    async def file():
        return FileResponse(__file__)

    @app.websocket("/socket")
    async def socket(connection: WebSocket):
        await connection.accept()
        for _ in range(2):
            await connection.send_text(await BOT.ainvoke(asked(await connection.receive_text())))
        await connection.close()

    app.add_middleware(ContextMiddleware, **options)
    return app


def flask_app(**options):
    """The same for Flask."""
    app = flask.Flask(__name__)

    @app.get("/sync/<question>")
    def sync(question):
        return {"answer": BOT.invoke(asked(question))}

    @app.get("/stream/<question>")
    def stream(question):
        return flask.Response(flask.stream_with_context(BOT.stream(asked(question))), mimetype="text/plain")

    @app.get("/nothing")
    def nothing():
        return {"answer": "nothing"}

    @app.get("/file")
    def file():
        return flask.send_file(__file__)

    app.wsgi_app = WSGIContextMiddleware(app.wsgi_app, **options)
    return app


@contextmanager
def serve_asgi(app):
    """A real uvicorn on loopback."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def serve_wsgi(app):
    """A real threaded WSGI server on loopback, with the standard library's validator around the app."""
    server = make_server("127.0.0.1", 0, app, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


KINDS = {"asgi": (fastapi_app, serve_asgi), "wsgi": (flask_app, serve_wsgi)}
each_kind = pytest.mark.parametrize("kind", KINDS)


@contextmanager
def served(kind, **options):
    make, serve = KINDS[kind]
    with serve(make(**options)) as url, httpx.Client(base_url=url, timeout=20) as client:
        yield client


def turns(home):
    return [(one.user_id, lines(one)) for one in conversations(home)]


def turn(user, question):
    return (user, [("user", question), ("assistant", f"echo: {question}")])


@pytest.mark.parametrize(
    ("kind", "path"),
    [("asgi", path) for path in ("sync", "async", "stream", "astream", "background")]
    + [("wsgi", path) for path in ("sync", "stream")],
)
def test_every_kind_of_endpoint_speaks_for_its_user(home, kind, path):
    """Whatever LangChain runs for a request is recorded for its user and thread, unwrapped as it is."""
    with served(kind) as client:
        got = client.get(f"/{path}/hi", headers={"x-user-id": "ada", "x-thread-id": "t"})
    assert got.status_code == 200
    assert ("echo: hi" in got.text) == (path != "background")
    assert turns(home) == [turn("ada", "hi")]
    assert conversations(home)[0].id == "t"


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("asgi", "sync"),
        ("asgi", "async"),
        ("asgi", "stream"),
        ("asgi", "astream"),
        ("wsgi", "sync"),
        ("wsgi", "stream"),
    ],
)
def test_the_header_names_the_answer(home, kind, path):
    """The response says which message the answer is, before it is streamed too, and that message can be rated."""
    with served(kind) as client:
        answer = client.get(f"/{path}/hi").headers[ANSWER_HEADER]
    (one,) = conversations(home)
    assert one.messages[-1].id == answer
    rate(1, message=answer, thread=one.id)
    assert [log.rated for log in ratings(home)] == [answer]


@each_kind
def test_a_response_without_an_answer_names_none(kind):
    """Nothing is promised where nothing was asked."""
    with served(kind) as client:
        assert ANSWER_HEADER not in client.get("/nothing").headers


def _plain_asgi(status, headers):
    async def app(scope, receive, send):
        given = [(name.encode(), value.encode()) for name, value in headers]
        await send({"type": "http.response.start", "status": status, "headers": given})
        await send({"type": "http.response.body"})

    return app


def _plain_wsgi(status, headers):
    def app(environ, start_response):
        start_response(f"{status} Said", headers)
        return []

    return app


@pytest.mark.parametrize(
    ("method", "status", "headers", "named"),
    [
        ("GET", 200, [], 1),
        ("HEAD", 200, [], 0),
        ("GET", 204, [], 0),
        ("GET", 205, [], 0),
        ("GET", 304, [], 0),
        ("GET", 302, [], 0),
        ("GET", 500, [], 0),
        ("GET", 200, [("X-Contextwrap-Answer", "own")], 1),
    ],
)
async def test_an_id_is_promised_only_where_an_answer_can_follow(method, status, headers, named):
    """A failure, a redirect, an empty response and HEAD promise nothing; a header that is there is the only one."""
    heard = []

    async def send(message):
        heard.append(message)

    scope = {"type": "http", "method": method, "headers": []}
    await ContextMiddleware(_plain_asgi(status, headers))(scope, None, send)
    asgi = [(name.decode(), value.decode()) for name, value in heard[0]["headers"]]
    WSGIContextMiddleware(_plain_wsgi(status, headers))(
        {"REQUEST_METHOD": method}, lambda status, headers: heard.append(headers)
    )
    for found in (asgi, heard[-1]):
        assert [name.lower() for name, _ in found].count(ANSWER_HEADER) == named
        assert [pair for pair in found if pair in headers] == headers


def test_nested_in_itself_it_names_one_answer(home):
    """Of two around each other in different threads the inner one, where the answer is recorded, names it."""
    app = fastapi_app(thread_id="t")
    app.add_middleware(ContextMiddleware, user_id="outer")
    answers = TestClient(app).get("/stream/hi").headers.get_list(ANSWER_HEADER)
    assert answers == [conversations(home)[0].messages[-1].id]


@each_kind
def test_all_else_is_unchanged(kind):
    """Status, headers, body, HEAD and errors are as without the middleware."""
    make, serve = KINDS[kind]
    bare, wrapped = make(), make()
    if kind == "wsgi":
        bare.wsgi_app = bare.wsgi_app._app
    else:
        bare.user_middleware.clear()
    seen = []
    for app in (bare, wrapped):
        with serve(app) as url, httpx.Client(base_url=url) as client:
            got = [
                client.get("/nothing"), client.get("/sync/hi"), client.get("/stream/hi"), client.get("/nowhere"),
                client.head("/file"), client.get("/file"), client.post("/nothing"),
            ]  # fmt: skip
        seen.append([(one.status_code, one.content, _plain(one.headers)) for one in got])
    assert seen[0] == seen[1]


def _plain(headers):
    return {name: value for name, value in headers.items() if name not in {"date", ANSWER_HEADER}}


def test_an_apps_error_is_its_own():
    """What the app raises comes through the middleware as it is."""
    with pytest.raises(ValueError, match="the app's own"):
        TestClient(fastapi_app()).get("/failing")


@each_kind
@pytest.mark.parametrize(
    ("options", "headers", "user"),
    [
        ({}, {"x-user-id": "ada"}, "ada"),
        ({}, {"X-User-Id": '"ada"'}, "ada"),
        ({}, {"x-user-id": '""'}, None),
        ({}, {}, None),
        ({}, {"cookie": "uid=ada"}, None),
        ({"user_header": None}, {"x-user-id": "ada"}, None),
        ({"user_header": "x-account"}, {"x-account": "ada"}, "ada"),
        ({"user_cookie": "uid"}, {"cookie": "a=b; uid=ada; c=d"}, "ada"),
        ({"user_cookie": "uid"}, {"cookie": "uid=cookie", "x-user-id": "header"}, "header"),
        ({"user_id": "constant"}, {"x-user-id": "header"}, "constant"),
        ({"user_id": lambda request: type(request).__name__}, {"x-user-id": "header"}, "dict"),
        ({"user_id": lambda _: None}, {"x-user-id": "header"}, None),
        ({}, {"x-user-id": "x" * 5000}, "x" * 4096),
    ],
)
def test_whose_request_it_is(home, kind, options, headers, user):
    """A callable or constant alone counts; else the header, then a cookie, which is off unless named."""
    with served(kind, **options) as client:
        client.get("/sync/hi", headers=headers)
    assert [one.user_id for one in conversations(home)] == [user]


@each_kind
def test_metadata_tags_and_capture(home, kind):
    """What is said of all requests is said of each; what is off is not recorded."""
    with served(kind, metadata={"release": "2", "none": None}, tags="web") as client:
        client.get("/sync/hi")
    (one,) = conversations(home)
    assert dict(one.metadata) == {"release": "2", "tags": "web", "model": "echo-1"}
    with served(kind, capture="off") as client:
        assert ANSWER_HEADER not in client.get("/sync/hi").headers
    assert len(conversations(home)) == 1
    with pytest.raises(ConfigurationError, match="capture"):
        KINDS[kind][0](capture="some").wsgi_app if kind == "wsgi" else ContextMiddleware(None, capture="some")


@pytest.mark.parametrize("name", ["", "a b", "a\r\nset-cookie: b", "ä"])
def test_a_name_that_no_header_has_is_refused(name):
    """A header's name is checked where the middleware is set up, not in each response."""
    with pytest.raises(ConfigurationError, match="header"):
        WSGIContextMiddleware(None, answer_header=name)


@each_kind
def test_a_failing_callable_costs_its_value_only(home, kind, monkeypatch):
    """A callable that raises is counted, and the request served."""
    monkeypatch.delenv("CONTEXTWRAP_RAISE")

    def fails(_):
        raise LookupError("nobody")

    client = contextwrap.client.default_client()
    with served(kind, user_id=fails) as browser:
        assert browser.get("/sync/hi").status_code == 200
    assert client.stats().lost == {"web: LookupError": 1}
    assert [one.user_id for one in conversations(home)] == [None]


@each_kind
def test_many_at_once_stay_apart(home, kind):
    """Forty requests of ten users at once: each turn is its own user's."""
    paths = ["sync", "stream"]
    calls = [(f"u{number % 10}", f"{paths[number % 2]}/q{number} of u{number % 10}") for number in range(40)]
    with served(kind) as client, ThreadPoolExecutor(20) as pool:
        list(pool.map(lambda call: client.get(f"/{call[1]}", headers={"x-user-id": call[0]}), calls))
    questions = Counter((user, path.partition("/")[2]) for user, path in calls)
    assert Counter((user, rows[0][1]) for user, rows in turns(home)) == questions


def test_a_websocket_is_one_session(home):
    """All that a connection asks is one thread of one user."""
    with TestClient(fastapi_app()).websocket_connect("/socket", headers={"x-user-id": "ada"}) as socket:
        for question in ("one", "two"):
            socket.send_text(question)
            assert socket.receive_text() == f"echo: {question}"
    assert turns(home) == [turn("ada", "one"), turn("ada", "two")]
    assert len({one.id for one in conversations(home)}) == 1


def test_a_reader_that_goes_away_leaves_an_interrupted_turn(home):
    """A client that hangs up in the midst of a stream leaves what it was told, marked as interrupted."""
    app = FastAPI()
    slow = chain(pause=0.05)

    @app.get("/")
    async def stream():
        return StreamingResponse(slow.astream(asked("one two three four five six seven eight")))

    app.add_middleware(ContextMiddleware)
    with serve_asgi(app) as url, httpx.stream("GET", url) as response:
        next(response.iter_raw())
    (one,) = conversations(home)
    assert one.messages[-1].metadata["interrupted"] == "true"
    assert one.messages[-1].message.startswith("echo:")
    assert not one.messages[-1].message.endswith("eight")


def test_other_middleware_around_and_inside(home):
    """It works inside Starlette's BaseHTTPMiddleware, and nested in itself, where the inner inherits."""

    async def passing(request, call_next):
        return await call_next(request)

    app = fastapi_app(thread_id="t")
    app.add_middleware(BaseHTTPMiddleware, dispatch=passing)
    app.add_middleware(ContextMiddleware, user_id="outer")
    got = TestClient(app).get("/stream/hi")
    assert got.text == "echo: hi"
    assert turns(home) == [turn("outer", "hi")]
    assert conversations(home)[0].id == "t"


def test_why_a_sync_dependency_is_not_the_way(home):
    """FastAPI runs a sync dependency in a Context of its own, where its session stays; the middleware reaches."""

    def dependency():
        with session(user_id="ada"):
            yield

    app = FastAPI()

    @app.get("/", dependencies=[Depends(dependency)])
    def endpoint():
        return current_scope() is None

    assert TestClient(app).get("/").json() is True
    assert TestClient(ContextMiddleware(app, user_id="ada")).get("/").json() is False


async def test_the_end_of_the_lifespan_delivers_what_waits(home):
    """Before the server hears that the app has shut down everything has arrived; no other message waits for it."""
    heard = []
    with FakeServer() as server:
        contextwrap.configure(home=home, endpoint=server.url, token="t")

        async def send(message):
            heard.append((message["type"], len(server.asked)))

        async def app(scope, receive, send):
            await send({"type": "lifespan.startup.complete"})
            with session():
                assert session.current().add_message("user", "hi")
            await send({"type": "lifespan.shutdown.complete"})

        await ContextMiddleware(app)({"type": "lifespan"}, None, send)
    assert heard == [("lifespan.startup.complete", 0), ("lifespan.shutdown.complete", 1)]


async def test_what_is_no_request_is_left_alone():
    """What is neither a request nor the lifespan passes through untouched."""
    seen = []

    async def app(scope, receive, send):
        seen.append((scope, receive, send, current_scope()))

    given = ({"type": "tasks"}, asyncio.Event(), asyncio.Event())
    await ContextMiddleware(app)(*given)
    assert seen == [(*given, None)]


@pytest.mark.parametrize("path", ["/nothing", "/sync/hi", "/stream/hi", "/file"])
def test_the_protocol_is_kept_to_the_letter(path):
    """The standard library's validator of WSGI finds nothing."""
    environ = {"QUERY_STRING": ""}
    setup_testing_defaults(environ)
    environ["PATH_INFO"] = path
    answer = validator(flask_app().wsgi_app)(environ, lambda *_: lambda _: None)
    assert b"".join(answer)
    answer.close()


def test_plain_wsgi(home):
    """An app of generator, write() and close() keeps its protocol, and leaves no session in the server's thread."""
    closed = []

    class Chunks:
        def __iter__(self):
            assert current_scope() is not None
            for part in BOT.stream(asked("hi")):
                yield part.encode()

        def close(self):
            closed.append(current_scope() is not None)

    def app(environ, start_response):
        write = start_response("200 OK", [("Content-Type", "text/plain")])
        write(b"first ")
        return Chunks()

    written, started = [], []

    def start_response(status, headers, exc_info=None):
        started.append((status, dict(headers)))
        return written.append

    environ = {"REQUEST_METHOD": "GET", "HTTP_X_USER_ID": "ada"}
    answer = WSGIContextMiddleware(app)(environ, start_response)
    body = []
    for part in answer:
        assert current_scope() is None
        body.append(part)
    answer.close()
    assert (written, b"".join(body), closed) == ([b"first "], b"echo: hi", [True])
    assert turns(home) == [turn("ada", "hi")]
    assert started == [
        ("200 OK", {"Content-Type": "text/plain", ANSWER_HEADER: conversations(home)[0].messages[-1].id})
    ]


def test_a_session_of_the_endpoints_own_is_answered_too(home):
    """An endpoint that opens a session of another thread still has its answer named in the header."""
    app = FastAPI()

    @app.get("/{kind}")
    def endpoint(kind: str):
        with session(thread_id="other"):
            if kind == "stream":
                return StreamingResponse(BOT.stream(asked("hi")))
            return {"answer": BOT.invoke(asked("hi"))}

    browser = TestClient(ContextMiddleware(app))
    named = [browser.get(f"/{kind}").headers[ANSWER_HEADER] for kind in ("whole", "stream")]
    assert named == [one.messages[-1].id for one in conversations(home)]
    assert {one.id for one in conversations(home)} == {"other"}


def test_what_the_app_sets_is_seen_around_it(home):
    """A ContextVar that a WSGI app sets is there for other middleware around it, as without ours."""
    var = contextvars.ContextVar("var", default="unset")

    def app(environ, start_response):
        var.set("by the app")
        start_response("200 OK", [("Content-Length", "2")])
        return [b"ok"]

    def run():
        WSGIContextMiddleware(app)({"REQUEST_METHOD": "GET"}, lambda *_: None)
        return var.get()

    assert contextvars.copy_context().run(run) == "by the app"
