"""The batch route: each line is what its call would be by itself, and one bad line costs no other."""

from __future__ import annotations

import gzip
import json
from itertools import count
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from serving import served

if TYPE_CHECKING:
    from collections.abc import Iterator

    from serving import Served

BATCH = "/api/v1/log/batch"
THREAD = "/api/v1/log/conversation/thread"
_numbers = count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """One server for all: each test has names of its own."""
    with served(tmp_path_factory.mktemp("batches") / "home") as running:
        yield running


@pytest.fixture(scope="module")
def http(server: Served) -> Iterator[httpx.Client]:
    """Plain HTTP with a key that may do everything."""
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.key()}"}, timeout=30) as made:
        yield made


def new(name: str) -> str:
    """A name nobody has had."""
    return f"{name}-{next(_numbers)}"


def line(key: str, body: Any, *, method: str = "POST", target: str = THREAD) -> dict[str, Any]:
    """One call as a line says it."""
    return {"key": key, "method": method, "target": target, "body": body}


def thread(thread_id: str, *texts: str, role: str = "user") -> dict[str, Any]:
    """A thread of these texts, whose messages have ids after the thread's."""
    rows = [{"role": role, "message": text, "id": f"{thread_id}.{text}"} for text in texts]
    return {"conversation": {"id": thread_id, "messages": rows}}


def rating(rated: str, value: int = 1) -> dict[str, Any]:
    """A rating of that message or thread."""
    return line(new("k"), [{"rating": value}], method="PATCH", target=f"{THREAD}/{rated}")


def ndjson(*lines: Any) -> bytes:
    """The lines as a body; bytes stand as they are."""
    return b"\n".join(one if isinstance(one, bytes) else json.dumps(one).encode() for one in lines) + b"\n"


def send(http: httpx.Client, *lines: Any, **headers: str) -> httpx.Response:
    """What the server says to the batch."""
    content = ndjson(*lines)
    return http.post(BATCH, content=content, headers={"Content-Type": "application/x-ndjson", **headers})


def stored(http: httpx.Client, thread_id: str, tenant: str = "") -> list[tuple[str, int]]:
    """Text and rating of each message of the thread; nothing when there is none."""
    answer = http.get(f"/api/v1/conversations/{thread_id}", params={"tenant_id": tenant} if tenant else {})
    if answer.status_code == 404:
        return []
    return [(message["message"], message["rating"]) for message in answer.json()["messages"]]


def test_the_probe_says_what_one_batch_may_hold(http: httpx.Client) -> None:
    """A sender asks first, and finds limits and encodings."""
    answer = http.get(BATCH)
    said = {"status": "ok", "max_lines": 1000, "max_bytes": 5 * 1024 * 1024, "encodings": ["gzip"]}
    assert (answer.status_code, answer.json()) == (200, said)


def test_a_batch_is_stored_line_by_line(http: httpx.Client) -> None:
    """Every route's call may stand in a line, and all can be read when the answer is there."""
    one, two = new("t"), new("t")
    answer = send(
        http,
        line(new("k"), thread(one, "a")),
        line(new("k"), thread(two, "b")),
        line(new("k"), thread(one, "c", role="assistant")),
        rating(f"{one}.c"),
        rating(one, -1),
        line(new("k"), thread(new("t"), "x"), target="/api/v1/log/conversation"),
        line(new("k"), thread(new("t"), "x"), target="/api/v1/log/conversation/upsert?tenant_id=acme"),
    )
    assert (answer.status_code, answer.json()) == (200, {"status": "ok", "accepted": 7, "refused": []})
    assert stored(http, one) == [("a", 0), ("c", -1)]
    assert stored(http, two) == [("b", 0)]


def test_a_key_is_applied_once(http: httpx.Client) -> None:
    """The same key twice in a batch, in two, and by the single call: whatever is left open is filled in once."""
    thread_id, key = new("t"), new("k")
    body = {"conversation": {"id": thread_id, "messages": [{"role": "user", "message": "hi"}]}}
    assert send(http, line(key, body), line(key, body)).json()["accepted"] == 2
    assert send(http, line(key, body)).json()["accepted"] == 1
    assert http.post(THREAD, json=body, headers={"x-ms-client-request-id": key}).status_code == 201
    assert stored(http, thread_id) == [("hi", 0)]


