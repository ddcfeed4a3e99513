"""What can be seen of a Runnable without calling it, each as something to compare."""

from __future__ import annotations

import json
from typing import Any

from behaviours import Subject
from heart import ChatHeart, Heart
from langchain_core.language_models import BaseChatModel, BaseLanguageModel, BaseLLM
from langchain_core.load import Serializable, dumpd
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableSerializable
from langchain_core.tools import BaseTool
from langgraph.pregel import Pregel
from plain import came_of
from pydantic import BaseModel, ConfigDict, create_model

BASES = BaseChatModel, BaseLLM, BaseLanguageModel, BaseTool, BaseRetriever, Pregel, RunnableSerializable, Serializable
# The base that a host's own field or argument for such a thing asks for.
ASKED_FOR = BaseChatModel, BaseLLM, BaseTool, BaseRetriever, Pregel


def schemas(s: Subject) -> Any:
    x = s.make(Heart())
    config = s.config()
    return [
        came_of(lambda: json.dumps(x.get_input_jsonschema(config), sort_keys=True)),
        came_of(lambda: json.dumps(x.get_output_jsonschema(config), sort_keys=True)),
        came_of(lambda: x.input_schema.model_json_schema()),
        came_of(lambda: x.output_schema.model_json_schema()),
        came_of(lambda: x.get_config_jsonschema(include=["tags", "metadata"])),
        came_of(lambda: x.InputType),
        came_of(lambda: x.OutputType),
        came_of(lambda: x.config_specs),
    ]


def names(s: Subject) -> Any:
    x = s.make(Heart())
    return [came_of(lambda: x.name), came_of(x.get_name), came_of(lambda: x.get_name("Input"))]


def _drawing(x: Any) -> Any:
    """As JSON; a node that notes nothing is drawn the same whether it says so or not."""
    drawing = x.get_graph().to_json()
    for node in drawing["nodes"]:
        if not node.get("metadata"):
            node.pop("metadata", None)
    return drawing


def drawn(s: Subject) -> Any:
    x = s.make(Heart())
    return [came_of(lambda: _drawing(x)), came_of(lambda: x.get_graph().draw_mermaid())]


def prompts(s: Subject) -> Any:
    return came_of(lambda: s.make(Heart()).get_prompts(s.config()))


def shown(s: Subject) -> Any:
    x = s.make(Heart())
    return [came_of(lambda: repr(x)), came_of(lambda: str(x))]


def dumped(s: Subject) -> Any:
    return came_of(lambda: dumpd(s.make(Heart())))


def its_type(s: Subject) -> Any:
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(s.make(Heart())).__mro__]


def instance_of(s: Subject) -> Any:
    """The bases that hosts ask for with isinstance."""
    x = s.make(Heart())
    return [kind.__name__ for kind in (Runnable, *BASES) if isinstance(x, kind)]


def as_field(s: Subject) -> Any:
    """A pydantic model of the host's has a field for it."""
    x = s.make(Heart())
    held = []
    for kind in (Runnable, *ASKED_FOR):
        holder = create_model("Holder", __config__=ConfigDict(arbitrary_types_allowed=True), one=(kind, ...))
        held.append(came_of(lambda holder=holder: holder(one=x).one is x))
    return held


def equality(s: Subject) -> Any:
    heart = Heart()
    x, other = s.make(heart), s.make(heart)
    return [
        came_of(lambda: x == x),  # noqa: PLR0124  that is the question
        came_of(lambda: x == other),
        came_of(lambda: x != other),
        came_of(lambda: x == object()),
        came_of(lambda: x in [object(), x]),
        isinstance(came_of(lambda: hash(x)), int),
        came_of(lambda: bool(x)),
    ]


def attributes(s: Subject) -> Any:
    """Every public attribute and field: that it is there, and what it says."""
    x, bare = s.make(Heart()), Subject(kind=s.kind, wrapped=False).make(Heart())
    found = {}
    for name in dir(bare):
        if name.startswith("_") or name in _NO_VALUES:
            continue
        value = getattr(type(bare), name, None)
        found[name] = "method" if callable(value) else came_of(lambda name=name: getattr(x, name))
    return found


def fields(s: Subject) -> Any:
    """What pydantic says it holds."""
    x = s.make(Heart())
    if not isinstance(x, BaseModel):
        return "no pydantic model"
    return [
        sorted(type(x).model_fields),
        came_of(lambda: sorted(x.model_dump())),
        sorted(x.model_fields_set - {"callbacks"}),
    ]


def set_and_get(s: Subject) -> Any:
    """What the host sets is there, and takes effect."""
    x = s.make(Heart())
    found = [came_of(lambda: setattr(x, "name", "other")), came_of(lambda: x.name), came_of(x.get_name)]
    found += [came_of(lambda: setattr(x, "no_such_thing", 1)), came_of(lambda: x.no_such_thing)]
    if isinstance(x, ChatHeart) or isinstance(getattr(x, "bound", None), ChatHeart):
        found += [came_of(lambda: setattr(x, "prefix", "well, ")), came_of(lambda: x.invoke("hi").text)]
    return found


def operators(s: Subject) -> Any:
    """What it is composed with looks the same, step by step."""
    x = s.make(Heart())
    return [
        came_of(lambda: _drawing(x | str)),
        came_of(lambda: _drawing(x | {"a": str})),
        came_of(lambda: len((x | str | repr).steps)),
        came_of(lambda: (x | str).invoke(s.kind.asked, s.config())),
        came_of(lambda: x.with_config(tags=["a"]).invoke(s.kind.asked, s.config())),
    ]


_NO_VALUES = {
    # How it is recorded.
    *("callbacks", "config", "config_factories", "model_fields_set", "model_config"),
    # What pydantic and LangChain warn of when it is touched.
    *("model_computed_fields", "model_fields", "callback_manager", "input_schema", "output_schema"),
}
LOOKS = [
    schemas, names, drawn, prompts, shown, dumped, its_type, instance_of, as_field, equality, attributes, fields,
    set_and_get, operators,
]  # fmt: skip
