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
    from pathlib import Path

    from serving import Served

MAX_BODY = 5 * 1024 * 1024
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


def packed(content: bytes) -> bytes:
    """As gzip, which would tell the time."""
    return gzip.compress(content, mtime=0)


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
    said = {"status": "ok", "max_lines": 1000, "max_bytes": MAX_BODY, "encodings": ["gzip"]}
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
    (line("k\ud800", thread("t", "x")), 400, "key must be a string"),
    (line("k", thread("t", "x"), target=f"//evil{THREAD}"), 400, "is not a log route"),
    (line("k", thread("t", "x"), target=f"http://evil{THREAD}"), 400, "is not a log route"),
    (line("k", thread("t", "x"), target="http://[::1"), 400, "is not a log route"),
    (line("k", thread("t", "x"), target=f"{THREAD}#x"), 400, "is not a log route"),
    (line("k", thread("t", "x"), target=f"\n{THREAD}"), 400, "is not a log route"),
    (line("k", thread("t", "x"), target=THREAD.replace("log", "%6cog")), 400, "is not a log route"),
    (line("k", thread("t", "x"), target="/x" * 2049), 400, "up to 4096"),
    (line("k", thread("t", "x"), target=f"{THREAD}?tenant_id=\ud800"), 400, "ASCII"),
    (line("k", [{"rating": 1}], method="PATCH", target=f"{THREAD}/\ud800"), 400, "ASCII"),
    (line("k", thread("t", "x"), target=f"{THREAD}?tenant_id={'t' * 40}"), 400, "tenant_id must be shorter"),
    (line("k", {"conversation": {"messages": []}}), 400, "at least one message"),
    (line("k", {"conversation": {"messages": [{"role": "user", "message": "x"}] * 1001}}), 400, "more than 1000"),
    (line("k", {"conversation": {"id": "a\ud800", "messages": [{"role": "user"}]}}), 400, "must be a string"),
    (line("k", thread("a\ud800", "x")), 400, "half of a character"),
    (b'{"key":"k","method":"POST","target":"%s","body":%s}' % (THREAD.encode(), b"1" * 5000), 400, "not JSON"),
    (b'{"key":"k","body":[' + b"[" * 64 + b"]" * 64 + b"]}", 400, "nests deeper than 64"),
    (line("k", None, method="PATCH", target=f"{THREAD}/nobody-knows"), 404, "no message has this id"),
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


def test_a_rating_that_says_nothing_is_refused(http: httpx.Client) -> None:
    """A rating of what is known is read like any other call."""
    name = new("t")
    answer = send(http, line(new("k"), thread(name, "a")), rating(f"{name}.a", 2))
    (refused,) = answer.json()["refused"]
    assert (refused["line"], refused["status"], refused["message"]) == (1, 400, "body[0].rating must be -1, 0 or 1")


def test_only_answers_make_a_thread_known(http: httpx.Client) -> None:
    """A thread of questions and tool calls has nothing to rate, in a batch as by itself; nor has what comes later."""
    name = new("t")
    body = {"conversation": {"id": name, "messages": [{"type": "tool", "role": "assistant", "message": "x"}]}}
    answer = send(
        http, rating(name), line(new("k"), body), rating(name), line(new("k"), thread(name, "q")), rating(name)
    )
    assert [(one["line"], one["status"]) for one in answer.json()["refused"]] == [(0, 404), (2, 404), (4, 404)]


def test_the_last_of_equal_names_counts(http: httpx.Client) -> None:
    """A name said twice in a line means what it means in the single call: the last."""
    name = new("t")
    whole = json.dumps(thread(name, "a"))
    twice = '{"key": "x", "method": "PATCH", "target": "%s", "body": [], "key": "%s", "method": "POST", "body": %s}'
    assert send(http, (twice % (THREAD, new("k"), whole)).encode()).json()["refused"] == []
    assert stored(http, name) == [("a", 0)]


def test_a_body_may_nest_as_deep_as_by_itself(http: httpx.Client) -> None:
    """The line around a body takes none of the levels it may have."""
    for levels, status in ((60, 201), (61, 400)):
        deep: Any = 1
        for _ in range(levels):
            deep = [deep]
        rows = [{"type": "tool", "role": "assistant", "message": "", "input": deep}]
        body = {"conversation": {"id": new("t"), "messages": rows}}
        assert http.post(THREAD, json=body).status_code == status
        assert send(http, line(new("k"), body)).json()["accepted"] == (status == 201)


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


@pytest.mark.parametrize("encoding", ["gzip", "GZip"])
def test_a_packed_batch_is_taken(http: httpx.Client, encoding: str) -> None:
    """A batch may come in the encoding that the server names."""
    thread_id = new("t")
    content = packed(ndjson(line(new("k"), thread(thread_id, "a"))))
    answer = http.post(BATCH, content=content, headers={"Content-Encoding": encoding})
    assert answer.json() == {"status": "ok", "accepted": 1, "refused": []}
    assert stored(http, thread_id) == [("a", 0)]


