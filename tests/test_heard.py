"""A thread hears every message once, however much of its history each turn brings."""

from __future__ import annotations

import pytest
from chains import ASKED, TURN, chain, config
from fakemodels import Echo
from langchain_core.messages import HumanMessage, SystemMessage
from parcels import threads

from contextwrap import configure

pytestmark = pytest.mark.usefixtures("recording")


def test_a_history_is_recorded_once(handler, home):
    """Turns that come with their whole history add only what is new; the system's words come once."""
    history = [SystemMessage("be kind")]
    for text in ("one", "two", "three"):
        history.append(HumanMessage(text))
        history.append(Echo().invoke(history, config(handler, thread_id="t")))
    assert threads(home)["t"] == [
        ("system", "be kind"),
        *(line for text in ("one", "two", "three") for line in (("user", text), ("assistant", f"echo: {text}"))),
    ]


def test_a_window_of_a_history_is_recorded_once(handler, home):
    """A memory that forgets the oldest turns adds only what is new all the same."""
    history = []
    for text in ("one", "two", "three", "four"):
        history.append(HumanMessage(text))
        history.append(Echo().invoke(history[-3:], config(handler, thread_id="t")))
    assert [text for who, text in threads(home)["t"] if who == "user"] == ["one", "two", "three", "four"]


def test_a_repeated_question_is_said_again(handler, home):
    """Turns without a history that say the same twice said it twice."""
    for _ in range(2):
        chain().invoke(ASKED, config(handler, thread_id="t"))
    assert threads(home)["t"] == TURN * 2


def test_a_new_client_hears_a_thread_from_its_beginning(handler, tmp_path):
    """What one client was told is not left out for the next."""
    for name in ("one", "two"):
        configure(home=tmp_path / name)
        Echo().invoke("hi", config(handler, thread_id="t"))
        assert threads(tmp_path / name)["t"] == TURN
