"""POST /api/v1/rate: a browser of any site rates one answer, with a rating token and nothing else."""

from __future__ import annotations

import json
import time

import httpx
import pytest
from fakemodels import Echo
from serving import context_client, served

from contextwrap.client import configure, reset_defaults
from contextwrap.ratings import rating_token
from contextwrap.sessions import session
from contextwrap.tokens import fingerprint, issue, key_secret

RATE = "/api/v1/rate"
LOG = "/api/v1/log/conversation/thread"
GOOD = 4_000_000_000


@pytest.fixture
def key(server):
    """The key of an app that has logged one answer, `m`, in the thread `t`."""
    secret = server.key("ingest")
    _log(server, secret)
    return secret


def _log(server, key):
    messages = [{"role": "user", "message": "hi", "id": "q"}, {"role": "assistant", "message": "hello", "id": "m"}]
    headers = {"Authorization": f"Bearer {key}"}
    body = {"conversation": {"id": "t", "messages": messages}}
    assert httpx.post(server.url + LOG, json=body, headers=headers).status_code == 201


def _token(key, *, answer="m", thread="t", tenant="", until=GOOD):
    return issue(key_secret(key), answer=answer, thread=thread, tenant=tenant, expires_at=until)


def _post(server, token, rating=1, **more):
    return httpx.post(server.url + RATE, json={"token": token, "rating": rating, **more})


def _stored(server, tenant="", conversation="t"):
    """The rating of the thread's last message, and what was said with it."""
    server.settle()
    found = server.house.store.conversation(conversation, tenant_id=tenant)
    last = found.messages[-1]
    return last.rating, last.metadata.get("feedback") or found.feedback


def _refused(answer, status, code):
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (status, code)
    assert answer.headers["access-control-allow-origin"] == "*"
    return error["message"]


def test_a_token_rates_its_answer(server, key):
    """Rating and feedback reach the message; another use of the same token takes them back."""
    answer = _post(server, _token(key), -1, feedback="wrong year")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert _stored(server) == (-1, "wrong year")
    assert _post(server, _token(key), 1).status_code == 200
    assert _stored(server)[0] == 1


def test_a_token_of_a_thread_rates_its_newest_answer(server, key):
    """Without a message the thread's newest answer is rated."""
    assert _post(server, _token(key, answer=None)).status_code == 200
    assert _stored(server)[0] == 1


@pytest.mark.parametrize("kind", ["application/json", "text/plain;charset=UTF-8", "text/plain", None])
def test_a_beacon_is_taken_too(server, key, kind):
    """navigator.sendBeacon sends text, which browsers let pass without asking first."""
    headers = {"Origin": "https://app.example", **({"Content-Type": kind} if kind else {})}
    content = json.dumps({"token": _token(key), "rating": 1}).encode()
    answer = httpx.post(server.url + RATE, content=content, headers=headers)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in answer.headers
    assert _stored(server)[0] == 1


def test_any_site_may_ask_and_never_with_credentials(server):
    """A browser that asks before it sends JSON is let through, for this method and this header."""
    asking = {
        "Origin": "https://app.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    answer = httpx.options(server.url + RATE, headers=asking)
    said = {name: value for name, value in answer.headers.items() if name.startswith("access-control-")}
    assert (answer.status_code, answer.content) == (204, b"")
    assert said == {
        "access-control-allow-origin": "*",
        "access-control-allow-methods": "POST",
        "access-control-allow-headers": "content-type",
        "access-control-max-age": "86400",
    }


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", LOG), ("OPTIONS", LOG), ("GET", "/api/v1/conversations"), ("OPTIONS", "/api/v1/rate/x"), ("GET", RATE)],
)
def test_no_other_route_is_open_to_other_sites(server, key, method, path):
    """Pages of other sites can read nothing of what the server says elsewhere."""
    headers = {"Origin": "https://app.example", "Authorization": f"Bearer {server.key()}"}
    answer = httpx.request(method, server.url + path, headers=headers)
    assert not [name for name in answer.headers if name.startswith("access-control-")]


