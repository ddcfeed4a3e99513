"""langsmith: switched on by environment variables, as its docs begin; LangChain adds the tracer itself."""

from __future__ import annotations

import os


def asking(chain, url):
    """The chain, recorded: what takes a question and gives the answer."""
    os.environ |= {"LANGSMITH_TRACING": "true", "LANGSMITH_ENDPOINT": url, "LANGSMITH_API_KEY": "t"}
    # Asked once and remembered, before we could say so.
    from langsmith.utils import get_env_var  # noqa: PLC0415

    get_env_var.cache_clear()
    return chain.invoke


def flush() -> None:
    """Deliver."""
    from langchain_core.tracers.langchain import wait_for_all_tracers  # noqa: PLC0415

    wait_for_all_tracers()