@pytest.mark.parametrize(
    ("content", "encoding", "status", "message"),
    [
        (packed(b"x" * (MAX_BODY + 1)), "gzip", 413, f"larger than {MAX_BODY} bytes when unpacked"),
        (b"x" * (MAX_BODY + 1), "identity", 413, f"larger than {MAX_BODY} bytes"),
        (b"x" * (MAX_BODY + 1), "gzip", 413, f"larger than {MAX_BODY} bytes"),
        (packed(b"hello")[:-9], "gzip", 400, "not one whole gzip stream"),
        (packed(b"hello") * 2, "gzip", 400, "not one whole gzip stream"),
        (b"hello", "gzip", 400, "no gzip stream"),
        (b"", "gzip", 400, "not one whole gzip stream"),
        (b"hello", "br", 415, "'br'"),
        (packed(packed(b"hello")), "gzip, gzip", 415, "'gzip, gzip'"),
        (b"{}\n" * 1001, "identity", 413, "more than 1000 lines"),
        (packed(b"{}\n" * 1001), "gzip", 413, "more than 1000 lines"),
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


def test_a_batchs_own_tenant_is_its_lines(http: httpx.Client) -> None:
    """A tenant in the batch's own address is that of every line, and a line that names another is refused."""
    mine, theirs = new("t"), new("t")
    lines = (line(new("k"), thread(mine, "a")), line(new("k"), thread(theirs, "b"), target=f"{THREAD}?tenant_id=other"))
    answer = http.post(f"{BATCH}?tenant_id=acme", content=ndjson(*lines))
    assert [(one["line"], one["status"]) for one in answer.json()["refused"]] == [(1, 403)]
    assert (stored(http, mine, "acme"), stored(http, theirs, "other")) == ([("a", 0)], [])


def test_a_rating_is_not_lost_to_a_store_that_is_behind(tmp_path: Path) -> None:
    """While what is rated waits in the journal for longer than one can wait, the rating is taken behind it."""
    with (
        served(tmp_path / "home") as server,
        httpx.Client(base_url=server.url, headers={"Authorization": f"Bearer {server.key()}"}, timeout=30) as http,
    ):
        server.house.pipeline.stop()
        name = new("t")
        assert send(http, line(new("k"), thread(name, "a", "b"))).json()["accepted"] == 1
        assert send(http, rating(f"{name}.a")).json() == {"status": "ok", "accepted": 1, "refused": []}
        assert http.patch(f"{THREAD}/{name}.b", json=[{"rating": -1}]).status_code == 200
        server.house.pipeline.start()
        server.settle()
        assert stored(http, name) == [("a", 1), ("b", -1)]


def test_a_batch_is_in_the_open_description(http: httpx.Client) -> None:
    """Whoever reads the API's description finds the route and what a line is."""
    said = http.get("/api/v1/openapi.json").json()["paths"][BATCH]
    assert '{"key", "method", "target", "body"}' in said["post"]["description"]


_names = st.sampled_from(["a", "b", "c"])
_rows = st.fixed_dictionaries(
    {"role": st.sampled_from(["user", "assistant", "USER", "nobody"]), "message": st.text(max_size=5)},
    optional={"id": st.sampled_from(["{a}.m", "{b}.m", ""]), "type": st.sampled_from(["message", "tool", "event"])},
)
_bodies = st.one_of(
    st.builds(
        lambda name, rows: {"conversation": {"id": f"{{{name}}}", "messages": rows}},
        _names,
        st.lists(_rows, max_size=3),
    ),
    st.lists(st.fixed_dictionaries({"rating": st.sampled_from([-1, 0, 1, 1, 1, 2, None])}), max_size=2),
    st.sampled_from([None, {}, {"conversation": None}]),
)
_targets = st.one_of(
    st.tuples(st.just("POST"), st.sampled_from([THREAD, THREAD, "/api/v1/log/conversation"])),
    st.tuples(st.just("PATCH"), st.sampled_from([f"{THREAD}/{{{name}}}{end}" for name in "abc" for end in ("", ".m")])),
)
_queries = st.sampled_from(["", "", "?tenant_id=", "?tenant_id=acme", "?tenant_id=other", f"?tenant_id={'t' * 40}"])
_calls = st.lists(st.tuples(_targets, _queries, _bodies), max_size=12)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(calls=_calls, bound=st.booleans(), again=st.booleans())
def test_a_batch_is_the_same_as_its_calls_one_by_one(
    server: Served, http: httpx.Client, calls: list[Any], *, bound: bool, again: bool
) -> None:
    """Whatever the calls, each is answered as by itself and the threads end the same, also when all is sent again."""
    said = httpx.Headers({"Authorization": f"Bearer {server.key('ingest', 'acme' if bound else '')}"})
    ends, answers = [], []
    for way in ("batch", "singly"):
        prefix = new(way)
        lines = []
        for (method, path), query, body in calls:
            text = json.dumps([path, body])
            for name in "abc":
                text = text.replace(f"{{{name}}}", f"{prefix}-{name}")
            its_path, its_body = json.loads(text)
            lines.append(line(new("k"), its_body, method=method, target=its_path + query))
        for _ in range(1 + again):
            if way == "batch":
                refused = http.post(BATCH, content=ndjson(*lines), headers=said).json()["refused"]
                statuses = {one["line"]: (one["status"], one["message"]) for one in refused}
                answers.append([statuses.get(number) for number in range(len(lines))])
            else:
                answers.append([_singly(http, one, said) for one in lines])
        ends.append([stored(http, f"{prefix}-{name}", tenant) for name in "abc" for tenant in ("", "acme", "other")])
    assert answers[: len(answers) // 2] == [
        [one and (one[0], one[1].replace("singly", "batch")) for one in each] for each in answers[len(answers) // 2 :]
    ]
    assert ends[0] == ends[1]


def _singly(http: httpx.Client, one: dict[str, Any], said: httpx.Headers) -> tuple[int, str] | None:
    headers = {**said, "x-ms-client-request-id": one["key"], "Content-Type": "application/json"}
    answer = http.request(one["method"], one["target"], content=json.dumps(one["body"]), headers=headers)
    return None if answer.is_success else (answer.status_code, answer.json()["error"]["message"])
