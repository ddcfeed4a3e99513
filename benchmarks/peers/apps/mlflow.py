"""mlflow: autolog, and a tracking server that stores spans; telemetry switched off.

Its default experiment is used: naming one asks the server first, and fails where there is none. The small package,
mlflow-tracing, cannot do without a name (3.17.2).
"""

from __future__ import annotations

import os


def asking(chain, url):
    """The chain, recorded: what takes a question and gives the answer."""
    os.environ |= {"MLFLOW_TRACKING_URI": url, "MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"}
    import mlflow  # noqa: PLC0415  its environment comes first

    mlflow.langchain.autolog()
    return chain.invoke


def flush() -> None:
    """Deliver."""
    import mlflow  # noqa: PLC0415

    mlflow.flush_trace_async_logging()
