"""Rows H16, H17, H27 to H31: who a conversation is with, where it goes on, and how it is rated."""

from __future__ import annotations

import copy
import json
import pickle
from contextlib import nullcontext

import pytest
from arrivals import TOKEN, WAYS, Arrivals, ask
from fakemodels import Echo
from fakeserver import Answer, FakeServer
from langchain_core.chat_history import InMemoryChatMessageHistory
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableLambda
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_openai import ChatOpenAI
from parcels import lines
from processes import ROOT

import contextwrap
from contextwrap import ConfigurationError, ContextCallbackHandler, session, track_context, wrap
from contextwrap.client import default_client, reset_defaults

PROMPT = ChatPromptTemplate.from_template("{question}")
ASKED = {"question": "hi"}
TURN = [("user", "hi"), ("assistant", "echo: hi")]


# Whose it is.

HEADERS = {"user_id": "123"}

STRONGEST_FIRST = ("argument", "session", "metadata", "configurable", "headers")


@pytest.mark.parametrize("weakest", range(len(STRONGEST_FIRST)))
@pytest.mark.parametrize("strongest", range(len(STRONGEST_FIRST)))
@pytest.mark.parametrize("way", ["invoke", "astream"])
def test_h16_the_strongest_word_on_the_user_holds(arrived, strongest, weakest, way):
    """Explicit argument, session, run metadata, configurable, headers of the model: the first that speaks decides."""
    if strongest > weakest:
        strongest, weakest = weakest, strongest
    said = STRONGEST_FIRST[strongest : weakest + 1]
    model = Echo()
    chain = PROMPT | (model.bind(extra_headers={"user_id": "headers"}) if "headers" in said else model)
    bot = wrap(chain, user_id="argument") if "argument" in said else wrap(chain)
    config = {
        "metadata": {"user_id": "metadata"} if "metadata" in said else {},
        "configurable": {"user_id": "configurable"} if "configurable" in said else {},
    }
    with session(user_id="session") if "session" in said else nullcontext():
        ask(bot, ASKED, way, config)
    assert list(arrived.by_user().items()) == [(STRONGEST_FIRST[strongest], [TURN])]


@pytest.mark.parametrize("wrapped", ["chain", "model"])
@pytest.mark.parametrize("way", WAYS)
def test_h16_tags_and_metadata_of_the_run_are_carried(arrived, wrapped, way):
    """What the app notes of a run stands on its conversation, whatever of it is wrapped; LangChain's notes do not."""
    bot = wrap(PROMPT | Echo()) if wrapped == "chain" else PROMPT | wrap(Echo())
    config = {"metadata": {"plan": "pro", "seats": 3, "user_id": "ada"}, "tags": ["beta", "web"], "run_name": "bot"}
    ask(bot, ASKED, way, config)
    metadata = dict(arrived.only().metadata)
    metadata.pop("model", None)
    assert metadata == {"plan": "pro", "seats": "3", "user_id": "ada", "tags": "beta,web"}


def test_h16_metadata_of_session_run_and_wrap_adds_up(arrived):
    """Each may know something; where two name the same, the stronger holds."""
    bot = wrap(PROMPT | Echo(), metadata={"from": "wrap", "w": "1"}, tags=["w"], name="bot")
    with session(metadata={"from": "session", "s": "1"}, tags=["s"]):
        bot.invoke(ASKED, {"metadata": {"r": "1"}, "tags": ["r"]})
    metadata = dict(arrived.only().metadata)
    assert sorted(metadata.pop("tags").split(",")) == ["r", "s", "w"]
    assert metadata == {"from": "session", "s": "1", "w": "1", "r": "1", "model": "echo-1"}


def test_h16_track_context_names_the_user(arrived):
    """The decorator's fields are the session of the call."""

    @track_context(user_id="{request[user]}", thread_id="{request[chat]}", metadata={"plan": "{plan}"})
    def answer(request, plan="free"):
        return (PROMPT | Echo() | StrOutputParser()).invoke(ASKED)

    assert answer({"user": "ada", "chat": "c1"}) == "echo: hi"
    conversation = arrived.only()
    assert (conversation.id, lines(conversation)) == ("c1", TURN)
    assert conversation.metadata == {"user_id": "ada", "plan": "free", "model": "echo-1"}


