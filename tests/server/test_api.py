"""The Context API, asked by context-python's own client, sync and async, and by plain HTTP where it cannot ask."""

from __future__ import annotations

import json
import socket
import sqlite3
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import pytest
from azure.core.credentials import AzureKeyCredential
from azure.core.exceptions import ClientAuthenticationError, HttpResponseError, ResourceNotFoundError
from azure.core.pipeline.policies import AzureKeyCredentialPolicy
from getcontext.generated.aio import ContextAPI as AsyncContextAPI
from getcontext.generated.models import Conversation, Message, Thread, ThreadMessage
from getcontext.token import AsyncCredential
from serving import context_client, served

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from getcontext import ContextAPI
    from serving import Served

LOG = "/api/v1/log/conversation"


def _said(*texts: str) -> list[Message]:
    return [Message(role=("user", "assistant")[index % 2], message=text) for index, text in enumerate(texts)]


def _thread(client: ContextAPI, thread: Thread) -> dict[str, Any]:
    """The answer's data, unabridged: the client's own model has no room for the messages in it."""
    raw = client.log.conversation_thread(body={"conversation": thread}, cls=lambda p, _, __: p.http_response.json())
    return raw["data"]


def _texts(conversation: Any) -> list[str]:
    return [message.message for message in conversation.messages]


@pytest.fixture
def client(server: Served) -> Iterator[ContextAPI]:
    """The unmodified client with a key that may do everything."""
    with context_client(server.url, server.key()) as made:
        yield made


@pytest.fixture
def http(server: Served) -> Iterator[httpx.Client]:
    """Plain HTTP with a key that may do everything."""
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.key()}"}) as made:
        yield made


def test_conversation_is_always_a_new_one(client: ContextAPI) -> None:
    """The same conversation logged by two calls is two conversations."""
    for _ in range(2):
        client.log.conversation(body={"conversation": Conversation(messages=_said("hi", "hello"))})
    assert [_texts(item) for item in client.conversations().conversations] == [["hi", "hello"]] * 2


def test_upsert_adds_the_new_tail_to_the_conversation_it_starts_with(client: ContextAPI) -> None:
    """Two messages known and two new: one conversation of four; other metadata: another conversation."""
    first, more = _said("hi", "hello"), _said("hi", "hello", "and?", "that is all")
    for messages, user in ((first, "ada"), (more, "ada"), (more, "ben")):
        body = {"conversation": Conversation(messages=messages, metadata={"user_id": user})}
        client.log.conversation_upsert(body=body)
    found = client.conversations().conversations
    assert sorted((item.metadata["user_id"], len(item.messages)) for item in found) == [("ada", 4), ("ben", 4)]


def test_a_thread_is_made_and_appended_to(client: ContextAPI) -> None:
    """Without an id a thread is made; with it only the messages sent are added, and named in the answer."""
    made = client.log.conversation_thread(body={"conversation": Thread(messages=_said("one", "two"))})
    again = _thread(client, Thread(id=made.data.id, messages=_said("three")))
    assert again["id"] == made.data.id
    assert [{**item, "id": "…"} for item in again["appended_messages"]] == [
        {"id": "…", "role": "user", "message": "three", "rating": 0}
    ]
    assert _texts(client.conversation(made.data.id)) == ["one", "two", "three"]


@pytest.mark.parametrize("thread", ["order 7/8", "ünï?&#%", "a" * 256])
def test_an_unseen_custom_id_makes_the_thread(http: httpx.Client, thread: str) -> None:
    """Any id of up to 256 characters is the thread's own from its first message on."""
    body = {"conversation": {"id": thread, "messages": [{"role": "user", "message": "hi"}]}}
    assert http.post(f"{LOG}/thread", json=body).json()["data"]["id"] == thread
    assert http.get(f"/api/v1/conversations/{quote(thread, safe='')}").json()["id"] == thread


