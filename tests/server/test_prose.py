from __future__ import annotations

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextwrap.server.prose import FOLD_AT, pretty, prose


def _links(text):
    return [piece.href for piece in prose(text).head if piece.href]


@given(st.text() | st.lists(st.sampled_from(["https://a.b/c", " ", ").", "mailto:", "x", "\n"])).map("".join))
def test_no_character_is_lost(text):
    """The pieces put together are the text."""
    shown = prose(text)
    assert "".join(piece.text for piece in (*shown.head, *shown.rest)) == text


@pytest.mark.parametrize(
    ("text", "links"),
    [
        ("see https://example.com/a?b=c#d.", ["https://example.com/a?b=c#d"]),
        ("(https://en.example.org/Salt_(band))", ["https://en.example.org/Salt_(band)"]),
        ("mailto:a@example.com, or HTTP://B.example!", ["mailto:a@example.com", "HTTP://B.example"]),
        ('<https://example.com>"https://b.example"', ["https://example.com", "https://b.example"]),
        ("javascript:alert(1) data:text/html,x vbscript:x file:///etc ftp://x", []),
        ("xhttps://example.com javascript://https://example.com/%0aalert(1)", ["https://example.com/%0aalert(1)"]),
        ("https:// mailto: http://.", []),
        ("https://example.com/\u202egnp.exe", ["https://example.com/"]),
        (f"https://example.com/{'a' * 3000}", []),
    ],
)
def test_only_web_and_mail_addresses_are_links(text, links):
    """No other scheme, no control that hides where a link leads, no punctuation of the sentence around it."""
    assert _links(text) == links


def test_long_text_is_folded_at_white_space():
    """Up to the limit all is shown; beyond, a beginning that ends between words."""
    assert prose("a" * FOLD_AT).rest == ()
    text = "word " * 2000
    shown = prose(text)
    assert shown.head[0].text.endswith("word ")
    assert (len(shown.head[0].text) + shown.hidden, shown.rest[0].text[:4]) == (len(text), "word")
    assert len(prose("a" * 10_000).head[0].text) == 2500


@pytest.mark.parametrize(
    "text", ["http://a" * 125_000, "https://a.b/" + ")" * 10**6, "http://a ) " * 90_000, "h" * 10**6]
)
def test_a_megabyte_is_read_in_no_time(text):
    """What an attacker writes costs no more than its length."""
    before = time.perf_counter()
    assert len(_links(text)) <= 200
    assert time.perf_counter() - before < 1


def test_input_is_shown_as_indented_json():
    """Text as it is, JSON with its own characters, and what nests too deep as a remark."""
    assert pretty("as it is") == "as it is"
    assert pretty({"city": "Zürich", "n": [1]}) == '{\n  "city": "Zürich",\n  "n": [\n    1\n  ]\n}'
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    assert pretty(deep) == "(nested too deep to be shown)"
