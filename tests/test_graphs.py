"""LangGraph: a wrapped graph is the same graph, and each of its threads is one conversation."""

from __future__ import annotations

import parcels
import pytest
from fakemodels import Echo
from langgraph.checkpoint.memory import MemorySaver
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, interrupt

import contextwrap
from contextwrap import session, wrap


@pytest.fixture(autouse=True)
def configured(home):
    """Records go to this test's home."""
    contextwrap.configure(home=home)


def _graph(node):
    graph = StateGraph(MessagesState)
    graph.add_node("node", node)
    graph.add_edge(START, "node")
    graph.add_edge("node", END)
    return graph.compile(checkpointer=MemorySaver())


@pytest.fixture
def answering():
    """A wrapped graph whose one node asks a model that is not wrapped."""
    model = Echo()
    return wrap(_graph(lambda state: {"messages": [model.invoke(state["messages"])]}))


def _said(home):
    return [
        (item.id, [(message.role, message.message) for message in item.messages])
        for item in parcels.conversations(home)
    ]


def test_a_wrapped_graph_stays_what_it_is(answering):
    """Its type is its own, its state can be read, and wrapping it twice is wrapping it once."""
    config = {"configurable": {"thread_id": "t"}}
    answer = answering.invoke({"messages": [("user", "hi")]}, config)
    assert type(answering) is type(_graph(lambda state: state))
    assert wrap(answering) is answering
    assert answering.get_state(config).values["messages"] == answer["messages"]


def test_each_turn_of_a_thread_adds_only_what_is_new(answering, home):
    """The checkpointer hands the model the whole history; a turn records its own two messages, streamed or not."""
    config = {"configurable": {"thread_id": "t"}}
    first = answering.invoke({"messages": [("user", "one")]}, config)["messages"][-1].content
    list(answering.stream({"messages": [("user", "two")]}, config, stream_mode="messages"))
    second = answering.get_state(config).values["messages"][-1].content
    assert _said(home) == [
        ("t", [("user", "one"), ("assistant", first)]),
        ("t", [("user", "two"), ("assistant", second)]),
    ]


def test_an_interrupt_is_no_answer_and_no_error(home):
    """What waits for the user has no answer yet; the resumed graph's answer follows what the user then said."""
    graph = wrap(_graph(lambda _: {"messages": [("assistant", f"so: {interrupt('sure?')}")]}))
    config = {"configurable": {"thread_id": "t"}}
    graph.invoke({"messages": [("user", "do it")]}, config)
    graph.invoke(Command(resume="yes"), config)
    assert _said(home) == [("t", [("user", "do it")]), ("t", [("user", "yes"), ("assistant", "so: yes")])]


def test_a_session_that_names_no_thread_leaves_the_graph_its_own(answering, home):
    """Of a user's session, as a middleware opens one a request, the graph's own thread goes on."""
    for said in ("one", "two"):
        with session(user_id="ada"):
            answering.invoke({"messages": [("user", said)]}, {"configurable": {"thread_id": "t"}})
    assert [(item.id, item.user_id, len(item.messages)) for item in parcels.conversations(home)] == [
        ("t", "ada", 2)
    ] * 2
    with session(user_id="ada", thread_id="said"):
        answering.invoke({"messages": [("user", "three")]}, {"configurable": {"thread_id": "t"}})
    assert parcels.conversations(home)[-1].id == "said"