def test_ratings_by_message_and_by_thread(client: ContextAPI) -> None:
    """A message id rates that message; a thread id rates the newest answers, newest first; others are not found."""
    made = _thread(client, Thread(messages=_said("a", "b", "c", "d")))
    client.log.update_conversation_thread(made["appended_messages"][1]["id"], body=[ThreadMessage(rating=1)])
    assert [item.rating for item in client.conversation(made["id"]).messages] == [0, 1, 0, 0]
    client.log.update_conversation_thread(made["id"], body=[ThreadMessage(rating=-1), ThreadMessage(rating=0)])
    assert [item.rating for item in client.conversation(made["id"]).messages] == [0, 0, 0, -1]
    with pytest.raises(ResourceNotFoundError, match=r"\(NotFound\) no message has this id"):
        client.log.update_conversation_thread("nobody", body=[ThreadMessage(rating=1)])


def test_a_thread_without_an_answer_cannot_be_rated(client: ContextAPI) -> None:
    """There is nothing to rate yet: not found, instead of a rating that is acknowledged and then lost."""
    client.log.conversation_thread(body={"conversation": Thread(id="asked", messages=_said("anybody there?"))})
    with pytest.raises(ResourceNotFoundError):
        client.log.update_conversation_thread("asked", body=[ThreadMessage(rating=1)])


def test_every_kind_of_row_comes_back_with_what_it_came_with(http: httpx.Client, client: ContextAPI) -> None:
    """Tool and event rows keep their fields, and fill the keys that the client requires of every row."""
    rows = [
        {"role": "user", "message": "how many?", "rating": 1, "event_timestamp": "2026-11-01T10:00:00.000Z"},
        {"type": "tool", "name": "count", "thought": "look", "input": {"of": ["x", 1]}, "observation": "7"},
        {"type": "event", "name": "opened", "metadata": {"page": "3", "n": 2}},
        {"role": "assistant", "message": "\ud800 seven \x00 \u202e"},
    ]
    body = {"conversation": {"id": "rows", "messages": rows, "feedback": "fine"}}
    sent = http.post(f"{LOG}/thread", content=json.dumps(body).encode())
    assert sent.status_code == 201
    got = http.get("/api/v1/conversations/rows").json()
    assert got["feedback"] == "fine"
    user, tool, event, answer = got["messages"]
    assert (user["rating"], user["event_timestamp"]) == (1, "2026-11-01T10:00:00.000Z")
    assert {key: tool[key] for key in ("type", "name", "thought", "input", "observation", "role")} == {
        "type": "tool",
        "name": "count",
        "thought": "look",
        "input": {"of": ["x", 1]},
        "observation": "7",
        "role": "assistant",
    }
    assert (event["name"], event["metadata"]) == ("opened", {"page": "3", "n": "2"})
    assert answer["message"] == "\ufffd seven \x00 \u202e"
    assert [item.language for item in client.conversation("rows").messages] == ["und"] * 4


def test_the_list_pages_through_everything_once(client: ContextAPI) -> None:
    """Page by page every conversation comes once, and the pagination says where each page stands."""
    for number in range(7):
        client.log.conversation_thread(body={"conversation": Thread(id=f"t{number}", messages=_said("hi"))})
    pages = [client.conversations(page=page, per_page=3) for page in (1, 2, 3)]
    assert sorted(item.id for page in pages for item in page.conversations) == [f"t{number}" for number in range(7)]
    shape = [(p.pagination.previous_page, p.pagination.next_page, p.pagination.page_count) for p in pages]
    assert shape == [(None, 2, 3), (1, 3, 3), (2, None, 3)]
    assert {p.pagination.total_records for p in pages} == {7}


def test_the_list_shows_the_last_six_days_unless_told_otherwise(client: ContextAPI) -> None:
    """A week-old conversation is found by asking for its time."""
    old = datetime.now(UTC) - timedelta(days=8)
    message = Message(role="user", message="long ago", event_timestamp=old)
    client.log.conversation_thread(body={"conversation": Thread(id="old", messages=[message])})
    assert client.conversations().conversations == []
    found = client.conversations(start_time=old - timedelta(hours=1), end_time=old + timedelta(hours=1))
    assert [item.id for item in found.conversations] == ["old"]


def test_the_list_is_filtered_by_user_and_rating(http: httpx.Client) -> None:
    """Two filters that the client has no name for."""
    for user, rating in (("ada", 1), ("ada", -1), ("ben", 1)):
        messages = [{"role": "assistant", "message": "so", "rating": rating}]
        http.post(f"{LOG}/thread", json={"conversation": {"messages": messages, "metadata": {"user_id": user}}})
    found = http.get("/api/v1/conversations", params={"user_id": "ada", "rating": 1}).json()
    assert [item["metadata"]["user_id"] for item in found["conversations"]] == ["ada"]


