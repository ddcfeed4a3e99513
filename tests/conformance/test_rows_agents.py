"""Agents and classic chains: an agent loop is one conversation, with its tools and its final answer."""

from __future__ import annotations

import pytest
from arrivals import WAYS, ask, facts
from chains import ASKED
from fakemodels import Echo, calling
from langchain.agents import create_agent
from langchain.agents.middleware import HumanInTheLoopMiddleware
from langchain_classic.agents import AgentExecutor, create_tool_calling_agent
from langchain_classic.chains import ConversationChain, LLMChain, RetrievalQA
from langchain_core.documents import Document
from langchain_core.language_models import FakeListLLM
from langchain_core.messages import HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.tools import tool
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.types import Command
from parcels import lines
from pydantic import BaseModel

from contextwrap import ContextCallbackHandler, session, wrap

pytestmark = [
    pytest.mark.filterwarnings("ignore:The (class|method|function):langchain_core._api.LangChainDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:Please see the migration guide"),
]


@tool
def clock(zone: str) -> str:
    """The time."""
    return f"noon in {zone}"


class Asks(Echo):
    """Asks the clock first, and then says what it said."""

    def _generate(self, messages, *_, **__):
        message = messages[-1]
        answer = self._answer(messages)
        if isinstance(message, ToolMessage):
            answer = answer.model_copy(update={"content": f"it is {message.content}"})
        else:
            answer = answer.model_copy(update={"content": "", "tool_calls": calling("clock", zone="Rome").tool_calls})
        return ChatResult(generations=[ChatGeneration(message=answer)])

    async def _agenerate(self, messages, *_, **__):
        return self._generate(messages)

    def _should_stream(self, *_, **__):
        return False


