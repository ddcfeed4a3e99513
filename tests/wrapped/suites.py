"""LangChain's own standard tests for chat models, on the bare model and on each way to wrap it.

`test_standard_suites.py` runs this file in a process of its own and compares what came of each class; records go to
a folder a class below the home it is given.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from scripted import ChatScripted

import contextwrap


class ChatWrapped(ChatScripted):
    """The same model, to be wrapped as a class: that is done in place, and the bare one has to stay bare."""


class Bare:
    """What both suites are told of the model."""

    chat_model_class = ChatScripted
    chat_model_params = {"model": "scripted-1"}  # noqa: RUF012  a property there
    supports_json_mode = True
    supports_model_override = True
    model_override_value = "scripted-2"
    enable_vcr_tests = True

    @property
    def init_from_env_params(self) -> tuple[dict[str, str], dict[str, Any], dict[str, Any]]:
        return {"SCRIPTED_API_KEY": "secret"}, {}, {"api_key": "secret"}

    @pytest.fixture(autouse=True)
    def configured(self) -> None:
        """Each class records to a home of its own."""
        contextwrap.configure(home=Path(os.environ["SUITES_HOME"], type(self).__name__))


class WrappedClass(Bare):
    """`wrap(Class)`: every instance is wrapped."""

    @property
    def chat_model_class(self) -> type[ChatScripted]:
        return contextwrap.wrap(ChatWrapped)


class WrappedInstance(Bare):
    """`wrap(model)`."""

    @pytest.fixture
    def model(self, request: pytest.FixtureRequest) -> ChatScripted:
        more = getattr(request, "param", None) or {}
        params = {**self.standard_chat_model_params, **self.chat_model_params, **more}
        return contextwrap.wrap(self.chat_model_class(**params))


class TestBareUnit(Bare, ChatModelUnitTests):
    pass


class TestWrappedClassUnit(WrappedClass, ChatModelUnitTests):
    pass


class TestWrappedInstanceUnit(WrappedInstance, ChatModelUnitTests):
    pass


class TestBareIntegration(Bare, ChatModelIntegrationTests):
    pass


class TestWrappedClassIntegration(WrappedClass, ChatModelIntegrationTests):
    pass


class TestWrappedInstanceIntegration(WrappedInstance, ChatModelIntegrationTests):
    pass