async def test_the_async_client_reads_what_it_wrote(server: Served) -> None:
    """The same through context-python's async client."""
    key = server.key()
    policy = AzureKeyCredentialPolicy(AzureKeyCredential(key), "Authorization", prefix="Bearer")
    made = AsyncContextAPI(AsyncCredential(key), endpoint=server.url, authentication_policy=policy, retry_total=0)
    async with made as client:
        logged = await client.log.conversation_thread(body={"conversation": Thread(messages=_said("hi", "hello"))})
        assert _texts(await client.conversation(logged.data.id)) == ["hi", "hello"]
        await client.log.update_conversation_thread(logged.data.id, body=[ThreadMessage(rating=1)])
        assert (await client.conversations()).conversations[0].messages[1].rating == 1


def test_a_repeated_request_is_applied_once_and_answered_the_same_also_after_a_restart(tmp_path: Path) -> None:
    """The same x-ms-client-request-id under the same key names the same thread and messages, once."""
    body = {"conversation": {"messages": [{"role": "user", "message": "hi"}]}}
    key, answers = "", []
    for _ in range(2):
        with served(tmp_path / "home") as server:
            key = key or server.key()
            headers = {"Authorization": f"Bearer {key}", "x-ms-client-request-id": "r-1"}
            answers += [httpx.post(f"{server.url}{LOG}/thread", json=body, headers=headers).json() for _ in range(2)]
            listed = httpx.get(f"{server.url}/api/v1/conversations", headers=headers).json()
            assert [len(item["messages"]) for item in listed["conversations"]] == [1]
    assert answers == [answers[0]] * 4


def test_two_keys_may_use_the_same_request_id(server: Served) -> None:
    """A request id is its sender's own: another key's call is another call."""
    body = {"conversation": {"messages": [{"role": "user", "message": "hi"}]}}
    for _ in range(2):
        headers = {"Authorization": f"Bearer {server.key()}", "x-ms-client-request-id": "r-1"}
        httpx.post(f"{server.url}{LOG}/thread", json=body, headers=headers)
    listed = httpx.get(f"{server.url}/api/v1/conversations", headers=headers).json()
    assert listed["pagination"]["total_records"] == 2


def test_tenants_never_see_each_other(server: Served) -> None:
    """The same thread id in two tenants is two threads; a bound key sees and touches its own only."""
    bound = {tenant: {"Authorization": f"Bearer {server.key(tenant=tenant)}"} for tenant in ("red", "blue")}
    for tenant, headers in bound.items():
        body = {"conversation": {"id": "same", "messages": [{"role": "assistant", "message": tenant, "id": "m"}]}}
        assert httpx.post(f"{server.url}{LOG}/thread", json=body, headers=headers).status_code == 201
    red = bound["red"]
    assert httpx.patch(f"{server.url}{LOG}/thread/m", json=[{"rating": 1}], headers=red).status_code == 200
    for tenant, headers in bound.items():
        got = httpx.get(f"{server.url}/api/v1/conversations/same", headers=headers).json()
        assert [(item["message"], item["rating"]) for item in got["messages"]] == [(tenant, int(tenant == "red"))]
        listed = httpx.get(f"{server.url}/api/v1/conversations", headers=headers).json()
        assert listed["pagination"]["total_records"] == 1
    other = httpx.get(f"{server.url}/api/v1/conversations", params={"tenant_id": "blue"}, headers=red)
    assert (other.status_code, other.json()["error"]["code"]) == (403, "Forbidden")
    free = {"Authorization": f"Bearer {server.key()}"}
    assert httpx.get(f"{server.url}/api/v1/conversations/same", headers=free).status_code == 404
    named = httpx.get(f"{server.url}/api/v1/conversations/same", params={"tenant_id": "blue"}, headers=free)
    assert named.json()["messages"][0]["message"] == "blue"


