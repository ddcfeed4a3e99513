"""contextwrap: who your LLM product's users are, what they ask, and how it serves them.

    import contextwrap
    from contextwrap import session, track_context, wrap

    bot = wrap(prompt | model | StrOutputParser())      # any Runnable or chat model; stays what it is

    @track_context(user_id="{request.user.id}")         # each call is a session of that user
    def answer(request):
        return bot.invoke({"question": request.text})

    with session(user_id="u1", thread_id="t1") as s:    # all that LangChain runs inside is one thread
        bot.invoke({"question": "…"})
        s.rate(+1, feedback="nailed it")

Everything is on disk when the call returns. `contextwrap serve` shows it; with CONTEXTWRAP_ENDPOINT and
CONTEXT_API_TOKEN it goes to a server instead. What could not be kept is counted in `ContextWrap.stats()`.
`contextwrap.web` has middleware, `contextwrap.testing` records in memory for your tests.

Importing this loads none of its dependencies (PEP 562): names are found when they are first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from contextwrap.client import ContextWrap, aflush, configure, flush, forget, shutdown
    from contextwrap.errors import ConfigurationError, ContextwrapError
    from contextwrap.handler import ContextCallbackHandler
    from contextwrap.instrumenting import in_session, instrument, uninstrument
    from contextwrap.ratings import rate_by_token, rating_token
    from contextwrap.sessions import rate, session
    from contextwrap.tracking import track_context
    from contextwrap.wrapping import wrap

__version__: Final = "0.1.0"

__all__ = [
    "ConfigurationError",
    "ContextCallbackHandler",
    "ContextWrap",
    "ContextwrapError",
    "__version__",
    "aflush",
    "configure",
    "flush",
    "forget",
    "in_session",
    "instrument",
    "rate",
    "rate_by_token",
    "rating_token",
    "session",
    "shutdown",
    "track_context",
    "uninstrument",
    "wrap",
]

_HOMES: Final = {
    "ConfigurationError": "errors",
    "ContextCallbackHandler": "handler",
    "ContextWrap": "client",
    "ContextwrapError": "errors",
    "aflush": "client",
    "configure": "client",
    "flush": "client",
    "forget": "client",
    "in_session": "instrumenting",
    "instrument": "instrumenting",
    "rate": "sessions",
    "rate_by_token": "ratings",
    "rating_token": "ratings",
    "session": "sessions",
    "shutdown": "client",
    "track_context": "tracking",
    "uninstrument": "instrumenting",
    "wrap": "wrapping",
}


_ROOMS: Final = ("testing", "web")


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"{__name__}.{name}")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
