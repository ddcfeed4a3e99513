"""Whose run it is: what LangChain's metadata, configurable, tags and a model's headers say of user and thread.

An explicit argument of `wrap` goes before the session, the session before the run's metadata, that before
`configurable`, and the model's headers come last. Pure, but for one look at LangChain's ambient config.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

from langchain_core.runnables.config import var_child_runnable_config

from contextwrap.identity import NOBODY, Identity

USER_KEYS: Final = ("user_id",)
THREAD_KEYS: Final = ("thread_id", "session_id", "conversation_id")
_IDS: Final = frozenset((*USER_KEYS, *THREAD_KEYS))
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


def found(metadata: Mapping[str, Any], tags: Iterable[str]) -> Identity:
    """What a run says by its metadata, the ambient `configurable`, and its tags."""
    ids = found_ids(metadata)
    own = {key: text for key in metadata if _is_apps_own(key) and (text := _text(metadata[key])) is not None}
    labels = _apps_own_tags(tuple(tags)) if tags else ()
    if not own and not labels:
        return ids
    return Identity(user_id=ids.user_id, thread_id=ids.thread_id, metadata=own, tags=labels)


def found_ids(metadata: Mapping[str, Any]) -> Identity:
    """Only the user and the thread of it."""
    config = var_child_runnable_config.get()
    configurable = config.get("configurable") if config else None
    if not metadata and not configurable:
        return NOBODY
    places = [place for place in (metadata, configurable) if place and not place.keys().isdisjoint(_IDS)]
    return _identity(_first(USER_KEYS, places), _first(THREAD_KEYS, places)) if places else NOBODY


def explicit(metadata: Mapping[str, Any]) -> Identity:
    """What `wrap(…, user_id=…, thread_id=…)` said."""
    if EXPLICIT_USER not in metadata and EXPLICIT_THREAD not in metadata:
        return NOBODY
    places = (metadata,)
    return _identity(_first((EXPLICIT_USER,), places), _first((EXPLICIT_THREAD,), places))


def in_headers(params: Mapping[str, Any], serialized: Mapping[str, Any] | None) -> Identity:
    """What the headers of the model's own calls say, those of one call before those of all."""
    kwargs = (serialized or {}).get("kwargs")
    of_all = kwargs if isinstance(kwargs, Mapping) else {}
    places = [where[name] for where in (params, of_all) for name in _HEADERS if name in where]
    if not places:
        return NOBODY
    return _identity(_first(USER_KEYS, [place for place in places if isinstance(place, Mapping)]), None)


def another(identity: Identity, than: Identity) -> bool:
    """Whether it names a user or a thread, and not the same."""
    return (identity.user_id or than.user_id, identity.thread_id or than.thread_id) != (than.user_id, than.thread_id)


def _identity(user_id: str | None, thread_id: str | None) -> Identity:
    return NOBODY if user_id is thread_id is None else Identity(user_id=user_id, thread_id=thread_id)


@functools.lru_cache(maxsize=1024)
def _apps_own_tags(tags: tuple[str, ...]) -> tuple[str, ...]:
    return tuple([tag for tag in tags if not _INTERNAL_TAG.match(tag)])


@functools.lru_cache(maxsize=1024)
def _is_apps_own(key: str) -> bool:
    return key not in USER_KEYS and key not in THREAD_KEYS and not _INTERNAL_KEY.match(str(key))


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
