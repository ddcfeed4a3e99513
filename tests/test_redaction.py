"""Redaction: what each rule masks and what it leaves, and where in a conversation it is applied."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextwrap.errors import ConfigurationError
from contextwrap.model import MAX_METADATA_VALUE, Conversation, Message
from contextwrap.redaction import RULES, bare, redacted, redactor

NAMES = list(dict.fromkeys(rule.name for rule in RULES))
STAND_IN = {
    "email": "email@example.com",
    "card": "1111 1111 1111 1111",
    "ssn": "000-00-0000",
    "uk_ni": "QQ 12 34 56 C",
    "phone": "+1 555 0100",
    "iban": "GB33BUKB20201555555555",
    "api_key": "API_KEY",
}
# In each text, what stands between ⟦ and ⟧ is to be masked. Keys are cut in two, so that no scanner takes them for one.
MASKED = {
    "email": [
        "Write to ⟦anna.berg+news@mail.example.co.uk⟧, please.",
        "Meine Adresse ist ⟦müller@köln.example⟧!",
        "<⟦a@b.io⟧>;⟦C_D%e@F-G.ORG⟧",
        "请联系⟦wang@example.cn⟧谢谢",
        "메일은 ⟦kim@example.kr⟧로 주세요",
        "mailto:⟦x@y.museum⟧?subject=hi",
        "Почта: ⟦иван@почта.рф⟧.",
        "idn ⟦a@b.xn--p1ai⟧ and (⟦a@sub.b.com⟧).",
    ],
    "card": [
        "my card is ⟦4111 1111 1111 1111⟧, exp 12/27",
        "card ⟦4111-1111-1111-1111⟧ 12/27 123",
        "⟦4111111111111111⟧",
        "In 2024 ⟦4111 1111 1111 1111⟧ 123",
        "Amex ⟦3782 822463 10005⟧ or ⟦378282246310005⟧.",
        "Mastercard ⟦5555 5555 5555 4444⟧/⟦2223003122003222⟧",
        "Diners ⟦3056 930902 5904⟧; JCB ⟦3530111333300000⟧; Discover ⟦6011 0009 9013 9424⟧",
        "カード番号⟦4111111111111111⟧です",
        "Karte: ⟦4111 \u2013 1111 \u2013 1111 \u2013 1111⟧",
    ],
    "ssn": ["SSN ⟦123-45-6789⟧.", "(⟦078 05 1120⟧)", "号码⟦899-99-9999⟧吧"],
    "uk_ni": ["NI: ⟦AB 12 34 56 C⟧,", "⟦ab123456d⟧", "number ⟦JG-12-34-56-A⟧ and ⟦CE 123456 B⟧"],
    "phone": [
        "Call ⟦+49 (0)30 1234567⟧ or ⟦+44 20 7946 0958⟧.",
        "⟦+14155550100⟧, ⟦+1 (415) 555-0100⟧",
        "Tel.: ⟦030/12345678⟧; tel:⟦0171 1234567⟧",
        "It is ⟦510-522-0200⟧.",
        "(⟦(510) 522-0200⟧)",
        "⟦1-800-555-0199⟧ ⟦415.555.0100⟧",
        "Mon numéro est le ⟦06 12 34 56 78⟧ ou le ⟦01.23.45.67.89⟧.",
        "London ⟦020 7946 0958⟧, mobile ⟦07700 900123⟧",
        "电话⟦+86 138 0013 8000⟧。",
        "電話は⟦03-1234-5678⟧です",
        "Llámame al ⟦612 34 56 78⟧",
        "Ligue ⟦(11) 91234-5678⟧",
        "⟦0044 20 7946 0958⟧ ⟦0049301234567⟧",
    ],
    "iban": [
        "IBAN ⟦DE89 3704 0044 0532 0130 00⟧ BIC COBADEFFXXX",
        "⟦GB82WEST12345698765432⟧.",
        "⟦fr14 2004 1010 0505 0001 3m02 606⟧",
        "konto:⟦NO93 8601 1117 947⟧,⟦BE68 5390 0754 7034⟧",
    ],
    "api_key": [
        "key ⟦sk-" + "proj-a1B2c3D4e5F6g7H8i9J0k1L2⟧!",
        "⟦sk-" + "ant-api03-abcdefghij0123456789_-xyz⟧",
        "token=⟦ghp" + "_0123456789abcdefghijABCDEFGHIJ012345⟧",
        "⟦github" + "_pat_11ABCDEFG0123456789_abcdefghijklmnop⟧",
        "aws ⟦AKIA" + "IOSFODNN7EXAMPLE⟧,",
        "⟦xoxb" + "-123456789012-abcdefABCDEF⟧",
        "⟦AIza" + "SyA0123456789abcdefghijklmnopqrstuv⟧",
        "⟦eyJ" + "hbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dozjgNryP4J3jVmNHl0w5N⟧",
        "⟦cw_in" + "gest_0123456789abcdefABCDEF-_⟧ ⟦cw_re" + "ad_0123456789abcdefABCDEF-_⟧",
        "Authorization: Bearer ⟦" + "abcdef0123456789.abcdef0123456789=⟧",
        "⟦-----BEGIN RSA PRIVATE" + " KEY-----\nMIIEow/+=\nabc\n-----END RSA PRIVATE" + " KEY-----⟧ ok",
    ],
}
LEFT = {
    "email": ["@anna said", "user@localhost", "pip install a@1.2", "a @ b.com", "no at all", "a@.com", "@", "x@y"],
    "card": [
        "4111 1111 1111 1112",
        "order 1234567890123456",
        "0.4111111111111111",
        "a4111111111111111",
        "1700000000000",
        "9999 9999 9999 9995",
        "41111111111111111111111",
    ],
    "ssn": [
        "000-12-3456",
        "666-12-3456",
        "900-12-3456",
        "123-00-4567",
        "123-45-0000",
        "123-45 6789",
        "123456789",
        "1123-45-6789",
        "2024-12-31",
    ],
    "uk_ni": ["QQ 12 34 56 C", "GB 12 34 56 A", "DA 12 34 56 A", "AO 12 34 56 A", "AB 12 34 56 E", "AB 12 34 5 C"],
    "phone": [
        "on 01.02.2024 or 01-02-2024 12:30, 2024-01-02, 01/02/2024",
        "order 1234567890, no. 20391",
        "it is 1,234,567.89 € or $1 234 567, 0.123456789",
        "192.168.10.254 and 10.0.0.1:8080",
        "version 1.20.300.4000, Python 3.11.9",
        "from 10:00 to 12:30 on the 5th",
        "pages 100-200, 1990-2000, 3+4=7, 2+20000000",
        "call 911 or 112",
        "4111 1111 1111 1111",
        "#510-522-0200",
        "912 345 678 people",
        "ISBN 978-3-16-148410-0",
        "550e8400-e29b-41d4-a716-446655440000",
    ],
    "iban": ["DE00 3704 0044 0532 0130 00", "XX89370400440532013000", "DE89 3704 0044", "AB12 is a postcode"],
    "ip": ["256.1.1.1", "1.2.3", "v1.2.3.4", "1.2.3.4.5", "at 12:30:45", "std::vector", "a::b", "x :: Int", "::"],
    "api_key": ["sk-learn-is-a-library-for-people", "the bearer of this", "Bearer short1", "AKIA", "task-1", "eyJ.a.b"],
}
SAMPLES = ["4111 1111 1111 1111", "030 1234567", "DE89 3704 0044 0532 0130 00", "123-45-6789", "a@b.cd", "1.2.3.4"]
TRICKY = st.text(
    st.one_of(st.characters(), st.sampled_from(list("0123456789@.:+-() /aAkKsS_DEGBQ\ud800"))), max_size=80
) | st.lists(
    st.sampled_from([*STAND_IN.values(), "192.0.2.1", "2001:db8::1", *" 01-.:a(@", "555", *SAMPLES]),
    max_size=9,
).map("".join)


def rows(table):
    return [(name, text) for name, texts in table.items() for text in texts]


def expected(text, stand_in):
    head, *tails = text.split("⟦")
    return head + "".join(stand_in + tail.partition("⟧")[2] for tail in tails)


def plain(text):
    return text.replace("⟦", "").replace("⟧", "")


@pytest.mark.parametrize(("name", "text"), rows(MASKED))
def test_a_rule_masks_all_of_its_kind_and_nothing_beside_it(name, text):
    """Every instance, in any language and punctuation, becomes the stand-in; what stands around it stays."""
    assert redactor(name)(plain(text)) == expected(text, STAND_IN[name])


@pytest.mark.parametrize(("name", "text"), rows(LEFT))
def test_a_rule_leaves_what_only_looks_alike(name, text):
    """Dates, prices, orders, versions, code and numbers that fail their own check stay as they are."""
    assert redactor(name)(text) == text


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("from 203.0.113.9, twice: 10.0.0.1:8080.", "from 192.0.2.1, twice: 192.0.2.1:8080."),
        ("[2a00:1450:4001:81b::200e]:443", "[2001:db8::1]:443"),
        ("fe80::1%eth0: unreachable", "2001:db8::1%eth0: unreachable"),
        ("::ffff:192.168.0.1 and ::1", "2001:db8::1 and 2001:db8::1"),
        ("主机192.168.0.1。", "主机192.0.2.1。"),
    ],
)
def test_addresses_of_both_versions_are_masked(text, masked):
    """An IP address becomes the documentation address of its own version."""
    assert redactor("ip")(text) == masked


@pytest.mark.parametrize(("name", "text"), rows(MASKED))
def test_all_rules_together_leave_nothing_that_one_of_them_masks(name, text):
    """With all rules, what one rule masks is gone, whichever of them took it."""
    masked = redactor(True)(plain(text))
    secrets = [part.partition("⟧")[0] for part in text.split("⟦")[1:]]
    assert [secret for secret in secrets if secret in masked] == []


@pytest.mark.parametrize("name", [*NAMES, "all"])
@given(text=TRICKY)
def test_masking_twice_is_masking_once(name, text):
    """Redaction is idempotent and raises nothing, on any text, half characters included."""
    redact = redactor(name)
    assert redact(redact(text)) == redact(text)


@pytest.mark.parametrize("stand_in", [*STAND_IN.values(), "192.0.2.1", "2001:db8::1"])
def test_a_stand_in_is_left_as_it_is(stand_in):
    """No rule masks what another has put there."""
    assert redactor(True)(f"It is {stand_in}, yes") == f"It is {stand_in}, yes"


@given(st.text(st.characters(exclude_categories=["Nd"], exclude_characters="@:-_")))
def test_text_without_digits_and_signs_is_unchanged(text):
    """Where there is no digit, @, colon, dash or underscore, there is nothing to mask."""
    assert redactor(True)(text) == text


@given(TRICKY)
def test_email_leaves_text_without_an_at_sign(text):
    """Without an @ there is no address."""
    text = text.replace("@", "")
    assert redactor("email")(text) == text


@pytest.mark.parametrize("choice", [None, False, "", "0", "none", "false", " Off ", []])
def test_nothing_chosen_is_no_redactor(choice):
    """Who chooses nothing pays nothing: there is no function to call."""
    assert redactor(choice) is None


@pytest.mark.parametrize("choice", [True, "all", "1", "true", "ALL", ",".join(NAMES), NAMES])
def test_everything_can_be_chosen_in_many_ways(choice):
    """True, the words for it and the list of all names are the same choice."""
    text = "a@b.cd, 123-45-6789, 203.0.113.9, ::1"
    assert redactor(choice)(text) == "email@example.com, 000-00-0000, 192.0.2.1, 2001:db8::1"


def test_names_choose_rules():
    """Only the rules that are named are applied."""
    assert redactor("email, IP")("a@b.cd 123-45-6789 10.1.1.1") == "email@example.com 123-45-6789 192.0.2.1"


def test_own_functions_stand_between_the_rules():
    """A list mixes names and functions; each function is called once, in the list's order."""
    seen = []

    def upper(text):
        seen.append(text)
        return text.upper()

    assert redactor(upper)("a") == "A"
    assert redactor([upper, "email"])("to a@b.cd") == "TO email@example.com"
    assert redactor(["email", upper])("to a@b.cd") == "TO EMAIL@EXAMPLE.COM"
    assert seen == ["a", "to a@b.cd", "to email@example.com"]


