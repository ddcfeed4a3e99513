"""langfuse: its handler in the config's callbacks; batches as its SDK does by itself."""

from __future__ import annotations

import os


def asking(chain, url):
    """The chain, recorded: what takes a question and gives the answer."""
    os.environ |= {"LANGFUSE_BASE_URL": url, "LANGFUSE_PUBLIC_KEY": "pk-lf-t", "LANGFUSE_SECRET_KEY": "sk-lf-t"}
    from langfuse.langchain import CallbackHandler  # noqa: PLC0415  its environment comes first

    config = {"callbacks": [CallbackHandler()]}
    return lambda asked: chain.invoke(asked, config)


def flush() -> None:
    """Deliver."""
    from langfuse import get_client  # noqa: PLC0415

    get_client().flush()
