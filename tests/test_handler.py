"""ContextCallbackHandler as an object: one, shared, made in all the old ways."""

from __future__ import annotations

import copy
import pickle

import pytest
from chains import ASKED, TURN, chain, config, turns
from fakemodels import Echo
from langchain_classic.chains import LLMChain
from langchain_core.prompts import ChatPromptTemplate

from contextwrap import ContextCallbackHandler, wrap
from contextwrap.client import default_client
from contextwrap.errors import ConfigurationError
from contextwrap.handler import shared_handler

pytestmark = pytest.mark.usefixtures("recording")


def test_the_handler_is_one(handler):
    """Every handler without arguments is the same one, and stays it through copy, deepcopy and pickle."""
    assert ContextCallbackHandler() is handler
    assert shared_handler() is handler
    assert copy.copy(handler) is handler
    assert copy.deepcopy({"callbacks": [handler]})["callbacks"][0] is handler
    assert pickle.loads(pickle.dumps(handler)) is handler


@pytest.mark.parametrize(
    "make",
    [
        lambda url: ContextCallbackHandler("t", endpoint=url),
        lambda url: ContextCallbackHandler(token="t", verbose=False, endpoint=url),
        lambda url: ContextCallbackHandler(*["t", True], endpoint=url),
    ],
)
def test_the_old_classes_ways_of_making_it(make, home, monkeypatch):
    """The old class's arguments are taken, and configure the default client when nothing has."""
    from contextwrap.client import reset_defaults

    reset_defaults()
    monkeypatch.setenv("CONTEXTWRAP_HOME", str(home))
    made = make("http://127.0.0.1:1")
    assert made is shared_handler()
    assert default_client().settings.endpoint == "http://127.0.0.1:1"
    assert default_client().settings.token == "t"


def test_the_old_ways_token_alone_takes_the_endpoint_from_the_environment(home, monkeypatch):
    """ContextCallbackHandler(token) goes to the endpoint of the environment, and says what is missing without one."""
    from contextwrap.client import reset_defaults

    reset_defaults()
    monkeypatch.setenv("CONTEXTWRAP_HOME", str(home))
    with pytest.raises(ConfigurationError, match="endpoint"):
        ContextCallbackHandler("t")
    monkeypatch.setenv("CONTEXTWRAP_ENDPOINT", "http://127.0.0.1:1")
    assert ContextCallbackHandler("t") is shared_handler()


def test_handlers_for_the_same_other_settings_share_a_client(handler, tmp_path):
    """An app that makes a handler a request does not make a client a request; after a shutdown there is a new one."""
    one, two = (ContextCallbackHandler(home=tmp_path / "other") for _ in range(2))
    assert one.client is two.client
    one.client.shutdown()
    three = ContextCallbackHandler(home=tmp_path / "other")
    assert three.client is not one.client
    assert ContextCallbackHandler(home=tmp_path / "third").client is not three.client
    three.client.shutdown()


def test_other_settings_make_another_handler(handler, home, tmp_path):
    """A handler for another home is its own, and records there; unknown keywords are refused."""
    other = ContextCallbackHandler(home=tmp_path / "other")
    assert other is not handler
    assert ContextCallbackHandler(home=home) is handler
    chain().invoke(ASKED, config(other))
    assert turns(home) == []
    assert turns(tmp_path / "other") == [TURN]
    assert copy.deepcopy(other) is other
    with pytest.raises(TypeError):
        ContextCallbackHandler(endpont="x")
    other.client.shutdown()


@pytest.mark.filterwarnings("ignore:The (class|method):langchain_core._api.LangChainDeprecationWarning")
def test_the_documented_snippet_runs(handler, home):
    """The old documentation's LLMChain, with the handler on chain and model, is one turn."""
    llm = Echo(callbacks=[handler])
    prompt = ChatPromptTemplate.from_template("a name for {product}")
    assert LLMChain(llm=llm, prompt=prompt, callbacks=[handler]).run("colorful socks").startswith("echo: a name")
    LLMChain(llm=Echo(), prompt=prompt, callbacks=[handler]).run("socks")
    wrap(LLMChain(llm=Echo(), prompt=prompt)).run("shoes")
    assert [one[-1] for one in turns(home)] == [
        ("assistant", f"echo: a name for {product}") for product in ("colorful socks", "socks", "shoes")
    ]
    assert turns(home)[0][0] == ("user", "a name for colorful socks")