@pytest.mark.parametrize("choice", ["emial", "email,emial", ["email", "emial"]])
def test_an_unknown_rule_is_named_beside_the_known_ones(choice):
    """A misspelt name is an error at once, with the names there are."""
    with pytest.raises(ConfigurationError, match="'emial'") as caught:
        redactor(choice)
    assert all(name in str(caught.value) for name in NAMES)


@pytest.mark.parametrize("choice", [3, 0.5, ["email", 3]])
def test_a_choice_of_no_known_kind_is_an_error(choice):
    """What is neither name, list nor function cannot be applied."""
    with pytest.raises(ConfigurationError, match="redact="):
        redactor(choice)


def test_a_function_that_returns_no_text_fails():
    """None instead of a text is the function's failure, not an empty transcript."""
    talk = Conversation(messages=(Message(role="user", message="Hi"),))
    with pytest.raises(TypeError, match="NoneType"):
        redactor(lambda text: None)("Hi")
    with pytest.raises(TypeError, match="NoneType"):
        redacted(talk, lambda text: None)


def test_what_a_function_raises_passes_through():
    """The caller counts it; nothing is masked half."""
    talk = Conversation(messages=(Message(role="user", message="Hi"),))
    with pytest.raises(ZeroDivisionError):
        redacted(talk, redactor(lambda text: 1 / 0))