REFUSED = [
    (b"{", 400, "not JSON"),
    (b"null", 400, "must be an object"),
    (b"[]", 400, "must be an object"),
    (b"3e999", 400, "must be an object"),
    (b"[" * 100 + b"]" * 100, 400, "nests deeper"),
    (b'{"a":' * 100000 + b"1" + b"}" * 100000, 400, "nests deeper"),
    (b"\xff\xfe", 400, "not JSON"),
    ({}, 400, "key must be a string"),
    (line("", thread("t", "x")), 400, "key must be a string"),
    (line("k" * 257, thread("t", "x")), 400, "key must be a string"),
    ({**line("k", thread("t", "x")), "method": 1}, 400, "method and target"),
    ({**line("k", thread("t", "x")), "target": None}, 400, "method and target"),
    (line("k", thread("t", "x"), method="GET"), 400, "is not a log route"),
    (line("k", thread("t", "x"), target="/api/v1/log/batch"), 400, "is not a log route"),
    (line("k", thread("t", "x"), target="//evil/x"), 400, "is not a log route"),
    (line("k", thread("t", "x"), target="http://[::1"), 400, "is no path"),
    (line("k", thread("t", "x"), target="/x" * 10000), 400, "is not a log route"),
    (line("k", thread("t", "x"), target=f"{THREAD}?tenant_id={'t' * 40}"), 400, "tenant_id must be shorter"),
    (line("k", {"conversation": {"messages": []}}), 400, "at least one message"),
    (line("k", {"conversation": {"messages": [{"role": "user", "message": "x"}] * 1001}}), 400, "more than 1000"),
    (line("k", {"conversation": {"id": "a\ud800", "messages": [{"role": "user"}]}}), 400, "must be a string"),
    (line("k", thread("a\ud800", "x")), 400, "half of a character"),
    (line("k", [{"rating": 2}], method="PATCH", target=f"{THREAD}/x"), 400, "must be -1, 0 or 1"),
    (line("k", [{"rating": 1}], method="PATCH", target=f"{THREAD}/nobody-knows"), 404, "no message has this id"),
]


@pytest.mark.parametrize(("bad", "status", "message"), REFUSED)
def test_a_line_that_cannot_be_taken_costs_no_other(http: httpx.Client, bad: Any, status: int, message: str) -> None:
    """It is named by its place, with the status and words of the single call; its neighbours are stored."""
    before, after = new("t"), new("t")
    answer = send(http, line(new("k"), thread(before, "a")), b"", bad, b"  ", line(new("k"), thread(after, "b")))
    assert answer.status_code == 200
    said = answer.json()
    (refused,) = said["refused"]
    assert (said["accepted"], refused["line"], refused["status"]) == (2, 1, status)
    assert message in refused["message"]
    assert refused["code"] in {"BadRequest", "NotFound"}
    assert (stored(http, before), stored(http, after)) == ([("a", 0)], [("b", 0)])


def test_odd_texts_arrive_as_by_the_single_call(http: httpx.Client) -> None:
    """NUL, halves of characters, markup and huge numbers are stored the same by both ways."""
    rows = [
        {"role": "user", "message": "nul \0 half \ud83d <script>alert(1)</script> '; DROP TABLE messages; --"},
        {"type": "tool", "role": "assistant", "message": "", "name": "t", "input": {"n": 10**300, "x": [None, 1e308]}},
    ]
    texts = []
    for way in ("batch", "single"):
        thread_id = new(way)
        body = {"conversation": {"id": thread_id, "messages": rows}}
        if way == "batch":
            assert send(http, line(new("k"), body)).json()["refused"] == []
        else:
            assert http.post(THREAD, content=json.dumps(body)).status_code == 201
        messages = http.get(f"/api/v1/conversations/{thread_id}").json()["messages"]
        texts.append([(one["message"], one["input"]) for one in messages])
    assert texts[0] == texts[1]


