"""The transport: one request a parcel, through the real client, and an outcome for whatever comes back."""

from __future__ import annotations

import pytest
from fakeserver import HANG, RESET, Answer, FakeServer, free_port

from contextwrap import transport as transport_module
from contextwrap.model import Conversation, Log, Message, RatingMark, Route
from contextwrap.outbox import Parcel
from contextwrap.transport import ContextTransport, Delivered, Early, Refused, Retry, Stumbled

LOG = Log(
    route=Route.THREAD,
    tenant_id="acme & co",
    conversation=Conversation(id="größe/1", messages=(Message(role="user", message="hi \ud83d 🦜"),)),
)
ERROR = b'{"error":{"code":"bad_request","message":"no messages"}}'


def parcel(log=LOG, key="the-key"):
    """The call as a parcel."""
    request = log.to_request()
    return Parcel(
        key=key, address="", lane="", method=request.method, target=request.target, body=request.body, created_at=0.0
    )


def outcome_of(*answers, log=LOG):
    """What the transport makes of the answers: the last outcome, and all that was asked."""
    with FakeServer(*answers) as server:
        transport = ContextTransport(endpoint=server.url, token="secret")
        (outcome,) = transport.send([parcel(log)])
        transport.close()
    return outcome, server.asked


def test_a_parcel_is_one_authenticated_request():
    """The request carries the bearer token, the parcel's key as idempotency key, and its very bytes."""
    outcome, (asked,) = outcome_of()
    assert outcome == Delivered()
    assert asked.headers["authorization"] == "Bearer secret"
    assert asked.key == "the-key"
    assert asked.headers["content-type"] == "application/json"
    assert asked.body == LOG.to_request().body
    assert asked.log == LOG


@pytest.mark.parametrize("rated", ["a/b?c#d", "größe ✓", "two words", "50%", "{curly}"])
def test_odd_ids_reach_the_server_whole(rated):
    """No id is bent on its way through the client."""
    log = Log(route=Route.RATING, tenant_id="t&t", rated=rated, marks=(RatingMark(rating=-1, feedback="no"),))
    outcome, (asked,) = outcome_of(Answer(status=200), log=log)
    assert outcome == Delivered()
    assert asked.method == "PATCH"
    assert asked.log == log


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        (Answer(status=200), Delivered()),
        (Answer(status=201, body=b"<html>"), Delivered()),
        (Answer(status=204), Delivered()),
        (Answer(status=200, body=b"<html>"), Retry("the answer is not of the API's form")),
        (Answer(status=201, body=b""), Delivered()),
        (Answer(status=400, body=ERROR), Refused("HTTP 400: (bad_request) no messages")),
        (Answer(status=400, body=b"<html>"), Refused("HTTP 400")),
        (Answer(status=400, body=b'{"error":"odd"}'), Refused("HTTP 400")),
        (Answer(status=400, body=b"[]"), Refused("HTTP 400")),
        (Answer(status=401), Retry("HTTP 401")),
        (Answer(status=403), Refused("HTTP 403")),
        (Answer(status=404), Refused("HTTP 404")),
        (Answer(status=413), Refused("HTTP 413")),
        (Answer(status=302, headers={"Location": "http://127.0.0.1:1/"}), Refused("HTTP 302")),
        (Answer(status=408), Retry("HTTP 408")),
        (Answer(status=429, headers={"Retry-After": "7"}), Retry("HTTP 429", 7.0)),
        (Answer(status=429, headers={"Retry-After": "-7"}), Retry("HTTP 429", 0.0)),
        (Answer(status=503, headers={"Retry-After": "Fri, 31 Dec 1999 23:59:59 GMT"}), Retry("HTTP 503")),
        (Answer(status=500, body=b"<html>"), Stumbled("HTTP 500")),
        (Answer(status=500, headers={"Retry-After": "3"}), Retry("HTTP 500", 3.0)),
        (Answer(status=502), Retry("HTTP 502")),
    ],
)
def test_each_answer_has_its_outcome(answer, outcome):
    """2xx is delivered, 401, 408, 429 and 5xx are for later, all else is never; and it is asked once."""
    found, asked = outcome_of(answer)
    assert found == outcome
    assert len(asked) == 1


def test_a_rating_of_what_is_not_there_is_early():
    """Its message may be on its way in another process; a message that is not found is refused."""
    log = Log(route=Route.RATING, rated="m", marks=(RatingMark(rating=1),))
    outcome, _ = outcome_of(Answer(status=404, body=ERROR), log=log)
    assert outcome == Early("HTTP 404: (bad_request) no messages")


def test_a_server_that_hangs_up_is_for_later():
    """A connection that breaks means later."""
    outcome, _ = outcome_of(RESET)
    assert outcome == Retry("the connection broke off")


def test_a_server_that_is_not_there_is_for_later():
    """A refused connection means later, and says so in words, without the address or the token."""
    outcome = ContextTransport(endpoint=f"http://127.0.0.1:{free_port()}", token="secret").send([parcel()])[0]
    assert outcome == Retry("the server cannot be reached")


def test_a_server_that_says_nothing_is_for_later(monkeypatch):
    """A hung server is given up after the read timeout."""
    monkeypatch.setattr(transport_module, "_READ_SECONDS", 0.2)
    outcome, _ = outcome_of(HANG)
    assert outcome == Retry("no answer in time")


def test_send_never_raises():
    """An endpoint that no client can speak to means later, not an exception."""
    assert isinstance(ContextTransport(endpoint="http://127.0.0.1:99999", token="t").send([parcel()])[0], Retry)


def test_a_closed_transport_opens_again():
    """After close, the next send opens new connections."""
    with FakeServer() as server:
        transport = ContextTransport(endpoint=server.url + "/", token="secret")
        for _ in range(2):
            assert transport.send([parcel()]) == [Delivered()]
            transport.close()
            transport.close()
    assert [asked.target for asked in server.asked] == [LOG.to_request().target] * 2