NOW = datetime(2026, 11, 1, tzinfo=UTC)
TALK = Conversation(
    id="a@b.cd",
    metadata={"user_id": "anna@b.cd", "plan": "10.0.0.1"},
    feedback="Write to a@b.cd",
    messages=(
        Message(role="user", id="a@b.cd", message="I am a@b.cd", event_timestamp=NOW),
        Message(
            role="assistant",
            type="tool",
            name="look@b.cd",
            thought="who is a@b.cd?",
            input={"a@b.cd": ["a@b.cd", 3, None, True, {"deep": ("a@b.cd",)}], 1: 2.5},
            observation="a@b.cd is Anna",
            metadata={"error": "true"},
        ),
        Message(role="system", type="event", name="mailed", message="", metadata={"to": "a@b.cd", "count": "2"}),
        Message(role="system", type="event", name="error", message="E: a@b.cd", metadata={"error": "E"}),
        Message(role="assistant", message="Hello a@b.cd", rating=1, metadata={"model": "gpt", "latency_ms": "12.5"}),
    ),
)


def test_every_text_of_a_conversation_is_masked_and_nothing_else():
    """Words people and models wrote are masked at any depth; ids, names and the app's metadata stay."""
    mail = "email@example.com"
    masked = redacted(TALK, redactor("email"))
    user, tool, event, error, answer = masked.messages
    assert (masked.id, masked.metadata, masked.feedback) == (TALK.id, TALK.metadata, f"Write to {mail}")
    assert user == Message(role="user", id="a@b.cd", message=f"I am {mail}", event_timestamp=NOW)
    assert (tool.name, tool.thought, tool.observation) == ("look@b.cd", f"who is {mail}?", f"{mail} is Anna")
    assert tool.input == {mail: [mail, 3, None, True, {"deep": [mail]}], 1: 2.5}
    assert (event.name, event.metadata) == ("mailed", {"to": mail, "count": "2"})
    assert (error.message, error.metadata) == (f"E: {mail}", {"error": "E"})
    assert (answer.message, answer.rating, answer.metadata) == (f"Hello {mail}", 1, TALK.messages[-1].metadata)


