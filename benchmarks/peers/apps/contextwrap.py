"""contextwrap: `wrap`, all settings but the server's at their defaults (durability "call")."""

from __future__ import annotations

import contextwrap as it


def asking(chain, url):
    """The chain, recorded: what takes a question and gives the answer."""
    # It does not compress what it sends to 127.0.0.1, which would flatter it here: another name of the same address.
    it.configure(endpoint=url.replace("127.0.0.1", "127.1"), token="t", allow_http=True)
    return it.wrap(chain).invoke


def flush() -> None:
    """Deliver."""
    it.flush(60)
