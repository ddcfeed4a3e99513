"""The demo's application: a support bot over contextwrap's own guide, as a user of contextwrap would write it.

Nothing here but `track_context`, `wrap` and `rate` knows of contextwrap. The model is deterministic and works
offline: it answers with what the retriever found.
"""

from __future__ import annotations

import re
import zlib
from importlib.resources import files
from operator import itemgetter
from typing import TYPE_CHECKING, Any

from langchain_core.callbacks import CallbackManagerForLLMRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.output_parsers import StrOutputParser
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableBranch, RunnablePassthrough
from langchain_core.tools import tool

from contextwrap import track_context, wrap

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

UNKNOWN = "I could not find that in the guide. Could you say it in other words?"
_STOP = frozenset(
    "a an and are as at be can do does for from how i in is it me my of on or s that the this to what when where which "
    "who why will with you your".split()
)


class GuideRetriever(BaseRetriever):
    """The sections of the guide that share the most words with the question."""

    sections: list[Document]

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        asked = _words(query)
        scored = [(_overlap(asked, section), index) for index, section in enumerate(self.sections)]
        best = sorted((-score, index) for score, index in scored if score >= 1)[:2]
        return [self.sections[index] for _, index in best]


class GuideModel(BaseChatModel):
    """A chat model that reads its prompt's first section aloud, and now and then times out, as models do."""

    fail_every: int = 17
    fail_twice_every: int = 41

    @property
    def _llm_type(self) -> str:
        return "guide"

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> Any:
        return {"ls_provider": "contextwrap", "ls_model_name": "guide-1", "ls_model_type": "chat"}

    def _answer(self, messages: Sequence[BaseMessage]) -> str:
        context = str(messages[0].content).split("GUIDE\n", 1)[-1]
        return context.split("\n\n")[0].strip() or UNKNOWN

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=AIMessage(content=self._answer(messages)))])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        asked = str(messages[-1].content)
        if _one_in(self.fail_every, asked) or _one_in(self.fail_twice_every, asked.rstrip("?")):
            raise TimeoutError("the model took longer than 30 s")
        answer = self._answer(messages)
        for piece in re.findall(r"\S+\s*", answer):
            chunk = ChatGenerationChunk(message=AIMessageChunk(content=piece))
            if run_manager:
                run_manager.on_llm_new_token(piece, chunk=chunk)
            yield chunk
        read, written = sum(len(str(message.content)) for message in messages) // 4, len(answer) // 4
        usage = UsageMetadata(input_tokens=read, output_tokens=written, total_tokens=read + written)
        facts = {"model_name": "guide-1", "finish_reason": "stop"}
        yield ChatGenerationChunk(message=AIMessageChunk(content="", usage_metadata=usage, response_metadata=facts))


@tool
def count_my_conversations(account: str) -> str:
    """Say how many conversations an account has."""
    return f"Your account has {zlib.crc32(account.encode()) % 900 + 100} conversations this month."


def make_bot() -> Runnable[dict[str, str], str]:
    """The chain: retrieve, prompt, model, text; questions about the account go to a tool. Wrapped at set-up."""
    prompt = ChatPromptTemplate.from_messages(
        [("system", "Answer from this guide only.\nGUIDE\n{context}"), ("user", "{question}")]
    )
    found = itemgetter("question") | GuideRetriever(sections=_guide()) | _joined
    from_guide = RunnablePassthrough.assign(context=found) | prompt | GuideModel() | StrOutputParser()
    from_account = {"account": itemgetter("account")} | count_my_conversations
    return wrap(RunnableBranch((_about_account, from_account), from_guide))


@track_context(
    user_id="{user}", thread_id="{thread}", metadata={"release": "{release}", "app": "guide-bot"}, tags=["demo"]
)
def answer(question: str, *, user: str, thread: str, release: str, patience: int = 10_000) -> str:
    """Stream an answer; a reader may lose patience after some pieces. One more try when the model times out."""
    try:
        return _read(question, user=user, patience=patience)
    except TimeoutError:
        return _read(f"{question}?", user=user, patience=patience)


def _read(question: str, *, user: str, patience: int) -> str:
    pieces: list[str] = []
    for piece in bot.stream({"question": question, "account": user}):
        pieces.append(piece)
        if len(pieces) >= patience:
            break
    return "".join(pieces)


def _one_in(many: int, text: str) -> bool:
    return zlib.crc32(text.encode()) % many == 0


def _about_account(asked: dict[str, str]) -> bool:
    return "my account" in asked["question"].lower()


def _joined(documents: list[Document]) -> str:
    return "\n\n".join(document.page_content for document in documents)


def _guide() -> list[Document]:
    text = files("contextwrap.demo").joinpath("guide.md").read_text(encoding="utf-8")
    sections = [section.split("\n", 1) for section in text.split("\n## ")[1:]]
    return [Document(page_content=body.strip(), metadata={"title": title}) for title, body in sections]


def _words(text: str) -> set[str]:
    return {word[:6] for word in re.findall(r"[a-z]+", text.lower()) if word not in _STOP}


def _overlap(asked: set[str], section: Document) -> float:
    return 2 * len(asked & _words(section.metadata["title"])) + len(asked & _words(section.page_content))


bot = make_bot()
