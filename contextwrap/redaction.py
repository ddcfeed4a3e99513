"""The one masking choke point: text in, text out.

A rule replaces what one kind of personal data or secret looks like by a fixed stand-in. It promises to be quick on
any text, hostile ones included, to raise nothing, and that masking what is masked changes nothing. It looks at forms
only: a name, a birthday or a street has none. Knows nothing of settings, clients or the wire.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from contextwrap.errors import ConfigurationError
from contextwrap.model import MAX_METADATA_VALUE

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from contextwrap.model import Conversation, Message

Redact: TypeAlias = Callable[[str], str]
Choice: TypeAlias = bool | str | Redact | Iterable[str | Redact] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One kind of thing and its stand-in; kinds with several forms are several rules of one name.

    `hint` is found in every text that `pattern` is found in, and quicker. `check` says how many characters, from
    its start, of a match are such a thing; without it all are.
    """

    name: str
    hint: re.Pattern[str]
    pattern: re.Pattern[str]
    replacement: str
    check: Callable[[str], int] | None = None

    def __call__(self, text: str) -> str:
        """`text` with the stand-in for each such thing."""
        if not self.hint.search(text):
            return text
        if self.check is None:
            return self.pattern.sub(self.replacement, text)
        parts: list[str] = []
        kept = at = 0
        while match := self.pattern.search(text, at):
            begin = match.start()
            size = self.check(match[0])
            if size:
                parts += text[kept:begin], self.replacement
                kept = at = begin + size
            else:
                # Not behind the match: what it hid, such as a card behind a year, may begin inside.
                at = begin + 1
        return "".join((*parts, text[kept:]))


def redactor(choice: Choice) -> Redact | None:
    """The function that masks what `choice` says, or None when it says nothing.

    True or "all" is every rule; names may be given as "email,card"; a list mixes names and functions of the app's
    own (str -> str), which are applied in its order. Raises ConfigurationError for a name that is no rule.
    """
    steps = _steps(choice)
    return partial(_apply, tuple(steps)) if steps else None


def redacted(conversation: Conversation, redact: Redact) -> Conversation:
    """The conversation with `redact` applied to all that a person, model or tool wrote in it.

    That is message, thought, observation, the strings and keys inside `input`, metadata values of messages and
    events, and the feedback. Ids, times, roles, types, names and ratings stay. So does all of the conversation's own
    metadata: `user_id` and the rest are what the app itself chose to call the conversation. What `redact` raises
    passes through; a result that is no str is a TypeError.
    """
    mask = partial(_masked, redact)
    return replace(
        conversation,
        messages=tuple(_redacted(message, mask) for message in conversation.messages),
        feedback=None if conversation.feedback is None else mask(conversation.feedback),
    )


def bare(conversation: Conversation) -> Conversation:
    """The conversation's structure without its content.

    Roles, types, names, ids, ratings, times and the conversation's metadata stay; of a message's metadata what is a
    number or technical (model, provider, the kind of an error). No text, thought, input, observation or feedback.
    """
    return replace(conversation, messages=tuple(map(_bare, conversation.messages)), feedback=None)


_TECHNICAL: Final = frozenset({"model", "provider", "finish_reason", "error", "interrupted"})
_NUMBER: Final = re.compile(r"[+-]?[0-9]{1,15}(?:\.[0-9]{1,15})?|true|false")
_ALL: Final = frozenset({"all", "1", "true", "yes", "on"})
_NONE: Final = frozenset({"", "none", "0", "false", "no", "off"})
# A stand-in may stand next to what was only not matched because of its left or right; it settles in two or three.
_MOST_ROUNDS: Final = 8


def _steps(choice: object) -> list[Rule | Redact]:
    if isinstance(choice, bool) or choice is None:
        return list(RULES) if choice else []
    if isinstance(choice, str):
        words = choice.strip().lower()
        if words in _ALL:
            return list(RULES)
        if words in _NONE:
            return []
        return [rule for name in words.split(",") for rule in _named(name.strip())]
    if callable(choice):
        return [choice]
    if isinstance(choice, Iterable):
        return [step for part in choice for step in _steps(part)]
    raise ConfigurationError(f"redact={choice!r}: say True, names of rules, or a function str -> str")


