"""Keys, sign-in links and browser sessions."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING

import httpx
import pytest

from contextwrap.errors import ConfigurationError
from contextwrap.server.keys import Keys, Viewer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from serving import Served


@pytest.fixture
def keys(tmp_path: Path) -> Iterator[Keys]:
    """An empty file of keys."""
    with closing(Keys(tmp_path / "server" / "keys.sqlite")) as opened:
        yield opened


def test_a_key_is_known_by_its_secret_alone(keys: Keys) -> None:
    """The secret names its scope, opens what it says, and is nowhere in what can be listed."""
    secret = keys.create(scope="ingest", tenant_id="red", name="app")
    assert secret.startswith("cw_ingest_")
    (key,) = keys.list()
    assert keys.check(secret) == Viewer(scope="ingest", tenant_id="red", key_id=key.id)
    assert keys.check(secret[:-1]) is None
    assert secret not in repr(key)


def test_no_secret_is_in_the_file(keys: Keys, tmp_path: Path) -> None:
    """Keys, links and sessions are stored hashed, in a file that only its owner can read."""
    session = keys.make_session(Viewer(scope="read"))
    secrets = [keys.create(scope="admin"), keys.make_link(Viewer(scope="admin")), session]
    path = tmp_path / "server" / "keys.sqlite"
    keys.close()
    content = path.read_bytes()
    assert not [secret for secret in secrets if secret.encode() in content or secret[9:].encode() in content]
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0


def test_a_revoked_key_opens_nothing_nor_does_its_browser(keys: Keys) -> None:
    """Revoking by the start of an id ends the key and the sessions that were opened with it."""
    secret = keys.create(scope="read")
    viewer = keys.check(secret)
    assert viewer is not None
    session = keys.make_session(viewer)
    assert keys.session(session) == viewer
    keys.revoke(keys.list()[0].id[:6])
    assert (keys.check(secret), keys.session(session), keys.list()) == (None, None, [])


@pytest.mark.parametrize("wanted", ["", "nothing"])
def test_revoking_what_is_not_there_says_so(keys: Keys, wanted: str) -> None:
    """An id that fits no key, and no id at all, revoke nothing."""
    keys.create(scope="read")
    with pytest.raises(ConfigurationError, match="no key has an id that starts with"):
        keys.revoke(wanted)
    assert len(keys.list()) == 1


def test_an_unknown_scope_is_refused(keys: Keys) -> None:
    """There are three scopes."""
    with pytest.raises(ConfigurationError, match="one of ingest, read, admin"):
        keys.create(scope="root")


def test_a_key_made_beside_a_running_server_works_at_once(server: Served) -> None:
    """The command line and the server share the file."""
    beside = Keys(server.home / "server" / "keys.sqlite")
    headers = {"Authorization": f"Bearer {beside.create(scope='read')}"}
    assert httpx.get(f"{server.url}/api/v1/conversations", headers=headers).status_code == 200
    beside.revoke(beside.list()[0].id)
    assert httpx.get(f"{server.url}/api/v1/conversations", headers=headers).status_code == 401
    beside.close()


def test_last_used_is_known(keys: Keys) -> None:
    """A key that was used says when."""
    secret = keys.create(scope="read")
    assert keys.list()[0].used_at is None
    keys.check(secret)
    assert keys.list()[0].used_at is not None


def test_a_file_that_is_no_keys_file_is_one_line(tmp_path: Path) -> None:
    """A damaged file is named, not a traceback."""
    (tmp_path / "keys.sqlite").write_bytes(b"not a database" * 100)
    with pytest.raises(ConfigurationError, match=r"cannot open the keys in .*keys\.sqlite"):
        Keys(tmp_path / "keys.sqlite")


def test_pages_lead_to_the_door_and_back(server: Served) -> None:
    """Without a session a page leads to the sign-in, which leads back to it."""
    with httpx.Client(base_url=server.url) as browser:
        turned_away = browser.get("/conversations?user=ada")
        assert (turned_away.status_code, turned_away.headers["location"]) == (
            303,
            "/signin?next=%2Fconversations%3Fuser%3Dada",
        )
        form = {"key": server.key("read"), "next": "/conversations?user=ada"}
        let_in = browser.post("/signin", data=form)
        assert (let_in.status_code, let_in.headers["location"]) == (303, "/conversations?user=ada")
        assert browser.get("/conversations?user=ada").status_code == 200


def test_a_link_signs_in_once(server: Served) -> None:
    """The second follower of a link stands before the door."""
    link = server.sign_in_url()
    first = httpx.get(link)
    cookie = first.headers["set-cookie"]
    assert (first.status_code, first.headers["location"]) == (303, "/")
    assert all(flag in cookie for flag in ("HttpOnly", "SameSite=lax", "Path=/"))
    second = httpx.get(link)
    assert second.status_code == 403
    assert "set-cookie" not in second.headers
    assert "used already" in second.text


@pytest.mark.parametrize(
    "onward", ["https://evil.example/", "//evil.example", "/\\evil.example", "javascript:alert(1)", "/\nx"]
)
def test_the_door_leads_to_no_other_site(server: Served, onward: str) -> None:
    """Whatever `next` says, sign-in ends on this server."""
    answer = httpx.post(f"{server.url}/signin", data={"key": server.key("read"), "next": onward})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")


@pytest.mark.parametrize("headers", [{"Origin": "https://evil.example"}, {"Sec-Fetch-Site": "cross-site"}])
def test_another_sites_form_is_refused(server: Served, headers: dict[str, str]) -> None:
    """Neither sign-in nor sign-out can be sent from elsewhere."""
    for path in ("/signin", "/signout"):
        answer = httpx.post(server.url + path, data={"key": server.key("read")}, headers=headers)
        assert answer.status_code == 403
        assert "set-cookie" not in answer.headers


def test_wrong_keys_are_throttled(server: Served) -> None:
    """Ten wrong keys a minute are answered, the next is not even looked at."""
    wrong = [httpx.post(f"{server.url}/signin", data={"key": "cw_read_guess"}) for _ in range(10)]
    assert {answer.status_code for answer in wrong} == {403}
    throttled = httpx.post(f"{server.url}/signin", data={"key": server.key("read")})
    assert (throttled.status_code, throttled.headers["retry-after"]) == (429, "60")


def test_an_ingest_key_opens_no_page(server: Served) -> None:
    """A key that may only send does not sign in."""
    answer = httpx.post(f"{server.url}/signin", data={"key": server.key("ingest")})
    assert answer.status_code == 403
    assert "ingest key cannot read" in answer.text


def test_sign_out_ends_the_session(server: Served) -> None:
    """After signing out the same cookie opens nothing."""
    with httpx.Client(base_url=server.url) as browser:
        browser.get(server.sign_in_url())
        cookie = dict(browser.cookies)
        assert browser.get("/conversations").status_code == 200
        assert browser.post("/signout").status_code == 303
        assert httpx.get(f"{server.url}/conversations", cookies=cookie).status_code == 303


def test_cookies_over_https_are_host_cookies(server: Served) -> None:
    """Behind a TLS proxy on this machine the cookie is secure and bound to the host, and goes at sign-out."""
    https = {"X-Forwarded-Proto": "https"}
    cookie = httpx.get(server.sign_in_url(), headers=https).headers["set-cookie"]
    assert cookie.startswith("__Host-contextwrap=")
    assert "Secure" in cookie
    ended = httpx.post(f"{server.url}/signout", headers=https | {"Cookie": cookie.split(";")[0]}).headers["set-cookie"]
    assert "Secure" in ended
    assert "Max-Age=0" in ended


def test_a_form_is_small(server: Served) -> None:
    """Nobody without a key makes the server read megabytes."""
    assert httpx.post(f"{server.url}/signin", content=b"a=b&" * 10_000).status_code == 413


def test_a_tenants_browser_sees_its_tenant_only(server: Served) -> None:
    """A session opened for one tenant finds another's conversation not there."""
    body = {"conversation": {"id": "secret", "messages": [{"role": "user", "message": "blue words"}]}}
    headers = {"Authorization": f"Bearer {server.key(tenant='blue')}"}
    httpx.post(f"{server.url}/api/v1/log/conversation/thread", json=body, headers=headers)
    server.settle()
    for tenant, status in (("red", 404), ("blue", 200)):
        with httpx.Client(base_url=server.url) as browser:
            browser.get(server.sign_in_url(tenant))
            assert browser.get("/conversations/secret").status_code == status
            assert ("blue words" in browser.get("/conversations").text) is (tenant == "blue")


def test_a_lent_key_leaves_no_trace(keys: Keys, tmp_path: Path) -> None:
    """What a running server lends to its home's commands is not in the file and dies with it."""
    secret = keys.lend(Viewer(scope="admin", key_id="home"))
    assert keys.check(secret) == Viewer(scope="admin", key_id="home")
    assert keys.list() == []
    with closing(Keys(tmp_path / "server" / "keys.sqlite")) as beside:
        assert beside.check(secret) is None
    with sqlite3.connect(tmp_path / "server" / "keys.sqlite") as db:
        assert db.execute("SELECT count(*) FROM passes").fetchone() == (0,)
    db.close()