def test_a_masked_metadata_value_is_not_too_long_for_the_server():
    """A stand-in longer than the original does not make a value that no server takes."""
    full = ("a@b.cd " * MAX_METADATA_VALUE)[:MAX_METADATA_VALUE]
    talk = Conversation(messages=(Message(role="user", message="", metadata={"note": full}),))
    masked = redacted(talk, redactor("email"))
    assert Conversation.from_wire(masked.to_wire()) == masked


def test_a_bare_conversation_has_structure_and_no_content():
    """Who spoke when, which tools ran, what failed and how it was rated stay; nothing that was said does."""
    stripped = bare(TALK)
    assert (stripped.id, stripped.metadata, stripped.feedback) == (TALK.id, TALK.metadata, None)
    for before, after in zip(TALK.messages, stripped.messages, strict=True):
        assert (after.role, after.type, after.name, after.id) == (before.role, before.type, before.name, before.id)
        assert (after.rating, after.event_timestamp) == (before.rating, before.event_timestamp)
        assert (after.message, after.thought, after.input, after.observation) == ("", None, None, None)
    assert [message.metadata for message in stripped.messages] == [
        {},
        {"error": "true"},
        {"count": "2"},
        {"error": "E"},
        {"model": "gpt", "latency_ms": "12.5"},
    ]
