"""What a file of conversations may look like, and what a bad one gets."""

from __future__ import annotations

import gzip
import io
import json
from contextlib import suppress
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextwrap.errors import ImportFileError
from contextwrap.importers import conversations
from contextwrap.importers.conversations import identified, read_conversations, timed
from contextwrap.model import Conversation, Message

HELLO = {"id": "c1", "messages": [{"role": "user", "message": "hello"}, {"role": "assistant", "message": "hi"}]}
NOW = datetime(2030, 1, 1, tzinfo=UTC)


def _read(data: bytes, **options) -> list[Conversation]:
    return list(read_conversations(io.BytesIO(data), source="file.jsonl", **options))


def _lines(*values) -> bytes:
    return b"".join(json.dumps(value).encode() + b"\n" for value in values)


def test_each_line_is_a_conversation() -> None:
    """A line is read as the Context API's own shape; blank lines are nothing."""
    first, second = _read(_lines(HELLO) + b"\n  \n" + _lines(HELLO | {"id": "c2"}))
    assert first.id == "c1"
    assert second.id == "c2"
    assert [message.message for message in first.messages] == ["hello", "hi"]


@pytest.mark.parametrize("damage", ["", "no newline", "bom", "crlf", "gzip"])
def test_the_form_of_the_file_does_not_matter(damage: str) -> None:
    """The same conversations come out of a file with or without gzip, a byte order mark, CRLF or a last newline."""
    data = _lines(HELLO)
    forms = {
        "": data,
        "no newline": data.rstrip(b"\n"),
        "bom": b"\xef\xbb\xbf" + data,
        "crlf": data.replace(b"\n", b"\r\n"),
        "gzip": gzip.compress(data),
    }
    assert _read(forms[damage]) == [Conversation.from_wire(HELLO)]


def test_an_empty_file_has_no_conversations() -> None:
    """Nothing in, nothing out, no error."""
    assert _read(b"") == []


def test_loose_scalars_become_metadata() -> None:
    """`user_id`, `topic` and the like are kept under their own names; null, lists and objects are left out."""
    loose = {"user_id": "u1", "topic": "billing", "score": 0.5, "vip": True, "lang": None, "tags": ["a"], "raw": {}}
    (conversation,) = _read(_lines(HELLO | loose))
    assert conversation.metadata == {"user_id": "u1", "topic": "billing", "score": "0.5", "vip": "true"}
    assert conversation.user_id == "u1"


def test_metadata_wins_over_a_loose_scalar() -> None:
    """What stands in `metadata` was said on purpose."""
    (conversation,) = _read(_lines(HELLO | {"topic": "loose", "metadata": {"topic": "meant", "model": "m1"}}))
    assert conversation.metadata == {"topic": "meant", "model": "m1"}


BAD = {
    b"{": "is not JSON",
    b"\xff\xfe\xfa": "is not JSON",
    b"[" * 100_000: "is not JSON",
    b"[1]": "must be a JSON object",
    b"{}": "messages must be a list",
    b'{"messages": []}': "messages must be a list",
    b'{"messages": [{"role": "robot", "message": "x"}]}': r"messages\[0\].role must be one of",
    b'{"messages": [{"role": "user", "message": 5}]}': r"messages\[0\].message must be a string",
    b'{"messages": [{"role": "user", "message": "x", "event_timestamp": "soon"}]}': "is not an ISO 8601 time",
    b'{"messages": [{"role": "user", "message": "x", "rating": 7}]}': "must be -1, 0 or 1",
    b'{"messages": [{"role": "user", "message": "x"}], "metadata": 3}': "metadata must be an object",
    b'{"messages": [{"role": "user", "message": "x"}], "id": ""}': "id must have 1 to 256 characters",
}


@pytest.mark.parametrize("line", BAD)
def test_a_bad_line_is_named(line: bytes) -> None:
    """The first bad line stops the reading with the file, the line's number and what is wrong with it."""
    with pytest.raises(ImportFileError, match=BAD[line]) as caught:
        _read(_lines(HELLO) + line + b"\n" + _lines(HELLO))
    assert str(caught.value).startswith("file.jsonl, line 2: ")
    assert "\n" not in str(caught.value)
    assert caught.value.line == 2


@pytest.mark.parametrize("line", BAD)
def test_bad_lines_can_be_passed_over(line: bytes) -> None:
    """With `on_bad` each bad line is handed over and the good ones are read all the same."""
    bad: list[ImportFileError] = []
    assert len(_read(_lines(HELLO) + line + b"\n" + _lines(HELLO), on_bad=bad.append)) == 2
    assert [error.line for error in bad] == [2]


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    """Whatever the bytes, the only error is ImportFileError."""
    with suppress(ImportFileError):
        assert all(conversation.messages for conversation in _read(data))


@pytest.mark.parametrize("cut", [12, 40, -8, -4])
def test_a_damaged_gzip_file_is_one_error(cut: int) -> None:
    """A file cut off anywhere gives what was whole, then an error, even when bad lines are passed over."""
    data = gzip.compress(_lines(*(HELLO | {"id": f"c{number}"} for number in range(50))))[:cut]
    with pytest.raises(ImportFileError, match="gzip file is damaged"):
        _read(data, on_bad=lambda _: None)


def test_a_gzip_file_of_garbage_is_one_error() -> None:
    """Only the first bytes say gzip."""
    with pytest.raises(ImportFileError, match="gzip file is damaged"):
        _read(b"\x1f\x8b" + b"no, it is not")


def test_a_line_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """No line is read into memory beyond the bound, also when it unpacks from a small file."""
    monkeypatch.setattr(conversations, "MAX_LINE", 1024 * 1024)
    with pytest.raises(ImportFileError, match="longer than 1 MiB"):
        _read(gzip.compress(b" " * 5 * 1024 * 1024))


def test_the_same_content_gets_the_same_key_and_ids() -> None:
    """Nothing depends on the time or the file, so a second import names what the first one did."""
    conversation = Conversation.from_wire({"messages": HELLO["messages"]})
    assert identified(conversation, tenant_id="") == identified(conversation, tenant_id="")
    key, named = identified(conversation, tenant_id="")
    assert named.id
    assert len({message.id for message in named.messages} - {None}) == 2
    assert identified(conversation, tenant_id="other")[0] != key


def test_a_grown_conversation_keeps_its_first_ids() -> None:
    """Ids of messages come from their place, the key from the content: only the tail is new."""
    grown = HELLO | {"messages": [*HELLO["messages"], {"role": "user", "message": "more"}]}
    key, named = identified(Conversation.from_wire(HELLO), tenant_id="")
    later_key, later = identified(Conversation.from_wire(grown), tenant_id="")
    assert later_key != key
    assert [message.id for message in later.messages[:2]] == [message.id for message in named.messages]


def test_ids_in_the_file_are_kept() -> None:
    """What has a name keeps it."""
    given_ids = Conversation(id="c9", messages=(Message(role="user", message="x", id="m9"),))
    assert identified(given_ids, tenant_id="")[1] == given_ids


def test_missing_times_follow_the_message_before() -> None:
    """A message without a time has its predecessor's, the first ones the first known, and none at all the import's."""
    known = NOW - timedelta(days=3)
    messages = tuple(Message(role="user", event_timestamp=moment) for moment in (None, known, None))
    assert [m.event_timestamp for m in timed(Conversation(messages=messages), at=NOW).messages] == [known] * 3
    untimed = Conversation(messages=(Message(role="user"), Message(role="user")))
    assert [m.event_timestamp for m in timed(untimed, at=NOW).messages] == [NOW, NOW]