def test_one_refusal_for_every_bad_token(server, key):
    """Forged, foreign, expired, malformed, of a key that may not: the same words and nothing to learn from them."""
    good = _token(key)
    tokens = [
        good[:-1] + ("A" if good[-1] != "A" else "B"),
        _token(key, until=time.time() - 1),
        _token("cw_ingest_never-made-here"),
        _token(server.key("read")),
        _token(server.key("ingest", "red"), tenant="blue"),
        issue(b"x" * 32, answer="m", thread="t", tenant="", expires_at=GOOD),
        "cw_rate_",
        good + " ",
        "",
        None,
        7,
        {"a": []},
    ]
    messages = {_refused(_post(server, token), 403, "Forbidden") for token in tokens}
    assert messages == {"this rating token is not good here, or not any more: ask the app for a new one"}
    assert _stored(server) == (None, None)
    assert _post(server, good).status_code == 200


def test_a_revoked_key_takes_its_tokens_with_it(server, key):
    """With the key the tokens end, at once; those of another key stay good."""
    other = server.key("admin")
    server.house.keys.revoke(next(one.id for one in server.house.keys.list() if one.scope == "ingest"))
    _refused(_post(server, _token(key)), 403, "Forbidden")
    assert _post(server, _token(other)).status_code == 200


def test_a_token_is_no_key(server, key):
    """It opens no other route."""
    headers = {"Authorization": f"Bearer {_token(key)}"}
    assert httpx.post(server.url + LOG, json={}, headers=headers).status_code == 401
    assert httpx.get(f"{server.url}/api/v1/conversations", headers=headers).status_code == 401


def test_a_tenant_s_key_rates_in_that_tenant_only(server):
    """What a bound key signs is its tenant's, named or not; a free key names the tenant in the token."""
    red, free = server.key("ingest", "red"), server.key("ingest")
    _log(server, red)
    _log(server, free)
    for rating, tenant in ((1, "red"), (-1, "")):
        assert _post(server, _token(red, tenant=tenant), rating).status_code == 200
        assert (_stored(server, "red")[0], _stored(server)[0]) == (rating, None)
    assert _post(server, _token(free, tenant="red"), 0).status_code == 200
    assert (_stored(server, "red")[0], _stored(server)[0]) == (0, None)
    _refused(_post(server, _token(free, tenant="blue")), 404, "NotFound")
    # The query does not say it anew.
    body = {"token": _token(free, tenant="red"), "rating": 1}
    assert httpx.post(f"{server.url}{RATE}?tenant_id=", json=body).status_code == 200
    assert (_stored(server, "red")[0], _stored(server)[0]) == (1, None)


def test_what_was_never_recorded_is_not_found(server, key):
    """As when a key rates it."""
    patched = httpx.patch(f"{server.url}{LOG}/x", json=[{"rating": 1}], headers={"Authorization": f"Bearer {key}"})
    assert _refused(_post(server, _token(key, answer="x")), 404, "NotFound") == patched.json()["error"]["message"]


@pytest.mark.parametrize("strange", ["a/b?c#d", "größe ✓", "50%", "a%2Fb", "..", "&x=1;y", "\x00"])
def test_any_id_can_be_rated(server, key, strange):
    """An id is rated as it is, whatever it looks like in a URL."""
    message = {"role": "assistant", "message": "so", "id": strange}
    body = {"conversation": {"id": "odd", "messages": [message]}}
    headers = {"Authorization": f"Bearer {key}"}
    assert httpx.post(server.url + LOG, json=body, headers=headers).status_code == 201
    assert _post(server, _token(key, answer=strange)).status_code == 200
    assert _stored(server, conversation="odd")[0] == 1


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (b"", "the body is not JSON"),
        (b"\xff", "the body is not JSON"),
        (b"[" * 10_000, "the body is not JSON"),
        ([], "the body must be an object"),
        ({}, "rating must be -1, 0 or 1"),
        ({"rating": 2}, "rating must be -1, 0 or 1"),
        ({"rating": True}, "rating must be -1, 0 or 1"),
        ({"rating": 1.0}, "rating must be -1, 0 or 1"),
        ({"rating": "1"}, "rating must be -1, 0 or 1"),
        ({"rating": [1]}, "rating must be -1, 0 or 1"),
        ({"rating": 1, "feedback": 7}, "feedback must be a string"),
    ],
)
def test_a_bad_body_is_refused_with_its_reason(server, key, body, reason):
    """What is wrong is said in the one shape, to the page that sent it."""
    if isinstance(body, dict):
        body = {"token": _token(key)} | body
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert reason in _refused(httpx.post(server.url + RATE, content=content), 400, "BadRequest")
    assert _stored(server) == (None, None)


