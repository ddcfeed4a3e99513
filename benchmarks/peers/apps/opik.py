"""opik: its tracer in the config's callbacks; its reports about itself switched off."""

from __future__ import annotations

import os

TRACERS = []


def asking(chain, url):
    """The chain, recorded: what takes a question and gives the answer."""
    os.environ |= {
        "OPIK_URL_OVERRIDE": f"{url}/api",
        "OPIK_API_KEY": "t",
        "OPIK_WORKSPACE": "t",
        "OPIK_SENTRY_ENABLE": "false",
        "OPIK_ANALYTICS_ENABLE": "false",
    }
    from opik.integrations.langchain import OpikTracer  # noqa: PLC0415  its environment comes first

    TRACERS.append(OpikTracer())
    config = {"callbacks": TRACERS}
    return lambda asked: chain.invoke(asked, config)


def flush() -> None:
    """Deliver."""
    TRACERS[0].flush()
