"""What is seen of every kind of Runnable, bare, in a process that never heard of contextwrap.

`python observed.py FILE` writes it there as JSON: by kind and behaviour. What is loaded may watch what is bare as well,
so nothing in the process that wraps can say what bare is.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
import warnings
from pathlib import Path
from typing import Any

from behaviours import ACALLS, CALLS, Behaviour, Subject
from kinds import KINDS
from looks import LOOKS


def observe(kind: str, behaviour: Behaviour, *, wrapped: bool) -> Any:
    """What is seen, as JSON has it; which APIs LangChain calls old is not the matter here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        seen = behaviour(Subject(kind=KINDS[kind], wrapped=wrapped))
        if inspect.iscoroutine(seen):
            seen = asyncio.run(seen)
    return json.loads(json.dumps(seen))


def main(path: str) -> None:
    """Everything, bare."""
    seen = {
        kind: {one.__name__: observe(kind, one, wrapped=False) for one in (*CALLS, *ACALLS, *LOOKS)} for kind in KINDS
    }
    assert not [name for name in sys.modules if name.partition(".")[0] == "contextwrap"]
    Path(path).write_text(json.dumps(seen))


if __name__ == "__main__":
    main(sys.argv[1])
