"""Row H26: a LangGraph graph is one thread for each thread_id, of new messages only, whatever happens in it."""

from __future__ import annotations

import asyncio
from typing import Any, TypedDict

import pytest
from arrivals import WAYS, ask, facts
from fakemodels import Echo
from langchain_core.messages import AIMessage
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.config import get_stream_writer
from langgraph.func import entrypoint, task
from langgraph.graph import END, START, MessagesState, StateGraph
from langgraph.types import Command, Send, interrupt
from parcels import lines

from contextwrap import ContextCallbackHandler, session, wrap


def _graph(*nodes, state=MessagesState, **options):
    """A graph of the nodes, one after the other."""
    graph = StateGraph(state)
    names = [START]
    for index, node in enumerate(nodes):
        graph.add_node(f"node{index}", node)
        graph.add_edge(names[-1], f"node{index}")
        names.append(f"node{index}")
    graph.add_edge(names[-1], END)
    return graph.compile(**{"checkpointer": InMemorySaver(), **options})


def _answering(model):
    """A node that asks the model with all that was said."""
    return lambda state: {"messages": [model.invoke(state["messages"])]}


def _config(thread="t", **configurable):
    return {"configurable": {"thread_id": thread, **configurable}}


def _asked(said):
    return {"messages": [("user", said)]}


def _turn(said):
    return [("user", said), ("assistant", f"echo: {said}")]


