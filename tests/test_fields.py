"""Who a call is for: constants, fields over its arguments and callables, checked where the decorator stands."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from fakemodels import Echo
from langchain_core.runnables import RunnableLambda

from contextwrap import track_context
from contextwrap.errors import ConfigurationError
from contextwrap.identity import current_scope

pytestmark = pytest.mark.usefixtures("recording")


@dataclass
class User:
    id: str | None
    tags: dict


@dataclass
class Request:
    user: User


REQUEST = Request(User("u1", {"plan": "free", "n": [10, 20]}))


def me():
    """The user of the scope this runs in."""
    scope = current_scope()
    return None if scope is None else scope.identity.user_id


@pytest.mark.parametrize(
    ("user_id", "expected"),
    [
        ("{request.user.id}", "u1"),
        ("{request.user.tags[plan]}", "free"),
        ("{request.user.tags[n][1]}", "20"),
        ("acme-{request.user.id}", "acme-u1"),
        ("{request.user.id!r}", "'u1'"),
        ("{{{request.user.id}}}", "{u1}"),
        ("{number:04d}", "0007"),
        ("{number:0{number}d}", "0000007"),
        ("{number}", "7"),
        ("always", "always"),
        ("{{braces}}", "{braces}"),
        ("", None),
        (lambda arguments: arguments["request"].user.id.upper(), "U1"),
        (lambda arguments: None, None),
        (None, None),
        ("{rest[0]}", "x"),
        ("{options[key]}", "value"),
    ],
)
def test_who_is_found_in_the_arguments(user_id, expected):
    """A constant, a format field over the arguments by name, index and attribute, or a callable says who it is."""

    @track_context(user_id=user_id, metadata={"who": user_id}, tags=[user_id])
    def answer(request, number=7, *rest, **options):
        return current_scope().identity

    identity = answer(REQUEST, 7, "x", key="value")
    assert (identity.user_id or None) == expected
    assert (identity.metadata.get("who") or None) == expected
    assert ("".join(identity.tags) or None) == expected


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        ((), ()),
        ("one", ("one",)),
        ("{number}", ("7",)),
        (["a", "{request.user.tags[plan]}", lambda arguments: arguments["number"]], ("a", "free", "7")),
        (lambda arguments: arguments["request"].user.tags["n"], ("10", "20")),
        (lambda arguments: "one", ("one",)),
        (lambda arguments: None, ()),
    ],
)
def test_tags_are_found_in_the_arguments(tags, expected):
    """Tags are each a constant, a field or a callable; or one callable gives them all."""

    @track_context(tags=tags)
    def answer(request, number=7):
        return current_scope().identity.tags

    assert answer(REQUEST) == expected


def test_nobody_is_not_a_user_called_none():
    """A field whose value is None says nothing, as an anonymous user should."""

    @track_context(user_id="{user.id}")
    def answer(user):
        return me()

    assert answer(User(None, {})) is None


def test_who_is_found_behind_stars():
    """A function of *args and **kwargs alone is looked into by those names."""

    @track_context(user_id="{kwargs[user]}", thread_id="{args[0]}")
    def answer(*args, **kwargs):
        return current_scope().identity

    identity = answer("t", user="u")
    assert (identity.user_id, identity.thread_id) == ("u", "t")


@pytest.mark.parametrize("bad", ["{nobody}", "{request.user.id}-{other}", "{}", "{0}", "{unclosed", "{request:{x}}"])
@pytest.mark.parametrize("where", ["user_id", "thread_id", "metadata", "tags"])
def test_a_bad_field_is_refused_at_decoration(bad, where):
    """A field that names no argument is refused where the decorator stands, naming function and field."""
    said = {"metadata": {"x": bad}, "tags": [bad]}.get(where, bad)
    with pytest.raises(ConfigurationError, match="@track_context"):

        @track_context(**{where: said})
        def answer(request):
            """Never made."""


def test_another_capture_is_refused_at_decoration():
    """What is kept is one of three words."""
    with pytest.raises(ConfigurationError, match="content, metadata, off"):
        track_context(capture="words")


@pytest.mark.parametrize("thing", [5, "text", RunnableLambda(str), Echo()])
def test_what_cannot_be_tracked_is_refused(thing):
    """What cannot be called is refused with what to do instead."""
    with pytest.raises(ConfigurationError, match=r"wrap\(\)"):
        track_context(thing)