@pytest.mark.parametrize("named", ["metadata", "configurable", "session"])
@pytest.mark.parametrize("way", ["invoke", "ainvoke"])
def test_h16_users_inside_one_chain_nobody_wrapped_are_apart(arrived, named, way):
    """A batch job that is a chain itself, and answers many users inside, is a conversation for each of them."""
    bot = wrap(PROMPT | Echo())

    def job(users):
        for user in users:
            with session(user_id=user) if named == "session" else nullcontext():
                bot.invoke(ASKED, None if named == "session" else {named: {"user_id": user}})
        return "done"

    ask(RunnableLambda(job), ["ada", "bob"], way)
    assert arrived.by_user() == {"ada": [TURN], "bob": [TURN]}


@pytest.mark.filterwarnings("ignore:WARNING! headers is not default parameter:UserWarning")
@pytest.mark.filterwarnings("ignore:Parameters {'headers'}:UserWarning")
@pytest.mark.parametrize(
    ("how", "headers"),
    [
        pytest.param("wrap", {"headers": HEADERS}, id="headers, wrapped"),
        pytest.param("wrap", {"model_kwargs": {"extra_headers": HEADERS}}, id="extra_headers, wrapped"),
        pytest.param("wrap", {"default_headers": HEADERS}, id="default_headers, wrapped"),
        pytest.param("handler", {"model_kwargs": {"extra_headers": HEADERS}}, id="extra_headers, handler"),
        pytest.param("handler", {"default_headers": HEADERS}, id="default_headers, handler"),
    ],
)
def test_h16_the_documented_headers_of_openai_name_the_user(arrived, how, headers):
    """The old page's ChatOpenAI(headers={"user_id": …}) works when wrapped: the call, its header, and the record."""
    completion = {
        "id": "x",
        "object": "chat.completion",
        "created": 0,
        "model": "gpt-x",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "fine"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5},
    }
    with FakeServer(always=Answer(status=200, body=json.dumps(completion).encode())) as vendor:
        model = ChatOpenAI(model="gpt-x", api_key="k", base_url=f"{vendor.url}/v1", max_retries=0, **headers)
        model = wrap(model) if how == "wrap" else model.model_copy(update={"callbacks": [ContextCallbackHandler()]})
        assert model.invoke("how?").text == "fine"
        assert vendor.asked[0].headers["user_id"] == "123"
    conversation = arrived.only()
    assert lines(conversation) == [("user", "how?"), ("assistant", "fine")]
    assert conversation.metadata == {"user_id": "123", "model": "gpt-x"}
    facts = dict(conversation.messages[-1].metadata)
    del facts["latency_ms"]
    assert facts == {
        "model": "gpt-x",
        "provider": "openai",
        "finish_reason": "stop",
        "input_tokens": "3",
        "output_tokens": "2",
        "total_tokens": "5",
    }


# Where it goes on.


def _histories(way):
    """Three turns of one thread, each handed the whole history."""
    told = [SystemMessage("be kind")]
    bot = wrap(Echo())
    for said in ("one", "two", "three"):
        told.append(HumanMessage(said))
        ask(bot, told, way, {"metadata": {"thread_id": "t"}})
        told.append(AIMessage(f"echo: {said}"))


@pytest.mark.parametrize("way", WAYS)
def test_h17_a_growing_history_is_one_thread(arrived, way):
    """Each turn appends only what is new, though the model is told everything every time."""
    _histories(way)
    assert [(one.id, lines(one)) for one in arrived.conversations()] == [
        ("t", [("system", "be kind"), ("user", "one"), ("assistant", "echo: one")]),
        ("t", [("user", "two"), ("assistant", "echo: two")]),
        ("t", [("user", "three"), ("assistant", "echo: three")]),
    ]


@pytest.mark.parametrize("named", ["metadata", "configurable", "session", "argument"])
@pytest.mark.parametrize("key", ["thread_id", "session_id", "conversation_id"])
def test_h17_a_thread_is_named_in_many_ways(arrived, named, key):
    """Under LangGraph's, LangChain's or the app's own name, in metadata or configurable, it is the thread."""
    bot = wrap(PROMPT | Echo(), thread_id="t") if named == "argument" else wrap(PROMPT | Echo())
    config = {named: {key: "t"}} if named in {"metadata", "configurable"} else None
    with session(thread_id="t") if named == "session" else nullcontext():
        bot.invoke({"question": "one"}, config)
        bot.invoke({"question": "two"}, config)
    assert arrived.threads() == {
        "t": [("user", "one"), ("assistant", "echo: one"), ("user", "two"), ("assistant", "echo: two")]
    }


