"""openinference as its README shows it: with the processor that sends each span at once, in the caller's thread."""

from __future__ import annotations

from apps import openinference
from apps.openinference import flush as flush


def asking(chain, url):
    """The chain, recorded: what takes a question and gives the answer."""
    return openinference.asking(chain, url, "SimpleSpanProcessor")