TURN = [("user", "what time?"), ("tool", "noon in Rome"), ("assistant", "it is noon in Rome")]
RECORDED = {
    "wrapped agent": lambda: (wrap(create_agent(Asks(), [clock])), {}),
    "wrapped model": lambda: (create_agent(wrap(Asks()), [clock]), {}),
    "wrapped tool": lambda: (create_agent(Asks(), [wrap(clock)]), {}),
    "all wrapped": lambda: (wrap(create_agent(wrap(Asks()), [wrap(clock)])), {}),
    "handler": lambda: (create_agent(Asks(), [clock]), {"callbacks": [ContextCallbackHandler()]}),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("how", RECORDED)
def test_h21_an_agents_loop_is_one_conversation(arrived, how, way):
    """create_agent: the question, the tool's row, the final answer; nothing of the calls between."""
    agent, config = RECORDED[how]()
    ask(agent, {"messages": [("user", "what time?")]}, way, config)
    conversation = arrived.only()
    assert lines(conversation) == TURN
    _, row, answer = conversation.messages
    assert (row.name, row.input, row.observation) == ("clock", {"zone": "Rome"}, "noon in Rome")
    assert facts(answer)["total_tokens"] == "10"


@pytest.mark.parametrize("how", ["agent", "model"])
def test_h26_an_agents_thread_adds_only_what_is_new(arrived, how):
    """With a checkpointer each turn of the agent is recorded once, its tools too."""
    model = wrap(Asks()) if how == "model" else Asks()
    agent = create_agent(model, [clock], checkpointer=InMemorySaver())
    agent = wrap(agent) if how == "agent" else agent
    for _ in range(2):
        agent.invoke({"messages": [("user", "what time?")]}, {"configurable": {"thread_id": "t", "user_id": "ada"}})
    assert [(one.id, one.user_id, lines(one)) for one in arrived.conversations()] == [("t", "ada", TURN)] * 2


@pytest.mark.parametrize("how", ["wrapped agent", "wrapped model", "handler"])
def test_h17_an_agent_that_is_handed_its_history_adds_only_what_is_new(arrived, how):
    """Without a checkpointer the app keeps all messages, tools' ones too, and passes them again."""
    agent, config = RECORDED[how]()
    history = []
    for _ in range(2):
        asked = {"messages": [*history, HumanMessage("what time?")]}
        history = agent.invoke(asked, {**config, "metadata": {"thread_id": "t"}})["messages"]
    assert arrived.turns() == [TURN, TURN]


def test_h26_a_tool_that_a_human_approves_is_recorded_once_it_ran(arrived):
    """An agent that waits for approval has not answered; when it goes on its tool and its answer are the thread's."""
    approval = HumanInTheLoopMiddleware(interrupt_on={"clock": True})
    agent = wrap(create_agent(Asks(), [clock], middleware=[approval], checkpointer=InMemorySaver()))
    config = {"configurable": {"thread_id": "t"}}
    agent.invoke({"messages": [("user", "what time?")]}, config)
    agent.invoke(Command(resume={"decisions": [{"type": "approve"}]}), config)
    first, second = arrived.conversations()
    assert [first.id, second.id] == ["t", "t"]
    assert lines(first) == TURN[:1]
    assert [line for line in lines(second) if line[0] != "user"] == TURN[1:]


class Answer(BaseModel):
    """What the agent is to say."""

    hour: int
    sure: bool


class Structures(Echo):
    """Answers by the tool that stands for the format."""

    def _generate(self, messages, *_, **__):
        call = calling("Answer", hour=12, sure=True)
        return ChatResult(generations=[ChatGeneration(message=call)])


def test_h21_an_agents_structured_response_is_recorded(arrived):
    """An agent with a response format that says nothing else is recorded with that JSON."""
    agent = wrap(create_agent(Structures(), [], response_format=Answer))
    said = agent.invoke({"messages": [("user", "what time?")]})
    assert said["structured_response"] == Answer(hour=12, sure=True)
    assert lines(arrived.only())[-1] == ("assistant", '{"hour":12,"sure":true}')


# langchain-classic.


@pytest.mark.parametrize("how", ["wrapped executor", "wrapped model", "handler", "session"])
@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
def test_h21_an_agent_executor_is_one_conversation(arrived, how, way):
    """AgentExecutor: input, the tool's row, output."""
    prompt = ChatPromptTemplate.from_messages([("human", "{input}"), ("placeholder", "{agent_scratchpad}")])
    model = wrap(Asks()) if how == "wrapped model" else Asks()
    agent = create_tool_calling_agent(model, [clock], prompt)
    executor = AgentExecutor(agent=agent, tools=[clock])
    executor = wrap(executor) if how == "wrapped executor" else executor
    config = {"callbacks": [ContextCallbackHandler()]} if how == "handler" else {}
    if how == "session":
        with session():
            ask(executor, {"input": "what time?"}, way)
    else:
        ask(executor, {"input": "what time?"}, way, config)
    assert arrived.turns() == [TURN]


def test_h15_the_documented_snippet_runs_unchanged(arrived):
    """The old handler's page: the same object on the chat model and on the chain, and run()."""
    callback = ContextCallbackHandler()
    chat = Echo(callbacks=[callback])
    prompt = ChatPromptTemplate.from_messages([("human", "What is a good name for a company that makes {product}?")])
    chain = LLMChain(llm=chat, prompt=prompt, callbacks=[callback])
    asked = "What is a good name for a company that makes colorful socks?"
    assert chain.run("colorful socks") == f"echo: {asked}"
    assert arrived.turns() == [[("user", asked), ("assistant", f"echo: {asked}")]]


LLM_CHAINS = {
    "the chain": lambda h: LLMChain(llm=Echo(), prompt=PROMPT, callbacks=[h]),
    "the model": lambda h: LLMChain(llm=Echo(callbacks=[h]), prompt=PROMPT),
    "both": lambda h: LLMChain(llm=Echo(callbacks=[h]), prompt=PROMPT, callbacks=[h]),
    "wrapped model": lambda _: LLMChain(llm=wrap(Echo()), prompt=PROMPT),
    "wrapped chain": lambda _: wrap(LLMChain(llm=Echo(), prompt=PROMPT)),
}
PROMPT = ChatPromptTemplate.from_template("{question}")


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("where", LLM_CHAINS)
def test_h15_a_classic_chain_is_one_conversation(arrived, handler, where, way):
    """LLMChain, whose callbacks are its own only: wherever the handler is, it is recorded once."""
    ask(LLM_CHAINS[where](handler), ASKED, way)
    assert arrived.turns() == [[("user", "hi"), ("assistant", "echo: hi")]]


def test_h18_a_classic_chain_of_a_completion_model(arrived):
    """LLMChain with a completion model keeps its prompt."""
    chain = LLMChain(llm=FakeListLLM(responses=["fine"]), prompt=PromptTemplate.from_template("about {product}?"))
    wrap(chain).run("socks")
    assert arrived.turns() == [[("user", "about socks?"), ("assistant", "fine")]]


def test_h17_a_classic_conversation_is_one_thread(arrived):
    """ConversationChain, whose memory hands the model everything, adds only what is new."""
    chain = wrap(ConversationChain(llm=Echo()))
    with session(thread_id="t"):
        for said in ("one", "two"):
            chain.invoke({"input": said})
    users = [[line for line in turn if line[0] == "user"] for turn in arrived.turns()]
    assert users == [[("user", "one")], [("user", "two")]]


class Shelf(BaseRetriever):
    """Finds one document."""

    def _get_relevant_documents(self, query, *, run_manager):
        return [Document(f"all about {query}")]


def test_h21_a_classic_retrieval_chain_is_one_conversation(arrived):
    """RetrievalQA: the query and the result."""
    prompt = PromptTemplate.from_template("{context}: {question}")
    chain = RetrievalQA.from_chain_type(llm=Echo(), retriever=Shelf(), chain_type_kwargs={"prompt": prompt})
    wrap(chain).invoke({"query": "hens"})
    assert arrived.turns() == [[("user", "hens"), ("assistant", "echo: all about hens: hens")]]


# Fallbacks.


@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream", "batch", "abatch"])
@pytest.mark.parametrize("wrapped", ["first", "second", "both", "whole"])
def test_h25_a_fallback_is_one_conversation(arrived, wrapped, way):
    """When the first model fails the answer is the second's, in one conversation, and both attempts count."""
    first = Echo(failures=["boom"])
    second = Echo()
    first = wrap(first) if wrapped in {"first", "both"} else first
    second = wrap(second) if wrapped in {"second", "both"} else second
    runnable = first.with_fallbacks([second])
    ask(wrap(runnable) if wrapped == "whole" else runnable, "hi", way)
    conversation = arrived.only()
    assert lines(conversation) == [("user", "hi"), ("assistant", "echo: hi")]
    assert facts(conversation.messages[-1])["attempts"] == "2"