def test_h17_the_same_words_again_are_said_again(arrived):
    """A user who repeats a question has asked twice."""
    with session(thread_id="t"):
        for _ in range(2):
            wrap(Echo()).invoke("hi")
    assert arrived.turns() == [TURN, TURN]


@pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory is deprecated")
@pytest.mark.parametrize("way", ["invoke", "ainvoke", "stream", "astream"])
@pytest.mark.parametrize("wrapped", ["the whole", "the chain", "the model"])
def test_h17_a_runnable_with_history_is_one_thread(arrived, wrapped, way):
    """RunnableWithMessageHistory: its session is the thread, and no turn brings the history again."""
    kept = {}
    model = wrap(Echo()) if wrapped == "the model" else Echo()
    prompt = ChatPromptTemplate.from_messages([MessagesPlaceholder("history"), ("human", "{question}")])
    chain = prompt | model
    bot = RunnableWithMessageHistory(
        wrap(chain) if wrapped == "the chain" else chain,
        lambda session_id: kept.setdefault(session_id, InMemoryChatMessageHistory()),
        input_messages_key="question",
        history_messages_key="history",
    )
    bot = wrap(bot) if wrapped == "the whole" else bot
    for said in ("one", "two"):
        ask(bot, {"question": said}, way, {"configurable": {"session_id": "s"}})
    assert [(one.id, lines(one)) for one in arrived.conversations()] == [
        ("s", [("user", "one"), ("assistant", "echo: one")]),
        ("s", [("user", "two"), ("assistant", "echo: two")]),
    ]


# The constructor.


@pytest.mark.parametrize("given", ["by position", "by name"])
def test_h27_the_constructors_endpoint_is_honoured(server, home, given):
    """ContextCallbackHandler(token, endpoint=…) sends there, with that token."""
    options = {"endpoint": server.url, "home": home, "verbose": False}
    handler = (
        ContextCallbackHandler(TOKEN, **options)
        if given == "by position"
        else ContextCallbackHandler(token=TOKEN, **options)
    )
    (PROMPT | Echo()).invoke(ASKED, {"callbacks": [handler]})
    assert Arrivals(server, default_client()).turns() == [TURN]
    assert server.asked[0].headers["authorization"] == f"Bearer {TOKEN}"


def test_h27_an_unknown_keyword_is_a_type_error(arrived):
    """A misspelt setting is not swallowed."""
    with pytest.raises(TypeError, match="endpont"):
        ContextCallbackHandler(TOKEN, endpont="https://context.example")


def test_h27_the_constructor_takes_the_endpoint_of_the_environment(server, home, monkeypatch):
    """ContextCallbackHandler(token), as the old page has it, finds the server in the environment."""
    monkeypatch.setenv("CONTEXTWRAP_ENDPOINT", server.url)
    monkeypatch.setenv("CONTEXTWRAP_HOME", str(home))
    (PROMPT | Echo()).invoke(ASKED, {"callbacks": [ContextCallbackHandler(TOKEN)]})
    assert Arrivals(server, default_client()).turns() == [TURN]


def test_h28_without_an_endpoint_records_stay_here(server, home):
    """Nothing said is local mode: the record waits on disk, and no request is made."""
    client = contextwrap.configure(home=home)
    (PROMPT | Echo()).invoke(ASKED, {"callbacks": [ContextCallbackHandler()]})
    left = contextwrap.flush(0.1)
    assert (left.delivered, left.pending, left.dead, server.asked) == (0, 1, 0, [])
    assert client.stats().recorded == 1


@pytest.mark.parametrize("token", [None, ""])
@pytest.mark.parametrize("make", [ContextCallbackHandler, contextwrap.configure])
def test_h28_an_endpoint_without_a_token_is_an_error(server, home, make, token):
    """It is said at once, and in a way that tells what to do."""
    with pytest.raises(ConfigurationError, match="needs a token: set CONTEXT_API_TOKEN or token="):
        make(token=token, endpoint=server.url, home=home)


