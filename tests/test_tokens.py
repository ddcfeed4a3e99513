"""Rating tokens: what is signed is read again, and nothing else is."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from contextwrap.errors import TokenError
from contextwrap.tokens import RatingToken, digest_secret, fingerprint, issue, key_secret, read

SECRET = b"s" * 32
UNTIL = 1_800_000_000

ids = st.text(alphabet=st.characters(exclude_categories=["Cs"]), min_size=1, max_size=256)
tenants = st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=39)


def _issued(secret=SECRET, *, answer="a1", thread="t1", tenant="", until=UNTIL):
    return issue(secret, answer=answer, thread=thread, tenant=tenant, expires_at=until)


def _read(token, *secrets, now=UNTIL - 1):
    return read(token, secret_of={fingerprint(one): one for one in secrets or (SECRET,)}.get, now=now)


def _signed(claim):
    """A token with any claim, signed as it should be."""
    text = urlsafe_b64encode(json.dumps(claim).encode()).rstrip(b"=").decode()
    signed = f"cw_rate_{fingerprint(SECRET)}.{text}"
    return f"{signed}.{urlsafe_b64encode(hmac.digest(SECRET, signed.encode(), 'sha256')).rstrip(b'=').decode()}"


@given(answer=st.none() | ids, thread=ids, tenant=tenants)
def test_what_is_issued_is_read_again(answer, thread, tenant):
    """Any ids and tenants come back as they went in."""
    token = _issued(answer=answer, thread=thread, tenant=tenant)
    assert _read(token) == RatingToken(
        answer=answer, thread=thread, tenant=tenant, expires_at=UNTIL, key=fingerprint(SECRET)
    )


@given(answer=ids, thread=st.none() | ids, tenant=tenants)
def test_a_token_fits_into_urls_and_headers(answer, thread, tenant):
    """It consists of characters that nothing escapes."""
    assert re.fullmatch(r"cw_rate_[A-Za-z0-9._-]+", _issued(answer=answer, thread=thread, tenant=tenant))


def test_a_token_is_short():
    """With ids as contextwrap makes them it takes less than 250 characters."""
    assert len(_issued(answer="0" * 32, thread="0" * 32, tenant="acme")) < 250


_TOKEN = _issued()


@given(place=st.integers(0, len(_TOKEN) - 1), byte=st.characters(max_codepoint=255))
@example(place=len(_TOKEN) - 1, byte="A")
def test_no_character_can_be_another(place, byte):
    """Whatever is changed anywhere, also where base64 would not notice, is refused."""
    if byte == _TOKEN[place]:
        byte = chr(ord(byte) ^ 1)
    with pytest.raises(TokenError):
        _read(_TOKEN[:place] + byte + _TOKEN[place + 1 :])


def test_the_last_characters_of_the_signature_have_no_second_spelling():
    """Base64 has bits left over at its end: the text is compared, not what it decodes to."""
    sister = {"A": "B", "Q": "R", "g": "h", "w": "x"}
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    last = _TOKEN[-1]
    other = sister.get(last) or alphabet[alphabet.index(last) ^ 1]
    token = _TOKEN[:-1] + other
    assert urlsafe_b64decode(token[-43:] + "=") == urlsafe_b64decode(_TOKEN[-43:] + "=")
    with pytest.raises(TokenError, match="no key"):
        _read(token)


@given(st.text() | st.none() | st.integers() | st.text().map(lambda text: f"cw_rate_{text}.{text}.{text}"))
@example("")
@example("cw_rate_")
@example("cw_rate_..")
@example(_TOKEN + "\n")
@example(" " + _TOKEN)
@example(_TOKEN + ".")
@example(["cw_rate_a.b.c"])
@example(_TOKEN.encode())
def test_what_was_never_issued_is_refused(token):
    """Any value may come from a browser; each gets the one error."""
    with pytest.raises(TokenError):
        _read(token)


@given(other=st.binary(min_size=32, max_size=48).filter(lambda secret: secret != SECRET))
def test_another_secret_reads_nothing(other):
    """Only who holds the secret can sign, also under the fingerprint of another's."""
    with pytest.raises(TokenError, match="no key"):
        _read(_issued(), other)
    with pytest.raises(TokenError, match="no key"):
        read(_issued(), secret_of=lambda key: other, now=0)