@pytest.mark.parametrize("scope", ["ingest", "read", "admin", "unknown", "none"])
def test_what_each_key_may_do(server: Served, scope: str) -> None:
    """An ingest key cannot read, a read key cannot write, nobody gets in without a key."""
    secret = "cw_admin_made-up" if scope == "unknown" else "" if scope == "none" else server.key(scope)
    headers = {"Authorization": f"Bearer {secret}"} if secret else {}
    body = {"conversation": {"messages": [{"role": "user", "message": "hi"}]}}
    write = [httpx.post(server.url + LOG + path, json=body, headers=headers) for path in ("", "/upsert", "/thread")]
    write.append(httpx.patch(f"{server.url}{LOG}/thread/x", json=[{"rating": 1}], headers=headers))
    read = [
        httpx.get(server.url + path, headers=headers) for path in ("/api/v1/conversations", "/api/v1/conversations/x")
    ]
    expected = {
        "ingest": ([201, 201, 201, 404], [403, 403]),
        "read": ([403] * 4, [200, 404]),
        "admin": ([201, 201, 201, 404], [200, 404]),
        "unknown": ([401] * 4, [401, 401]),
        "none": ([401] * 4, [401, 401]),
    }[scope]
    assert ([item.status_code for item in write], [item.status_code for item in read]) == expected
    refused = [item for item in [*write, *read] if item.status_code >= 400]
    assert all(set(item.json()) == {"error"} and set(item.json()["error"]) == {"code", "message"} for item in refused)


def test_the_client_says_what_the_server_says(server: Served) -> None:
    """An unknown key is a ClientAuthenticationError whose text names the reason."""
    client = context_client(server.url, "cw_admin_made-up")
    with client, pytest.raises(ClientAuthenticationError, match=r"\(Unauthorized\) this key is not known here"):
        client.conversations()


_USER = {"role": "user", "message": "hi"}
_LIMIT = 5 * 1024 * 1024


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"{", 400, "the body is not JSON"),
        (b"\xff\xfe", 400, "the body is not JSON"),
        (b"[" * 100_000, 400, "nests deeper than 64"),
        (b"", 400, "the body is not JSON"),
        ([], 400, "body must be an object"),
        ({}, 400, "conversation must be an object"),
        ({"thread": {"messages": [_USER]}}, 400, "conversation must be an object"),
        ({"conversation": {"messages": []}}, 400, "conversation.messages must be a list with at least one message"),
        ({"conversation": {"messages": [_USER, {"role": "cat"}]}}, 400, "conversation.messages[1].role must be one of"),
        (
            {"conversation": {"messages": [{"role": "user", "message": ["x"]}]}},
            400,
            "messages[0].message must be a string",
        ),
        ({"conversation": {"messages": [_USER | {"rating": 2}]}}, 400, "messages[0].rating must be -1, 0 or 1"),
        ({"conversation": {"messages": [_USER | {"rating": True}]}}, 400, "messages[0].rating must be -1, 0 or 1"),
        ({"conversation": {"messages": [_USER | {"event_timestamp": "soon"}]}}, 400, "is not an ISO 8601 time"),
        ({"conversation": {"messages": [_USER], "metadata": {"k": "v" * 5000}}}, 400, "longer than 4096"),
        (
            {"conversation": {"messages": [_USER], "metadata": {str(n): "" for n in range(65)}}},
            400,
            "more than 64 keys",
        ),
        ({"conversation": {"messages": [_USER], "id": ""}}, 400, "1 to 256 characters"),
        (
            b'{"conversation": {"messages": [{"role": "user", "message": ""}], "id": "\\ud800"}}',
            400,
            "half of a character",
        ),
        ({"conversation": {"messages": [_USER] * 1001}}, 400, "more than 1000 items"),
        ({"conversation": {"messages": [{"role": "user", "message": "x" * 1_000_001}]}}, 400, "longer than 1000000"),
        (b"x" * (_LIMIT + 1), 413, "larger than 5242880 bytes"),
    ],
)
def test_a_bad_body_is_refused_with_its_reason(http: httpx.Client, body: Any, status: int, message: str) -> None:
    """Whatever is wrong with a body is said in the one shape, and nothing of it is kept."""
    content = {"content": body} if isinstance(body, bytes) else {"json": body}
    answer = http.post(f"{LOG}/thread", **content)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]
    assert http.get("/api/v1/conversations").json()["pagination"]["total_records"] == 0


