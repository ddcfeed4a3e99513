"""The chain that the handler's tests run, what it is asked, and how its turns are read back."""

from __future__ import annotations

from fakemodels import Echo
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from parcels import conversations, lines

PROMPT = ChatPromptTemplate.from_messages([("system", "be kind"), ("human", "{question}")])
ASKED = {"question": "hi"}
TURN = [("user", "hi"), ("assistant", "echo: hi")]


def chain(**options):
    """A chain that echoes its question."""
    return PROMPT | Echo(**options) | StrOutputParser()


def turns(home):
    """The lines of each turn."""
    return [lines(one) for one in conversations(home)]


def config(handler, **metadata):
    """The handler, and metadata, for one call."""
    return {"callbacks": [handler], "metadata": metadata}
