"""Every kind of Runnable that people wrap: how a fresh one is made around a heart, and what it is asked."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from heart import ChatHeart, Heart, TextHeart
from langchain.agents import create_agent
from langchain_classic.chains import LLMChain
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.documents import Document
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import (
    ConfigurableField,
    RunnableBranch,
    RunnableConfig,
    RunnableGenerator,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tools import BaseTool
from langgraph.graph import END, START, MessagesState, StateGraph
from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Callable

PROMPT = ChatPromptTemplate.from_messages([("system", "be kind"), ("human", "{question}")])
ASKED = {"question": "hi"}
AGAIN = {"question": "bye"}
TEXT = "so: hi it is"


class Card(BaseModel):
    """What is known of somebody."""

    name: str


class Shelves:
    """The histories, by session; pickled without what is in them."""

    def __init__(self) -> None:
        self.by_session: dict[str, Any] = {}

    def __call__(self, session_id: str) -> Any:
        return self.by_session.setdefault(session_id, InMemoryChatMessageHistory())


class Shelf(BaseRetriever):
    heart: Any

    def _get_relevant_documents(self, query, *, run_manager):
        return [Document(page_content=self.heart.answer(query))]

    async def _aget_relevant_documents(self, query, *, run_manager):
        return [Document(page_content=await self.heart.aanswer(query))]


class Clock(BaseTool):
    """A tool; one that is asked by its only argument."""

    name: str = "clock"
    description: str = "Says the time."
    heart: Any

    def _run(self, zone: str) -> str:
        return self.heart.answer(zone)

    async def _arun(self, zone: str) -> str:
        return await self.heart.aanswer(zone)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """`make` returns a fresh bare one; `said` is the user's text as recorded, None where no turn is recorded.

    `answer` is the recorded answer, None where it has to be only the text of what came back. The branches of a
    `concurrent` one race, and so do the first steps of an `unordered` one, bare as well.
    """

    make: Callable[[Heart], Any]
    asked: Any = "hi"
    again: Any = "bye"
    said: str | None = "hi"
    answer: str | None = TEXT
    config: RunnableConfig | None = None
    concurrent: bool = False
    unordered: bool = False


def fresh(kind: Kind, heart: Heart) -> Any:
    """A bare one; what LangChain says of its age is not the matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return kind.make(heart)


def chain(heart: Heart) -> Any:
    """The usual chain."""
    return PROMPT | ChatHeart(heart=heart) | StrOutputParser()


def both(heart: Heart) -> Any:
    """A RunnableLambda of a function and of a coroutine function; methods, because those can be pickled."""
    return RunnableLambda(heart.answer, heart.aanswer)


def history(heart: Heart) -> Any:
    """A chain with a message history."""
    prompt = ChatPromptTemplate.from_messages([("placeholder", "{past}"), ("human", "{question}")])
    return RunnableWithMessageHistory(
        prompt | ChatHeart(heart=heart), Shelves(), input_messages_key="question", history_messages_key="past"
    )


def graph(heart: Heart) -> Any:
    """A graph of one node, which asks a model."""
    model = ChatHeart(heart=heart)

    def node(state: MessagesState, config: RunnableConfig) -> Any:
        return {"messages": [model.invoke(state["messages"], config)]}

    async def anode(state: MessagesState, config: RunnableConfig) -> Any:
        return {"messages": [await model.ainvoke(state["messages"], config)]}

    made = StateGraph(MessagesState)
    made.add_node("node", RunnableLambda(node, anode))
    made.add_edge(START, "node")
    made.add_edge("node", END)
    return made.compile()


MESSAGES = {"messages": [("user", "hi")]}
MORE = {"messages": [("user", "bye")]}

KINDS: dict[str, Kind] = {
    "chat": Kind(make=lambda h: ChatHeart(heart=h)),
    "completion": Kind(make=lambda h: TextHeart(heart=h)),
    "chain": Kind(make=chain, asked=ASKED, again=AGAIN),
    "lambda": Kind(make=both),
    "coroutine": Kind(make=lambda h: RunnableLambda(h.aanswer)),
    "parallel": Kind(make=lambda h: RunnableParallel(a=both(h), b=itemgetter(0)), answer=None, concurrent=True),
    "branch": Kind(make=lambda h: RunnableBranch((lambda text: text == "no", StrOutputParser()), both(h))),
    "assign": Kind(
        make=lambda h: RunnablePassthrough.assign(answer=PROMPT | ChatHeart(heart=h)),
        asked=ASKED,
        again=AGAIN,
        concurrent=True,
    ),
    "generator": Kind(make=lambda h: RunnableGenerator(h.generate, h.agenerate)),
    "retry": Kind(make=lambda h: chain(h).with_retry(wait_exponential_jitter=False), asked=ASKED, again=AGAIN),
    "fallbacks": Kind(
        make=lambda h: chain(h).with_fallbacks([chain(Heart())], exceptions_to_handle=(ZeroDivisionError,)),
        asked=ASKED,
        again=AGAIN,
    ),
    "bound": Kind(make=lambda h: ChatHeart(heart=h).bind(stop=["x"])),
    "tools": Kind(make=lambda h: ChatHeart(heart=h).bind_tools([Clock(heart=h)]), answer=None),
    "structured": Kind(make=lambda h: ChatHeart(heart=h).with_structured_output(Card), answer=None),
    "retriever": Kind(make=lambda h: Shelf(heart=h), said=None),
    "tool": Kind(make=lambda h: Clock(heart=h), said=None),
    "history": Kind(
        make=history, asked=ASKED, again=AGAIN, config={"configurable": {"session_id": "s1"}}, unordered=True
    ),
    "each": Kind(make=lambda h: chain(h).map(), asked=[ASKED], again=[AGAIN]),
    "configurable": Kind(make=lambda h: ChatHeart(heart=h).configurable_fields(prefix=ConfigurableField(id="prefix"))),
    "alternatives": Kind(
        make=lambda h: ChatHeart(heart=h).configurable_alternatives(
            ConfigurableField(id="which"), default_key="chat", other=TextHeart(heart=h)
        )
    ),
    "graph": Kind(make=graph, asked=MESSAGES, again=MORE),
    "agent": Kind(
        make=lambda h: create_agent(ChatHeart(heart=h), tools=[Clock(heart=h)], system_prompt="be kind"),
        asked=MESSAGES,
        again=MORE,
        answer=None,
    ),
    "classic": Kind(
        make=lambda h: LLMChain(llm=TextHeart(heart=h), prompt=PromptTemplate.from_template("{question}")),
        asked=ASKED,
        again=AGAIN,
    ),
}
