"""Whose run it is: what LangChain's metadata, configurable, tags and a model's headers say of user and thread.

An explicit argument of `wrap` goes before the session, the session before the run's metadata, that before
`configurable`, and the model's headers come last. Pure, but for one look at LangChain's ambient config.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from langchain_core.runnables.config import var_child_runnable_config

from contextwrap.identity import Identity

USER_KEYS: Final = ("user_id",)
THREAD_KEYS: Final = ("thread_id", "session_id", "conversation_id")
EXPLICIT_USER: Final = "contextwrap_user_id"
EXPLICIT_THREAD: Final = "contextwrap_thread_id"
WRAPPED: Final = "contextwrap_wrapped"

# What LangChain and LangGraph note for themselves.
_INTERNAL_KEY: Final = re.compile(
    r"__|ls_|lc_|langgraph_|langsmith|LANGSMITH|LANGCHAIN|checkpoint_|contextwrap_"
    r"|(?:run_id|task_id|assistant_id|graph_id|run_attempt|created_by|revision_id)$"
)
_INTERNAL_TAG: Final = re.compile(r"(?:seq:step|map:key|branch|condition|retry:attempt|graph:step|langsmith):")
_HEADERS: Final = ("extra_headers", "headers", "default_headers")


def found(metadata: Mapping[str, Any] | None, tags: Iterable[str] | None) -> Identity:
    """What a run says by its metadata, the ambient `configurable`, and its tags."""
    ids = found_ids(metadata)
    said = {str(key): _text(value) for key, value in (metadata or {}).items() if _apps_own(str(key))}
    return Identity(
        user_id=ids.user_id,
        thread_id=ids.thread_id,
        metadata={key: text for key, text in said.items() if text is not None},
        tags=tuple(tag for tag in tags or () if not _INTERNAL_TAG.match(tag)),
    )


def found_ids(metadata: Mapping[str, Any] | None) -> Identity:
    """Only the user and the thread of it."""
    config = var_child_runnable_config.get() or {}
    places = (metadata or {}, config.get("configurable") or {})
    return Identity(user_id=_first(USER_KEYS, places), thread_id=_first(THREAD_KEYS, places))


def explicit(metadata: Mapping[str, Any] | None) -> Identity:
    """What `wrap(…, user_id=…, thread_id=…)` said."""
    places = (metadata or {},)
    return Identity(user_id=_first((EXPLICIT_USER,), places), thread_id=_first((EXPLICIT_THREAD,), places))


def in_headers(params: Mapping[str, Any], serialized: Mapping[str, Any] | None) -> Identity:
    """What the headers of the model's own calls say, those of one call before those of all."""
    kwargs = (serialized or {}).get("kwargs")
    of_all = kwargs if isinstance(kwargs, Mapping) else {}
    places = [where.get(name) for where in (params, of_all) for name in _HEADERS]
    return Identity(user_id=_first(USER_KEYS, [place for place in places if isinstance(place, Mapping)]))


def another(identity: Identity, than: Identity) -> bool:
    """Whether it names a user or a thread, and not the same."""
    return (identity.user_id or than.user_id, identity.thread_id or than.thread_id) != (than.user_id, than.thread_id)


def _apps_own(key: str) -> bool:
    return key not in USER_KEYS and key not in THREAD_KEYS and not _INTERNAL_KEY.match(key)


def _first(keys: tuple[str, ...], places: Iterable[Mapping[str, Any]]) -> str | None:
    for place in places:
        for key in keys:
            value = place.get(key)
            if value is not None and (text := _text(value)):
                return text
    return None


def _text(value: object) -> str | None:
    try:
        return None if value is None else str(value)
    except Exception:  # noqa: BLE001  one odd value never loses the record
        return None
