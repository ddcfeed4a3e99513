"""flush_calls: what a call recorded has been delivered when it returns; once, at the end of what is outermost."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import httpx
import pytest
from chains import ASKED, chain
from fakeserver import HANG, FakeServer

import contextwrap
from contextwrap import in_session, session, track_context, wrap
from contextwrap.client import ContextWrap, exchange_default
from contextwrap.testing import CapturedLog
from contextwrap.web import ContextMiddleware, WSGIContextMiddleware


def test_flush_calls_works_anywhere(home):
    """Who sets it has every call delivered when it returns."""
    with FakeServer() as server:
        contextwrap.configure(home=home, endpoint=server.url, token="t", flush_calls=True)
        bot = wrap(chain())
        for number in range(1, 4):
            bot.invoke(ASKED)
            assert len(server.asked) == number


def test_many_calls_do_not_each_wait_for_a_hung_server(home):
    """A server that takes nothing costs one call its seconds, not the next ones, nor a session with nothing in it."""
    with FakeServer(always=HANG) as server:
        client = contextwrap.configure(home=home, endpoint=server.url, token="t", flush_calls=True, exit_timeout=0.3)
        bot = wrap(chain())
        begun = time.monotonic()
        for _ in range(10):
            bot.invoke(ASKED)
            with session():
                pass
        bot.batch([ASKED] * 10)
        # Each for itself: 9 seconds.
        assert time.monotonic() - begun < 2.5
        assert client.shutdown(0).pending == 20


class Noted(CapturedLog):
    """Keeps in memory; `did` is what it was told to do, in order."""

    def __init__(self):
        super().__init__()
        self.did = []

    def put(self, *args, **kwargs):
        self.did.append("put")
        super().put(*args, **kwargs)

    def flush(self, *args, **kwargs):
        self.did.append("flush")
        return super().flush(*args, **kwargs)


def nested(bot):
    with session(user_id="ada"):
        with session(thread_id="t"):
            bot.invoke(ASKED)
        with session(thread_id="u"):
            bot.invoke(ASKED)


def failing(bot):
    with suppress(ValueError), session():
        bot.invoke(ASKED)
        raise ValueError


def rated(bot):
    with session() as here:
        bot.invoke(ASKED)
        here.rate(+1)


def read_later(bot):
    with session():
        pieces = bot.stream(ASKED)
    list(pieces)


def in_threads(bot):
    with session(), ThreadPoolExecutor() as pool:
        list(pool.map(in_session(bot.invoke), [ASKED] * 3))


def tracked_in_tracked(bot):
    inner = track_context(lambda: bot.invoke(ASKED))
    track_context(lambda: [inner(), inner()])()


def tracked_stream(bot):
    @track_context
    def reading():
        yield from bot.stream(ASKED)

    list(reading())


def awaited(bot):
    async def main():
        async with session(), session():
            await asyncio.gather(*[bot.ainvoke(ASKED) for _ in range(3)])

    asyncio.run(main())


def tracked_awaited(bot):
    @track_context
    async def main():
        return await bot.ainvoke(ASKED)

    asyncio.run(main())


def request(transport):
    with httpx.Client(transport=transport, base_url="http://app") as http:
        http.get("/")


def flask_like(bot):
    def app(_, start_response):
        start_response("200 OK", [])
        return [bot.invoke(ASKED).encode()]

    request(httpx.WSGITransport(app=WSGIContextMiddleware(app)))


def flask_stream(bot):
    def app(_, start_response):
        start_response("200 OK", [])
        return (piece.encode() for piece in bot.stream(ASKED))

    request(httpx.WSGITransport(app=WSGIContextMiddleware(app)))


def fastapi_like(bot):
    async def app(_, __, send):
        said = await bot.ainvoke(ASKED)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": said.encode()})

    async def main():
        transport = httpx.ASGITransport(app=ContextMiddleware(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://app") as http:
            await http.get("/")

    asyncio.run(main())


FLUSHES = {
    "a call": (lambda bot: bot.invoke(ASKED), "put flush"),
    "two calls": (lambda bot: [bot.invoke(ASKED), bot.invoke(ASKED)], "put flush put flush"),
    "a rating": (lambda bot: contextwrap.rate(+1, thread="t"), "put flush"),
    "sessions in a session": (nested, "put put flush"),
    "a session that fails": (failing, "put flush"),
    "a session with a rating": (rated, "put put flush"),
    "a stream read after its session": (read_later, "flush put flush"),
    "threads of a session": (in_threads, "put put put flush"),
    "a function": (lambda bot: track_context(bot.invoke)(ASKED), "put flush"),
    "functions in a function": (tracked_in_tracked, "put put flush"),
    "a generator": (tracked_stream, "put flush"),
    "tasks of a session": (awaited, "put put put flush"),
    "a coroutine function": (tracked_awaited, "put flush"),
    "an ASGI request": (fastapi_like, "put flush"),
    "a WSGI request": (flask_like, "put flush"),
    "a WSGI stream": (flask_stream, "put flush"),
}


@pytest.mark.parametrize("way", FLUSHES)
def test_calls_are_flushed_once_at_their_outermost_end(monkeypatch, way):
    """Where machines stop between calls, the end of what is outermost delivers; with `flush_calls` off nothing does."""
    call, expected = FLUSHES[way]
    monkeypatch.setenv("AWS_LAMBDA_FUNCTION_NAME", "x")
    for flush_calls, does in ((None, expected), (False, expected.replace("flush", ""))):
        log = Noted()
        exchange_default(ContextWrap(home=".", keep=log, flush_calls=flush_calls))
        call(wrap(chain()))
        assert log.did == does.split()