def _named(name: str) -> list[Rule]:
    rules = [rule for rule in RULES if rule.name == name]
    if not rules:
        known = ", ".join(dict.fromkeys(rule.name for rule in RULES))
        raise ConfigurationError(f"redact: no rule is called {name!r}; there are {known}, or say all")
    return rules


def _apply(steps: Sequence[Rule | Redact], text: str) -> str:
    for ours, group in groupby(steps, key=lambda step: isinstance(step, Rule)):
        # A function of the app's own is called once: only what stays masked by itself may be asked again.
        together = tuple(group)
        for _ in range(_MOST_ROUNDS if ours else 1):
            before = text
            for step in together:
                text = _masked(step, text)
            if text == before:
                break
    return text


def _masked(redact: Redact, text: str) -> str:
    masked = redact(text)
    if not isinstance(masked, str):
        raise TypeError(f"a redact function must return a str, not {type(masked).__name__}")
    return masked


def _redacted(message: Message, mask: Redact) -> Message:
    return replace(
        message,
        message=mask(message.message),
        thought=None if message.thought is None else mask(message.thought),
        input=_leaves(message.input, mask),
        observation=None if message.observation is None else mask(message.observation),
        # A stand-in may be longer than what it stands for, and the server takes no longer value.
        metadata={key: mask(value)[:MAX_METADATA_VALUE] for key, value in message.metadata.items()},
    )


def _leaves(value: Any, mask: Redact) -> Any:
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {mask(key) if isinstance(key, str) else key: _leaves(inner, mask) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_leaves(inner, mask) for inner in value]
    return value


def _bare(message: Message) -> Message:
    return replace(
        message, message="", thought=None, input=None, observation=None, metadata=_technical(message.metadata)
    )


def _technical(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in metadata.items() if key in _TECHNICAL or _NUMBER.fullmatch(value)}


def _card(text: str) -> int:
    """The longest run of whole groups that an issuer could have given out: its prefix, length and Luhn digit."""
    number = _NO_WORD.sub("", text)
    for group in reversed(list(_GROUP.finditer(text))):
        if len(number) < _SHORTEST_CARD:
            return 0
        if _ISSUED.fullmatch(number) and _luhn(number):
            return group.end()
        number = number[: -len(group[0])]
    return 0


def _luhn(number: str) -> bool:
    # https://en.wikipedia.org/wiki/Luhn_algorithm; adding up bytes is five times as fast as adding up int(digit).
    backwards = number[::-1]
    total = sum(backwards[::2].encode()) + sum(backwards[1::2].translate(_DOUBLED).encode())
    return (total - ord("0") * len(number)) % 10 == 0


def _iban(text: str) -> int:
    """An IBAN has its country's length and, its first four characters moved to the end, is 1 modulo 97."""
    size = _IBAN_SIZES.get(text[:2].upper(), 0)
    iban = _NO_WORD.sub("", text)[:size].upper()
    if not size or len(iban) < size or int((iban[4:] + iban[:4]).translate(_BASE_36)) % 97 != 1:
        return 0
    ends = (group.end() for group in _GROUP.finditer(text))
    return next((end for end in ends if len(_NO_WORD.sub("", text[:end])) == size), 0)


def _ip(text: str) -> int:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return 0
    # "::" and "a::b" are addresses by the letter, but a colon cast and a name in a namespace in a chat.
    return len(text) if _DIGIT.search(text) else 0


def _phone(text: str) -> int:
    """The longest run of whole groups with as many digits as a number has (E.164: at most 15), unless it is a date."""
    if _DATE.search(text):
        return 0
    digits = len(_NO_WORD.sub("", text))
    most = 15 if text.startswith(("+", "00")) else 12
    for group in reversed(list(_GROUP.finditer(text))):
        if _SHORTEST_PHONE <= digits <= most:
            return group.end()
        digits -= len(group[0])
    return 0


_DIGIT: Final = re.compile("[0-9]")
_GROUP: Final = re.compile("[0-9A-Za-z]+")
_DIGITS_ONLY: Final = re.compile("[^0-9]+")
_NO_WORD: Final = re.compile("[^0-9A-Za-z]+")
_SHORTEST_CARD: Final = 13
_SHORTEST_PHONE: Final = 9
_BASE_36: Final = {ord(char): str(int(char, 36)) for char in "ABCDEFGHIJKLMNOPQRSTUVWXYZ"}
_DOUBLED: Final = str.maketrans("0123456789", "0246813579")
_DATE: Final = re.compile(r"(?<!\d)\d{1,2}([./ -])\d{1,2}\1(?:19|20)\d\d(?!\d)|(?<!\d)(?:19|20)\d\d-\d\d-\d\d(?!\d)")

