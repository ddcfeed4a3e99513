"""A wrapped Runnable does what the bare one does: every kind, every behaviour, compared."""

from __future__ import annotations

import difflib
import json
import os
import pprint
import subprocess
import sys
from pathlib import Path

import pytest
from behaviours import ACALLS, CALLS
from heart import Heart
from kinds import KINDS, fresh
from looks import LOOKS
from observed import observe

import contextwrap
from contextwrap import wrap

HERE = Path(__file__).parent


_BINDING = (
    "a Runnable that has no place for callbacks is held in a RunnableBinding, as with_config and bind hold it: "
    "of LangChain's seams the only one that keeps the run around it as the parent"
)
_BOUND = "chain parallel branch assign fallbacks structured each configurable alternatives lambda coroutine generator"
_FUNCTIONS = "lambda coroutine generator"
_OWN_BINDINGS = "retry bound tools history"

# What cannot be the same, and why; whatever is listed here has to differ.
ALLOWED: dict[tuple[str, str], str] = {
    (kind, look): reason
    for kinds, looks, reason in (
        (_BOUND, "its_type fields shown dumped set_and_get", _BINDING),
        (_FUNCTIONS, "instance_of", f"{_BINDING}; and a binding is serializable by its type, though these are not"),
        (_FUNCTIONS, "names attributes", f"{_BINDING}; its own `name` is None, get_name() answers as before"),
        ("each", "attributes", f"{_BINDING}; both have a `bound`, and it is not the same"),
        ("chain structured", "operators", f"{_BINDING}; composed with more it stays one step, or it would be lost"),
        (
            "retriever",
            "host_hears ahost_hears astream_events shown dumped attributes fields",
            "a retriever has no place for callbacks and has to stay one: a mark in its metadata says it is wrapped",
        ),
        (
            "history",
            "host_hears ahost_hears astream_events astream_log",
            "callbacks see no `configurable`, so the session_id there is noted in the metadata as well",
        ),
        (_OWN_BINDINGS, "shown dumped", "a binding shows its config factories, and one of them records"),
    )
    for kind in kinds.split()
    for look in looks.split()
}


@pytest.fixture(autouse=True)
def configured(home):
    """Records go to this test's home."""
    contextwrap.configure(home=home)


@pytest.fixture(scope="session")
def bare(tmp_path_factory):
    """What is seen of each kind where nothing is wrapped and contextwrap is not loaded."""
    path = tmp_path_factory.mktemp("bare") / "seen.json"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COV")}
    subprocess.run([sys.executable, HERE / "observed.py", path], check=True, env=environment, timeout=110)
    return json.loads(path.read_text())


def _lines(seen):
    return pprint.pformat(seen, width=160).splitlines()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("behaviour", [*CALLS, *ACALLS, *LOOKS], ids=lambda one: one.__name__)
def test_wrapped_is_as_bare(bare, kind, behaviour):
    """Answers, chunks, errors, cancellation, the host's events, schemas, types and attributes: as they are bare."""
    was, seen = bare[kind][behaviour.__name__], observe(kind, behaviour, wrapped=True)
    difference = "\n".join(difflib.unified_diff(_lines(was), _lines(seen), "bare", "wrapped", lineterm="", n=1))
    reason = ALLOWED.get((kind, behaviour.__name__))
    if reason is None:
        assert not difference, difference
    else:
        assert difference, f"no longer true: {reason}"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("behaviour", [*CALLS, *ACALLS], ids=lambda one: one.__name__)
def test_bare_is_as_bare_beside_it(bare, kind, behaviour):
    """What nobody wrapped does not notice that something else in its process is wrapped."""
    wrap(fresh(KINDS[kind], Heart()))
    was, seen = bare[kind][behaviour.__name__], observe(kind, behaviour, wrapped=False)
    difference = "\n".join(difflib.unified_diff(_lines(was), _lines(seen), "bare", "beside", lineterm="", n=1))
    assert not difference, difference


def test_what_cannot_be_the_same_is_something_we_look_at():
    """The list of differences names kinds and behaviours that there are."""
    known = {(kind, one.__name__) for kind in KINDS for one in (*CALLS, *ACALLS, *LOOKS)}
    assert ALLOWED.keys() <= known