def test_a_gzipped_batch_is_taken(http: httpx.Client) -> None:
    """A batch may come as gzip."""
    thread_id = new("t")
    content = gzip.compress(ndjson(line(new("k"), thread(thread_id, "a"))))
    answer = http.post(BATCH, content=content, headers={"Content-Encoding": "gzip"})
    assert answer.json() == {"status": "ok", "accepted": 1, "refused": []}
    assert stored(http, thread_id) == [("a", 0)]


@pytest.mark.parametrize(
    ("content", "encoding", "status", "message"),
    [
        (gzip.compress(b"x" * (5 * 1024 * 1024 + 1)), "gzip", 413, "when unzipped"),
        (b"x" * (5 * 1024 * 1024 + 1), "identity", 413, "larger than"),
        (gzip.compress(b"hello")[:-9], "gzip", 400, "in the middle"),
        (b"hello", "gzip", 400, "not gzip"),
        (b"", "gzip", 400, "in the middle"),
        (b"hello", "br", 415, "'br'"),
        (b"{}\n" * 1001, "identity", 413, "more than 1000 lines"),
    ],
)
def test_a_batch_that_cannot_be_read_is_refused_whole(
    http: httpx.Client, content: bytes, encoding: str, status: int, message: str
) -> None:
    """One error for the whole request, in the one shape, and it says what to do."""
    answer = http.post(BATCH, content=content, headers={"Content-Encoding": encoding})
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_an_empty_batch_is_nothing(http: httpx.Client) -> None:
    """No lines are no error."""
    assert http.post(BATCH, content=b"\n\n").json() == {"status": "ok", "accepted": 0, "refused": []}


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_only_senders_may_ask(server: Served, method: str) -> None:
    """Without a key 401, with one that may only read 403."""
    with httpx.Client(base_url=server.url) as nobody:
        assert nobody.request(method, BATCH).status_code == 401
        reader = {"Authorization": f"Bearer {server.key('read')}"}
        assert nobody.request(method, BATCH, headers=reader).status_code == 403


def test_a_tenants_key_writes_for_its_tenant(server: Served, http: httpx.Client) -> None:
    """A line that names another tenant is refused alone; one that names none is the key's tenant's."""
    mine, theirs = new("t"), new("t")
    with httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.key('ingest', 'acme')}"}) as acme:
        answer = send(
            acme,
            line(new("k"), thread(mine, "a")),
            line(new("k"), thread(theirs, "b"), target=f"{THREAD}?tenant_id=other"),
        )
    (refused,) = answer.json()["refused"]
    assert (refused["line"], refused["status"], refused["code"]) == (1, 403, "Forbidden")
    assert (stored(http, mine, "acme"), stored(http, mine), stored(http, theirs, "other")) == ([("a", 0)], [], [])


_ids = st.sampled_from(["a", "b", "c"])
_calls = st.lists(
    st.one_of(
        st.tuples(st.just("say"), _ids, st.sampled_from(["user", "assistant"]), st.text(max_size=5)),
        st.tuples(st.just("rate"), _ids, st.sampled_from([-1, 0, 1]), st.just("")),
    ),
    max_size=12,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=_calls)
def test_a_batch_is_the_same_as_its_calls_one_by_one(http: httpx.Client, calls: list[Any]) -> None:
    """Whatever the calls, each is answered as by itself and the threads end the same."""
    ends, answers = [], []
    for way in ("batch", "singly"):
        prefix = new(way)
        lines = []
        for what, name, how, text in calls:
            if what == "say":
                row = {"role": how, "message": text}
                lines.append(line(new("k"), {"conversation": {"id": prefix + name, "messages": [row]}}))
            else:
                lines.append(rating(prefix + name, how))
        if way == "batch":
            refused = {one["line"]: one["status"] for one in send(http, *lines).json()["refused"]}
            answers.append([refused.get(number) for number in range(len(lines))])
        else:
            singly = [
                http.request(
                    one["method"], one["target"], json=one["body"], headers={"x-ms-client-request-id": one["key"]}
                )
                for one in lines
            ]
            answers.append([None if one.is_success else one.status_code for one in singly])
        ends.append([stored(http, prefix + name) for name in "abc"])
    assert answers[0] == answers[1]
    assert ends[0] == ends[1]