# https://en.wikipedia.org/wiki/Payment_card_number#Issuer_identification_number_(IIN)
_ISSUED: Final = re.compile(
    r"""
    4(?:\d{12}|\d{15}|\d{18})                                          # Visa
    |5[1-5]\d{14}|2(?:22[1-9]|2[3-9]\d|[3-6]\d\d|7[01]\d|720)\d{12}    # Mastercard
    |3[47]\d{13}                                                       # American Express
    |3(?:0[0-59]|[689]\d)\d{11,16}                                     # Diners Club
    |35(?:2[89]|[3-8]\d)\d{12,15}                                      # JCB
    |(?:50|5[6-9]|6\d)\d{11,17}                                        # Maestro, Discover, UnionPay, RuPay
    |8[12]\d{14,17}|220[0-4]\d{12,15}                                  # UnionPay, RuPay, Mir
    """,
    re.VERBOSE,
)

# https://www.swift.com/standards/data-standards/iban-international-bank-account-number
_IBAN_SIZES: Final = {
    country: int(row[:2])
    for row in (
        "15 NO",
        "16 BE",
        "18 DK FI FK FO GL NL SD",
        "19 MK SI",
        "20 AT BA EE KZ LT LU MN XK",
        "21 CH HR LI LV",
        "22 BG BH CR DE GB GE IE ME RS VA",
        "23 AE GI IL IQ OM SO TL",
        "24 AD CZ ES MD PK RO SA SE SK TN VG",
        "25 LY PT ST",
        "26 IS TR",
        "27 BI DJ FR GR IT MC MR SM",
        "28 AL AZ BY CY DO GT HN HU LB NI PL SV",
        "29 BR EG PS QA UA",
        "30 JO KW MU YE",
        "31 MT SC",
        "32 LC",
        "33 RU",
    )
    for country in row[2:].split()
}


def _pattern(pattern: str, flags: int = 0) -> re.Pattern[str]:
    return re.compile(pattern, re.VERBOSE | re.ASCII | flags)