def test_ten_megabytes_without_a_length_are_refused_as_well(http: httpx.Client) -> None:
    """The limit is counted while reading, whatever the sender announces."""
    answer = http.post(LOG, content=(b"x" * 65536 for _ in range(160)))
    assert (answer.status_code, answer.json()["error"]["code"]) == (413, "PayloadTooLarge")


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/nowhere", 404),
        ("PUT", LOG, 405),
        ("GET", "/api/v1/conversations?page=0", 400),
        ("GET", "/api/v1/conversations?page=abc", 400),
        ("GET", "/api/v1/conversations?per_page=101", 400),
        ("GET", "/api/v1/conversations?rating=7", 400),
        ("GET", "/api/v1/conversations?start_time=yesterday", 400),
        ("GET", f"/api/v1/conversations?tenant_id={'x' * 40}", 400),
        ("GET", "/api/v1/conversations/nobody", 404),
        ("PATCH", f"{LOG}/thread/nobody", 404),
    ],
)
def test_a_bad_address_is_refused_in_the_same_shape(http: httpx.Client, method: str, path: str, status: int) -> None:
    """Routes, methods and parameters that are not: one shape of error."""
    answer = http.request(method, path, content=b"[]")
    assert answer.status_code == status
    assert set(answer.json()["error"]) == {"code", "message"}


def test_a_bad_rating_is_refused(http: httpx.Client) -> None:
    """A rating body has to be a list of -1, 0 or 1."""
    http.post(f"{LOG}/thread", json={"conversation": {"id": "t", "messages": [{"role": "assistant", "message": "x"}]}})
    for body in ([], {}, [{"rating": 2}], [{}], ["1"], [{"rating": 1, "feedback": 3}]):
        answer = http.patch(f"{LOG}/thread/t", json=body)
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "BadRequest")


def test_health_needs_no_key_and_tells_nothing(server: Served) -> None:
    """A monitor learns that the server works and how much waits, and no more."""
    assert httpx.get(f"{server.url}/healthz").json() == {"status": "ok", "journal": 0}


def test_a_foreign_host_name_is_refused(server: Served) -> None:
    """A page under another name that resolves to this machine gets nothing."""
    answer = httpx.get(f"{server.url}/healthz", headers={"Host": "rebound.example"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (403, "Forbidden")


def test_an_address_or_a_name_in_other_case_is_no_foreign_host(server: Served) -> None:
    """An address is looked up nowhere, so it cannot be rebound; names have no case."""
    port = httpx.URL(server.url).port
    for host in (f"10.1.2.3:{port}", "[::1]:80", f"LocalHost:{port}"):
        assert httpx.get(f"{server.url}/healthz", headers={"Host": host}).status_code == 200


def test_a_failure_of_the_server_is_one_shape_with_every_header(server: Served, http: httpx.Client) -> None:
    """With the journal gone a call is a 500 that shows no traceback, and is not acknowledged."""
    with sqlite3.connect(server.home / "server" / "journal.sqlite") as journal:
        journal.execute("ALTER TABLE parcels RENAME TO gone")
    answer = http.post(f"{LOG}/thread", json={"conversation": {"messages": [_USER]}})
    journal.execute("ALTER TABLE gone RENAME TO parcels")
    journal.close()
    error = {"code": "InternalError", "message": "the server failed; its log says why"}
    assert (answer.status_code, answer.json()) == (500, {"error": error})
    assert "default-src 'none'" in answer.headers["content-security-policy"]


def test_a_sender_that_hangs_up_leaves_nothing(server: Served, caplog: pytest.LogCaptureFixture) -> None:
    """Half a body is no call and no error of the server's."""
    url = httpx.URL(server.url)
    head = f"POST {LOG} HTTP/1.1\r\nHost: {url.host}\r\nAuthorization: Bearer {server.key()}\r\n"
    for _ in range(3):
        with socket.create_connection((url.host, url.port)) as connection:
            connection.sendall(f"{head}Content-Length: 1000\r\n\r\n{{".encode())
    assert httpx.get(f"{server.url}/healthz").json()["journal"] == 0
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_client_error_is_an_http_response_error(client: ContextAPI) -> None:
    """What the server refuses reaches the client's exception as (code) message."""
    with pytest.raises(HttpResponseError, match=r"\(BadRequest\) conversation must be an object"):
        client.log.conversation(body={"conversation": None})