@pytest.mark.parametrize("token", [TOKEN, ""])
def test_h28_a_token_without_an_endpoint_is_an_error(home, token):
    """There is no default endpoint that a token could be for; an empty one is none to record locally with either."""
    with pytest.raises(ConfigurationError, match="endpoint"):
        ContextCallbackHandler(token, home=home)


def test_h29_the_install_hint_is_the_packages_own(tmp_path):
    """What says how to install says the name and extra that pyproject has."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    hints = [line for line in (ROOT / "contextwrap/__main__.py").read_text().splitlines() if "pip install" in line]
    assert ["contextwrap[server]" in hint for hint in hints] == [True]
    assert (project["name"], "server" in project["optional-dependencies"]) == ("contextwrap", True)


# Ratings.


def test_h30_an_answer_is_rated_before_during_and_after(arrived):
    """A rating finds its answer when it comes before it, right after it, and after it was delivered."""
    bot = wrap(PROMPT | Echo())
    with session(thread_id="t") as here:
        here.rate(-1, feedback="too slow")
        bot.invoke({"question": "one"})
        bot.invoke({"question": "two"})
        contextwrap.rate(0)
        bot.invoke({"question": "three"})
        answers = [conversation.messages[-1].id for conversation in arrived.conversations()]
        here.rate(+1, feedback="nailed it")
    contextwrap.rate(+1, message=answers[0])
    contextwrap.rate(-1, thread="t", feedback="came back")
    assert len(set(answers)) == 3
    assert arrived.ratings() == [
        (answers[0], [(-1, "too slow")]),
        (answers[1], [(0, None)]),
        (answers[2], [(1, "nailed it")]),
        (answers[0], [(1, None)]),
        ("t", [(-1, "came back")]),
    ]


def test_h30_a_rating_never_overtakes_its_answer(home):
    """Rated while the answer cannot be delivered, it waits behind it."""
    with FakeServer(Answer(status=500)) as server:
        client = contextwrap.configure(endpoint=server.url, token=TOKEN, home=home)
        with session(thread_id="t") as here:
            wrap(Echo()).invoke("hi")
            here.rate(+1)
        Arrivals(server, client).logs()
        methods = [asked.method for asked in server.asked]
        assert methods == ["POST", "POST", "PATCH"]
        assert server.asked[-1].log.rated == server.asked[0].log.conversation.messages[-1].id


@pytest.mark.parametrize("rating", [2, -2, True, None, "1", 0.5])
def test_h30_what_is_no_rating_is_counted(server, home, rating):
    """A rating is -1, 0 or +1; anything else is a loss that can be seen, never an exception."""
    client = contextwrap.configure(endpoint=server.url, token=TOKEN, home=home)
    with session() as here:
        wrap(Echo()).invoke("hi")
        assert here.rate(rating) is False
    assert client.stats().lost == {"rate: a rating is -1, 0 or +1": 1}
    assert Arrivals(server, client).ratings() == []


# As an object.

COPIES = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    "pickle": lambda thing: pickle.loads(pickle.dumps(thing)),
}


@pytest.mark.parametrize("how", COPIES)
def test_h31_the_handler_is_copied_as_itself(arrived, handler, how):
    """A copy of the handler is the shared handler, alone and among a model's callbacks."""
    assert COPIES[how](handler) is handler
    model = COPIES[how](Echo(callbacks=[handler]))
    assert model.callbacks[0] is handler
    model.invoke("hi", {"callbacks": [COPIES[how](handler)]})
    assert arrived.turns() == [TURN]


@pytest.mark.parametrize("how", COPIES)
@pytest.mark.parametrize("make", [Echo, lambda: PROMPT | Echo() | StrOutputParser()], ids=["model", "chain"])
def test_h31_what_is_wrapped_is_copied_wrapped(arrived, how, make):
    """A copy of a wrapped Runnable is recorded, once."""
    ask(COPIES[how](wrap(make())), "hi")
    assert arrived.turns() == [TURN]


def test_h31_a_handler_survives_the_reset_of_the_default_client(server, home):
    """The handler means the default client as it is now, not as it was when it was made."""
    handler = ContextCallbackHandler()
    reset_defaults()
    client = contextwrap.configure(endpoint=server.url, token=TOKEN, home=home)
    RunnableLambda(lambda said: f"echo: {said}").invoke("hi", {"callbacks": [handler]})
    assert Arrivals(server, client).turns() == [TURN]