def test_a_body_is_bounded(server, key):
    """Sixteen kilobytes and not one byte more, announced or not."""
    body = json.dumps({"token": _token(key), "rating": 1}).encode()
    full = body + b" " * (16 * 1024 - len(body))
    assert httpx.post(server.url + RATE, content=full).status_code == 200
    _refused(httpx.post(server.url + RATE, content=full + b" "), 413, "PayloadTooLarge")
    _refused(httpx.post(server.url + RATE, content=iter([full, b" "])), 413, "PayloadTooLarge")


def test_feedback_is_cut(server, key):
    """Of a long feedback the first 2000 characters are kept; half a character breaks nothing."""
    assert _post(server, _token(key), feedback="ü" * 2500).status_code == 200
    assert _stored(server)[1] == "ü" * 2000
    half = json.dumps({"token": _token(key), "rating": 1, "feedback": "\ud800 so"}).encode()
    assert httpx.post(server.url + RATE, content=half).status_code == 200
    assert _stored(server)[1] == "\ufffd so"


def test_a_foreign_host_name_is_refused(server, key):
    """The route is open to pages of other sites, not to other names of the server."""
    body = {"token": _token(key), "rating": 1}
    answer = httpx.post(server.url + RATE, json=body, headers={"Host": "rebound.example"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "Forbidden")
    assert _stored(server) == (None, None)


def test_a_rating_outlives_the_server(tmp_path):
    """What was acknowledged is on disk, as with every log call."""
    with served(tmp_path / "home") as server:
        key = server.key("ingest")
        _log(server, key)
        assert _post(server, _token(key), -1).status_code == 200
    with served(tmp_path / "home") as server:
        assert _stored(server)[0] == -1


def test_the_sdk_s_token_is_good_at_its_server(server, tmp_path):
    """An app with an endpoint hands out tokens that the server takes from browsers."""
    client = configure(home=tmp_path / "app", endpoint=server.url, token=server.key("ingest"))
    with session(thread_id="talk"):
        token = rating_token()
        Echo().invoke("hi")
    assert client.flush().pending == 0
    assert _post(server, token, -1, feedback="no").status_code == 200
    assert _stored(server, conversation="talk") == (-1, "no")


def test_a_local_app_s_token_is_good_at_the_server_of_its_home(tmp_path):
    """An app without an endpoint, of any tenant, signs with its home's key; the server there reads the same file."""
    configure(home=tmp_path / "home", tenant_id="red")
    with session(thread_id="talk"):
        Echo().invoke("hi")
        token = rating_token()
    reset_defaults()
    with served(tmp_path / "home") as server:
        assert server.house.pipeline.drain().dead == 0
        assert _post(server, token).status_code == 200
        assert _stored(server, "red", "talk")[0] == 1
        (server.home / "rating.key").unlink()
        _refused(_post(server, token), 403, "Forbidden")
        assert not (server.home / "rating.key").exists()
        for damaged in (b"", b"short"):
            (server.home / "rating.key").write_bytes(damaged)
            forged = token.replace(token[8:20], fingerprint(damaged))
            _refused(_post(server, forged), 403, "Forbidden")


def test_the_lent_key_of_a_running_server_signs_as_well(server, key):
    """Whoever may read the home's files may rate in it, as long as the server runs."""
    from contextwrap.server.keys import Viewer

    assert _post(server, _token(server.house.keys.lend(Viewer(scope="admin")))).status_code == 200
    _refused(_post(server, _token(server.house.keys.lend(Viewer(scope="read")))), 403, "Forbidden")


def test_the_api_s_own_client_reads_the_rating(server, key):
    """context-python sees the rating like any other."""
    assert _post(server, _token(key), -1).status_code == 200
    with context_client(server.url, server.key()) as client:
        assert [item.rating for item in client.conversation("t").messages] == [0, -1]
