"""Checks as somebody reads them: coloured on a terminal, plain lines in a pipe, JSON for a program."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Final

from contextwrap.doctor.checks import todos, works

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from rich.console import Console

    from contextwrap.doctor.checks import Check

ALL_IS_WELL: Final = "All is well."
_STYLES: Final = {"ok": "green", "warn": "yellow", "fail": "bold red"}
_NAME_WIDTH: Final = 20


def show(checks: Iterable[Check], console: Console) -> list[Check]:
    """Print each check as it comes, then the verdict; returns them all."""
    from rich.table import Table  # noqa: PLC0415  half of what a command takes to start
    from rich.text import Text  # noqa: PLC0415

    shown = []
    for check in checks:
        shown.append(check)
        if console.is_terminal:
            line = Table.grid(padding=(0, 1))
            line.add_column(width=4)
            line.add_column(width=_NAME_WIDTH)
            # Text, not str: a name or a server's words are anybody's and no markup.
            line.add_row(Text(check.status, _STYLES[check.status]), Text(check.name, "bold"), Text(check.said))
            console.print(line)
        else:
            console.print(Text(f"{check.status:<4} {check.name:<{_NAME_WIDTH}} {check.said}"), soft_wrap=True)
    console.print(Text(verdict(shown)), soft_wrap=not console.is_terminal)
    return shown


def verdict(checks: Sequence[Check]) -> str:
    """One line when all is well, else what to do, a sentence a line."""
    found = todos(checks)
    return "\n".join(["", "To do:", *(f"- {todo}" for todo in found)]) if found else f"\n{ALL_IS_WELL}"


def to_json(checks: Sequence[Check]) -> str:
    """`{"ok", "todo", "checks"}`: whether nothing failed, the sentences, and each check's fields."""
    said = {"ok": works(checks), "todo": todos(checks), "checks": [asdict(check) for check in checks]}
    return json.dumps(said, indent=2, ensure_ascii=False)