RECORDED = {
    "wrapped graph": lambda: (wrap(_graph(_answering(Echo()))), {}),
    "wrapped model": lambda: (_graph(_answering(wrap(Echo()))), {}),
    "both wrapped": lambda: (wrap(_graph(_answering(wrap(Echo())))), {}),
    "handler": lambda: (_graph(_answering(Echo())), {"callbacks": [ContextCallbackHandler()]}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("how", RECORDED)
def test_h26_each_turn_of_a_thread_adds_only_what_is_new(arrived, how, way):
    """The checkpointer hands on the whole history; what is recorded does not grow with it."""
    graph, config = RECORDED[how]()
    for said in ("one", "two", "three"):
        ask(graph, _asked(said), way, {**_config(), **config})
    ask(graph, _asked("else"), way, {**_config("other"), **config})
    assert [(one.id, lines(one)) for one in arrived.conversations()] == [
        *(("t", _turn(said)) for said in ("one", "two", "three")),
        ("other", _turn("else")),
    ]


@pytest.mark.parametrize("mode", ["values", "updates", "messages", "custom", "debug", ["updates", "messages"]])
@pytest.mark.parametrize("way", ["stream", "astream"])
def test_h26_every_streaming_mode_is_one_turn(arrived, mode, way):
    """Whatever a stream shows of the graph, the turn is the same."""

    def node(state):
        get_stream_writer()("working")
        return {"messages": [model.invoke(state["messages"])]}

    model = Echo()
    graph = wrap(_graph(node))
    ask(graph, _asked("one"), way, _config(), stream_mode=mode)
    ask(graph, _asked("two"), way, _config(), stream_mode=mode)
    assert [(one.id, lines(one)) for one in arrived.conversations()] == [("t", _turn("one")), ("t", _turn("two"))]
    assert ["interrupted" in one.messages[-1].metadata for one in arrived.conversations()] == [False, False]


@pytest.mark.parametrize("wrapped", ["graph", "subgraph", "model"])
@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream"])
def test_h26_subgraphs_belong_to_their_graph(arrived, wrapped, way):
    """A graph inside a graph, as a node or called by one, is part of the outer turn."""
    model = wrap(Echo()) if wrapped == "model" else Echo()
    inner = _graph(_answering(model), checkpointer=None)
    if wrapped == "subgraph":
        inner = wrap(inner)
    graph = _graph(inner, lambda state: {"messages": inner.invoke({"messages": state["messages"][:1]})["messages"]})
    graph = wrap(graph) if wrapped == "graph" else graph
    ask(graph, _asked("one"), way, _config())
    conversation = arrived.only()
    assert (conversation.id, lines(conversation)) == ("t", _turn("one"))


def _confirming(state):
    return {"messages": [AIMessage(f"so: {interrupt('sure?')}")]}


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
def test_h26_an_interrupt_is_no_error_and_resume_goes_on(arrived, way):
    """What waits for the user is neither answer nor error; what the user then says is the thread's next message."""
    graph = wrap(_graph(_confirming))
    ask(graph, _asked("do it"), way, _config())
    ask(graph, Command(resume="yes"), way, _config())
    ask(graph, _asked("again"), way, _config())
    assert [(one.id, lines(one)) for one in arrived.conversations()] == [
        ("t", [("user", "do it")]),
        ("t", [("user", "yes"), ("assistant", "so: yes")]),
        ("t", [("user", "again")]),
    ]


def test_h26_an_interrupt_after_an_answer_repeats_nothing(arrived):
    """An older answer in the state is not the answer of the turn that waits."""
    graph = wrap(_graph(_answering(Echo()), _confirming))
    ask(graph, _asked("one"), "invoke", _config())
    ask(graph, Command(resume="yes"), "invoke", _config())
    assert arrived.threads() == {
        "t": [("user", "one"), ("assistant", "echo: one"), ("user", "yes"), ("assistant", "so: yes")]
    }


def test_h26_a_second_interrupt_repeats_no_older_answer(arrived):
    """When a resumed graph waits again, the newest answer in its state is still not the answer of this turn."""

    def confirm_twice(state):
        return {"messages": [AIMessage(f"so: {interrupt('sure?')}, {interrupt('really?')}")]}

    graph = wrap(_graph(_answering(Echo()), confirm_twice))
    graph.invoke(_asked("one"), _config())
    graph.invoke(Command(resume="yes"), _config())
    graph.invoke(Command(resume="really"), _config())
    assert arrived.turns() == [
        [("user", "one"), ("assistant", "echo: one")],
        [("user", "yes")],
        [("user", "really"), ("assistant", "so: yes, really")],
    ]


def test_h26_going_on_from_a_breakpoint_repeats_no_older_answer(arrived):
    """invoke(None) goes on where a graph stopped by itself: nobody has said anything, and old answers are old."""
    graph = wrap(_graph(_answering(Echo()), _confirming, interrupt_before=["node1"]))
    graph.invoke(_asked("one"), _config())
    graph.invoke(None, _config())
    graph.invoke(Command(resume="yes"), _config())
    assert arrived.threads() == {
        "t": [("user", "one"), ("assistant", "echo: one"), ("user", "yes"), ("assistant", "so: yes")]
    }


def test_h26_an_interrupt_resumed_by_its_id_is_the_users_message(arrived):
    """Command(resume={id: text}) says the same as Command(resume=text)."""
    graph = wrap(_graph(_confirming))
    (waits,) = graph.invoke(_asked("do it"), _config())["__interrupt__"]
    graph.invoke(Command(resume={waits.id: "yes"}), _config())
    assert arrived.turns() == [[("user", "do it")], [("user", "yes"), ("assistant", "so: yes")]]


def test_h26_a_failing_node_is_an_error_and_the_thread_goes_on(arrived):
    """A node that raises is the turn's error; the next turn of the thread holds neither it nor what was asked."""
    model = Echo(failures=["boom"])
    graph = wrap(_graph(_answering(model)))
    with pytest.raises(RuntimeError, match="boom"):
        graph.invoke(_asked("one"), _config())
    graph.invoke(_asked("two"), _config())
    assert [(one.id, lines(one)) for one in arrived.conversations()] == [
        ("t", [("user", "one"), ("event", "RuntimeError: boom")]),
        ("t", _turn("two")),
    ]


@pytest.mark.parametrize("how", RECORDED)
def test_h26_the_user_of_the_configurable_is_the_turns(arrived, how):
    """`configurable.user_id`, which LangChain tells no callback, is whose turn it is."""
    graph, config = RECORDED[how]()
    graph.invoke(_asked("one"), {**_config(user_id="ada"), **config, "metadata": {"plan": "pro"}, "tags": ["beta"]})
    conversation = arrived.only()
    assert (conversation.id, lines(conversation)) == ("t", _turn("one"))
    assert conversation.metadata == {"user_id": "ada", "plan": "pro", "tags": "beta", "model": "echo-1"}


def test_h26_many_threads_at_once_are_apart(arrived):
    """Concurrent turns of different threads never mix."""
    model = Echo(pause=0.01)

    async def node(state):
        return {"messages": [await model.ainvoke(state["messages"])]}

    graph = wrap(_graph(node))

    async def main():
        await asyncio.gather(
            *(graph.ainvoke(_asked(f"q{number}"), _config(f"t{number}", user_id=f"u{number}")) for number in range(20))
        )

    asyncio.run(main())
    assert {one.id: (one.user_id, lines(one)) for one in arrived.conversations()} == {
        f"t{number}": (f"u{number}", _turn(f"q{number}")) for number in range(20)
    }
    assert len(arrived.conversations()) == 20


class Topics(TypedDict):
    """A state without messages."""

    question: str
    answer: str


def test_h26_a_graph_without_messages_has_question_and_answer(arrived):
    """A state of the app's own is read by its well-known keys."""
    model = Echo()
    graph = wrap(_graph(lambda state: {"answer": model.invoke(state["question"]).text}, state=Topics))
    graph.invoke({"question": "hi"}, _config())
    assert arrived.threads() == {"t": _turn("hi")}


def test_h26_a_functional_graph_is_one_thread(arrived):
    """@entrypoint and @task are a graph like any other."""
    model = Echo()

    @task
    def step(question):
        return model.invoke(question).text

    @entrypoint(checkpointer=InMemorySaver())
    def flow(asked):
        return step(asked["question"]).result()

    graph = wrap(flow)
    for said in ("one", "two"):
        graph.invoke({"question": said}, _config())
    assert arrived.threads() == {"t": [*_turn("one"), *_turn("two")]}


def test_h26_a_fan_out_is_one_turn(arrived):
    """Nodes that run side by side, each with a model of its own, are one turn with the state's answer."""
    model = Echo()
    graph = StateGraph(MessagesState)
    graph.add_node("work", lambda part: {"messages": [model.invoke(part["say"])]})
    graph.add_node("join", lambda state: {"messages": [AIMessage(f"{len(state['messages']) - 1} answers")]})
    graph.add_conditional_edges(START, lambda _: [Send("work", {"say": name}) for name in "abc"], ["work"])
    graph.add_edge("work", "join")
    graph.add_edge("join", END)
    wrap(graph.compile()).invoke(_asked("all"))
    conversation = arrived.only()
    assert lines(conversation) == [("user", "all"), ("assistant", "3 answers")]
    assert facts(conversation.messages[-1])["total_tokens"] == "15"


def test_h26_a_session_goes_before_what_the_graph_says(arrived):
    """User and thread of a session around the graph hold against its configurable."""
    graph = _graph(_answering(Echo()))
    with session(user_id="ada", thread_id="mine"):
        graph.invoke(_asked("one"), _config("graphs", user_id="other"))
    conversation = arrived.only()
    assert (conversation.id, conversation.user_id, lines(conversation)) == ("mine", "ada", _turn("one"))


def test_h26_abandoned_streams_keep_the_thread(arrived):
    """A stream of a graph that nobody reads on is interrupted, and the thread goes on."""
    graph: Any = wrap(_graph(_answering(Echo()), _answering(Echo())))
    stream = graph.stream(_asked("one"), _config(), stream_mode="updates")
    next(stream)
    stream.close()
    graph.invoke(_asked("two"), _config())
    broken, whole = arrived.conversations()
    assert [broken.id, whole.id] == ["t", "t"]
    assert lines(broken)[0] == ("user", "one")
    assert broken.messages[-1].metadata["interrupted"] == "true"
    assert lines(whole) == _turn("two")