# In the order they are applied: what carries more of a form goes first, so that no key is half eaten as a number.
# A left side that a match cannot begin behind is what keeps each one linear: no run of text is tried from its middle.
RULES: Final = (
    Rule(
        name="api_key",
        hint=_pattern(r"[-_]\w|eyJ|AIza|AKIA|ASIA|[Bb]earer\ |BEARER\ "),
        pattern=_pattern(
            r"""
            -----BEGIN\ (?:[A-Z]+\ ){0,3}PRIVATE\ KEY-----(?:(?!-----).)*(?:-----END\ [A-Z ]*PRIVATE\ KEY-----)?
            |(?<![\w-])(?:
                sk-(?=[A-Za-z_-]*\d)[\w-]{20,}                   # OpenAI, Anthropic (sk-ant-)
                |[rsp]k_(?:live|test)_\w{16,}                    # Stripe
                |gh[oprsu]_[A-Za-z0-9]{30,}|github_pat_\w{30,}|glpat-[\w-]{20,}
                |(?:AKIA|ASIA)[A-Z0-9]{16}\b                     # Amazon Web Services
                |xox[a-z]-[\w-]{10,}                             # Slack
                |AIza[\w-]{35,}                                  # Google
                |hf_[A-Za-z0-9]{30,}|lsv2_[a-z]{2}_\w{30,}       # Hugging Face, LangSmith
                |cw_(?:ingest|read|admin)_[\w-]{16,}
                |eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*               # JSON Web Tokens
            )
            |(?:(?<=[Bb]earer\ )|(?<=BEARER\ ))(?=[A-Za-z_.~+/-]*\d)[\w.~+/-]{20,}=*
            """,
            re.DOTALL,
        ),
        replacement="API_KEY",
    ),
    Rule(
        name="email",
        hint=re.compile("@"),
        # Letters up to Cyrillic: Chinese or Japanese prose stands right beside an address, and is none of it.
        pattern=re.compile(
            r"""
            (?<![A-Za-z0-9_.+%\u00c0-\u052f-])[A-Za-z0-9_.+%\u00c0-\u052f-]+
            @(?:[A-Za-z0-9\u00c0-\u052f-]+\.)+(?:xn--[A-Za-z0-9-]+|[A-Za-z\u00c0-\u052f]{2,})
            """,
            re.VERBOSE,
        ),
        replacement="email@example.com",
    ),
    Rule(
        name="iban",
        hint=_DIGIT,
        pattern=_pattern(r"(?<!\w)[A-Za-z]{2}\d\d(?:[ -]?[0-9A-Za-z]){11,40}(?!\w)"),
        replacement="GB33BUKB20201555555555",
        check=_iban,
    ),
    Rule(
        name="card",
        hint=_DIGIT,
        pattern=_pattern(
            r"(?<!\w)(?<!\d\.)(?:\d{13,19}|\d{4,8}(?:(?:\ ?[\u2010-\u2013-]\ ?|[\ \u00a0])\d{2,8}\b){1,5})(?!\w)"
        ),
        replacement="1111 1111 1111 1111",
        check=_card,
    ),
    Rule(
        name="uk_ni",
        hint=_DIGIT,
        # https://www.gov.uk/hmrc-internal-manuals/national-insurance-manual/nim39110
        pattern=_pattern(
            r"""
            (?<!\w)(?!BG|GB|KN|NK|NT|TN|ZZ)[A-CEGHJ-PR-TW-Z][A-CEGHJ-NPR-TW-Z]
            (?:[ -]?\d\d){3}[ -]?[A-D](?!\w)
            """,
            re.IGNORECASE,
        ),
        replacement="QQ 12 34 56 C",
    ),
    Rule(
        name="ssn",
        hint=_DIGIT,
        # https://secure.ssa.gov/poms.nsf/lnx/0110201035
        pattern=_pattern(r"(?<!\w)(?<!\d[.-])(?!000|666|9)\d{3}([ -])(?!00)\d\d\1(?!0000)\d{4}(?!\w|[.-]\d)"),
        replacement="000-00-0000",
    ),
    Rule(
        name="ip",
        hint=_DIGIT,
        pattern=_pattern(r"(?<![\w.])\d{1,3}(?:\.\d{1,3}){3}(?!\w|\.\w)"),
        replacement="192.0.2.1",
        check=_ip,
    ),
    Rule(
        name="ip",
        hint=re.compile(":[0-9A-Fa-f]{0,4}:"),
        pattern=_pattern(
            r"(?<![\w:.])(?:[0-9A-Fa-f]{0,4}:){2,7}(?:\d{1,3}(?:\.\d{1,3}){3}|[0-9A-Fa-f]{0,4})(?!\w|:\w|\.\d)"
        ),
        replacement="2001:db8::1",
        check=_ip,
    ),
    Rule(
        name="phone",
        hint=_DIGIT,
        # Never digits alone: those are orders and amounts. A national number begins with its trunk 0, or is North
        # American, French-style in pairs, or Brazilian.
        pattern=_pattern(
            r"""
            (?<![\w+])\+(?:
                1[ .-]?\(?[2-9]\d\d\)?[ .-]?\d{3}[ .-]?\d{4}
                |[2-9]\d{0,3}(?:[ ./-]{0,2}\(\d{1,4}\))?(?:[ ./-]?\d){5,13}
            )(?!\w)
            |(?<![\w#$€£.,-])(?<!\d[:/])(?:
                (?:1[ .-])?(?:\([2-9]\d\d\)\ ?|[2-9]\d\d[ .-])[2-9]\d\d[ .-]\d{4}
                |(?<!\d[ ])00[1-9]\d{0,2}(?:[ /-]\(?\d{1,8}\)?){2,6}
                |00[34]\d{9,12}
                |(?<!\d[ ])\(?0[1-9]\d{0,4}\)?(?:\ ?[ ./-]\ ?\d{2,8}){1,4}
                |(?<!\d[ ])[6-9]\d\d(?:[ .-]\d\d){3}
                |\(\d\d\)\ ?9?\d{4}-\d{4}
            )(?!\w|[.,:/-]\d)
            """
        ),
        replacement="+1 555 0100",
        check=_phone,
    ),
)
