"""Sampling: the same choice everywhere, of the share that was asked for."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from contextwrap.model import Conversation, Message
from contextwrap.sampling import sample_key, sampled

RATES = st.floats(min_value=0, max_value=1)
SAID = (Message(role="user", message="Hi"),)


@given(st.text(), RATES, RATES)
def test_who_is_in_stays_in_at_a_higher_rate(key, one, other):
    """The choice is monotone in the rate, for any key."""
    low, high = sorted((one, other))
    assert sampled(key, high) or not sampled(key, low)


@given(st.text())
def test_nobody_at_0_and_everybody_at_1(key):
    """The ends are exact."""
    assert not sampled(key, 0)
    assert sampled(key, 1)


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.25, 0.5, 0.9])
def test_the_share_is_the_rate(rate):
    """Of ten thousand users the share that is in is the rate, within four standard deviations."""
    share = sum(sampled(f"user-{number}", rate) for number in range(10_000)) / 10_000
    assert abs(share - rate) <= 4 * (rate * (1 - rate) / 10_000) ** 0.5


@pytest.mark.parametrize(
    ("key", "threshold"),
    [
        ("ada", 0.991917),
        ("thread-1", 0.293127),
        ("", 0.889416),
        ("müller", 0.178667),
        ("用户", 0.050996),
        ("\ud800", 0.568947),
    ],
)
def test_answers_are_the_same_in_every_version(key, threshold):
    """Who was in before an update is in after it: these answers never change."""
    assert not sampled(key, threshold - 0.0001)
    assert sampled(key, threshold + 0.0001)


def test_another_process_says_the_same():
    """Python's own hash of a text differs by process; this choice does not."""
    code = "from contextwrap.sampling import sampled; print([n for n in range(99) if sampled(str(n), 0.3)])"
    other = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert other.stdout.strip() == str([n for n in range(99) if sampled(str(n), 0.3)])


def test_the_key_is_the_user_where_there_is_one():
    """By user, all of a user's conversations share a key; without a user, and by thread, it is the thread's."""
    known = Conversation(id="thread-1", metadata={"user_id": "ada"}, messages=SAID)
    unknown = Conversation(id="thread-2", messages=SAID)
    nameless = Conversation(id="thread-3", metadata={"user_id": ""}, messages=SAID)
    assert sample_key(known, "user") == "ada"
    assert sample_key(known, "thread") == "thread-1"
    assert sample_key(unknown, "user") == sample_key(unknown, "thread") == "thread-2"
    assert sample_key(nameless, "user") == "thread-3"
    assert sample_key(Conversation(messages=SAID), "user") == ""
