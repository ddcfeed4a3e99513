"""The shapes an app is built in, each around the model it is given, with what one turn of it is."""

from __future__ import annotations

from typing import Any

from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, PromptTemplate
from langchain_core.runnables import (
    RunnableBranch,
    RunnableGenerator,
    RunnableLambda,
    RunnableParallel,
    RunnablePassthrough,
)

PROMPT = ChatPromptTemplate.from_template("{question}")
ASKED = {"question": "hi"}
TURN = [("user", "hi"), ("assistant", "echo: hi")]


def _upper(parts):
    for part in parts:
        yield part.upper()


async def _aupper(parts):
    async for part in parts:
        yield part.upper()


def _calls(model):
    """A function that asks the model itself, and leaves the config to LangChain."""

    def answer(asked):
        return model.invoke(asked["question"]).text

    async def aanswer(asked):
        return (await model.ainvoke(asked["question"])).text

    return RunnableLambda(answer, aanswer)


def _two_answers(model):
    said = PROMPT | model | StrOutputParser()
    return RunnableParallel(answer=said, second=said) | (lambda both: both["answer"] + " / " + both["second"])


SHAPES: dict[str, Any] = {
    "prompt | model": (lambda model: PROMPT | model, TURN),
    "prompt | model | parser": (lambda model: PROMPT | model | StrOutputParser(), TURN),
    "a dict with an answer": (
        lambda model: RunnablePassthrough.assign(answer=PROMPT | model | StrOutputParser()).pick(["answer"]),
        TURN,
    ),
    "RunnableParallel": (lambda model: RunnableParallel(answer=PROMPT | model | StrOutputParser()), TURN),
    "RunnableParallel of two": (
        _two_answers,
        [("user", "hi"), ("assistant", "echo: hi / echo: hi")],
    ),
    "RunnableLambda behind": (
        lambda model: PROMPT | model | RunnableLambda(lambda message: message.text + "!"),
        [("user", "hi"), ("assistant", "echo: hi!")],
    ),
    "RunnableLambda around": (_calls, TURN),
    "RunnableBranch": (
        lambda model: RunnableBranch(
            (lambda asked: asked["question"] == "bye", lambda _: "so long"),
            PROMPT | model | StrOutputParser(),
        ),
        TURN,
    ),
    "RunnablePassthrough": (
        lambda model: RunnablePassthrough() | PROMPT | model | StrOutputParser() | RunnablePassthrough(),
        TURN,
    ),
    "RunnableGenerator": (
        lambda model: PROMPT | model | StrOutputParser() | RunnableGenerator(_upper, _aupper),
        [("user", "hi"), ("assistant", "ECHO: HI")],
    ),
    "chains in chains": (
        lambda model: (
            RunnablePassthrough.assign(question=PROMPT | model | StrOutputParser())
            | PROMPT
            | (model | StrOutputParser())
        ),
        [("user", "hi"), ("assistant", "echo: echo: hi")],
    ),
    "a prompt without a question": (
        lambda model: (
            (lambda asked: {"product": asked["question"]}) | PromptTemplate.from_template("about {product}") | model
        ),
        [("user", "hi"), ("assistant", "echo: about hi")],
    ),
    "fallbacks of the chain": (lambda model: (PROMPT | model).with_fallbacks([PROMPT | model]), TURN),
    "fallbacks of the model": (lambda model: PROMPT | model.with_fallbacks([model]), TURN),
    "retry of the chain": (lambda model: (PROMPT | model).with_retry(), TURN),
    "retry of the model": (lambda model: PROMPT | model.with_retry() | StrOutputParser(), TURN),
    "bind": (lambda model: PROMPT | model.bind(stop=["."]) | StrOutputParser(), TURN),
    "with_config": (lambda model: (PROMPT | model).with_config(tags=["x"]) | StrOutputParser(), TURN),
    "map": (
        lambda model: (lambda asked: [asked]) | (PROMPT | model | StrOutputParser()).map() | (lambda all_of: all_of[0]),
        TURN,
    ),
}