def test_each_key_finds_its_own_tokens():
    """Of several secrets the fingerprint names the one that signed."""
    secrets = [bytes([number]) * 32 for number in range(5)]
    assert [_read(_issued(secret), *secrets).key for secret in secrets] == [fingerprint(secret) for secret in secrets]


@pytest.mark.parametrize("secret", [b"", b"x" * 31])
def test_a_short_secret_neither_signs_nor_reads(secret):
    """A key file that was cut, or emptied, opens nothing to those who guess that."""
    with pytest.raises(TokenError, match="shorter than 32 bytes"):
        _issued(secret)
    signed = _issued().rpartition(".")[0]
    forged = f"{signed}.{urlsafe_b64encode(hmac.digest(secret, signed.encode(), 'sha256')).rstrip(b'=').decode()}"
    with pytest.raises(TokenError, match="no key"):
        read(forged, secret_of=lambda key: secret, now=0)


@pytest.mark.parametrize(("now", "good"), [(UNTIL - 0.001, True), (UNTIL, False), (UNTIL + 1, False), (0, True)])
def test_a_token_is_good_before_its_time_and_not_at_it(now, good):
    """The moment it expires at is the first at which it is not good."""
    if good:
        assert _read(_TOKEN, now=now).expires_at == UNTIL
    else:
        with pytest.raises(TokenError, match=r"^expired$"):
            _read(_TOKEN, now=now)


def test_a_part_of_a_second_is_rounded_up():
    """A token for half a second is not dead when it is made."""
    assert _read(_issued(until=UNTIL - 0.5)).expires_at == UNTIL


def test_expiry_is_told_only_to_those_who_hold_a_token():
    """A forged token that would have expired too is a forged one."""
    with pytest.raises(TokenError, match="no key"):
        _read(_TOKEN[:-1] + ("A" if _TOKEN[-1] != "A" else "B"), now=UNTIL + 1)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"answer": None, "thread": None}, "no answer to rate"),
        ({"answer": ""}, "1 to 256 characters"),
        ({"answer": "x" * 257}, "1 to 256 characters"),
        ({"thread": "\ud800"}, "1 to 256 characters"),
        ({"answer": 7}, "1 to 256 characters"),
        ({"tenant": "x" * 40}, "less than 40 characters"),
        ({"until": float("inf")}, "expire at some time"),
        ({"until": float("nan")}, "expire at some time"),
    ],
)
def test_what_cannot_be_rated_is_not_signed(wrong, reason):
    """A token that no server could serve is not issued."""
    with pytest.raises(TokenError, match=reason):
        _issued(**wrong)


@pytest.mark.parametrize(
    "claim",
    [
        [2, "a", "t", "", UNTIL],
        [1, "a", "t", ""],
        {"answer": "a"},
        [1, None, None, "", UNTIL],
        [1, "\ud800", None, "", UNTIL],
        [1, ["a"], "t", "", UNTIL],
        [1, "a", "t", None, UNTIL],
        [1, "a", "t", "", True],
        [1, "a", "t", "", "soon"],
        None,
    ],
)
def test_a_claim_of_another_form_is_refused_though_it_is_signed(claim):
    """Who holds a key can sign anything; only what this version issues is read."""
    assert _read(_signed([1, "a", "t", "", UNTIL])).answer == "a"
    with pytest.raises(TokenError):
        _read(_signed(claim))


def test_the_secret_of_a_key_is_known_to_who_knows_its_digest():
    """A server that stores SHA-256 only derives what the holder of the key derives."""
    key = "cw_ingest_abc"
    assert key_secret(key) == digest_secret(hashlib.sha256(key.encode()).hexdigest())
    assert key_secret(key) != key_secret("cw_ingest_abd")


@given(st.binary(min_size=32, max_size=32))
def test_a_fingerprint_is_no_part_of_the_secret(secret):
    """What stands in every token gives nothing of the secret away."""
    assert urlsafe_b64decode(fingerprint(secret)) not in secret
    assert len(fingerprint(secret)) == 12
