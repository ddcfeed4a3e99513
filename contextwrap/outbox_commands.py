"""`contextwrap outbox …`: see what waits and what was refused, and do something about it.

Looking disturbs nobody. Every text from a transcript or a server is shown as one line that no terminal obeys.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from contextwrap.errors import ConfigurationError, ContextwrapError, OutboxError, WireError
from contextwrap.settings import LOCAL, load

if TYPE_CHECKING:
    from collections.abc import Iterator

    from contextwrap.doctor.waiting import Waiting
    from contextwrap.outbox import Outbox, Parcel
    from contextwrap.settings import Settings

_SHOWN: Final = 50
_NEWEST: Final = 20
_LEAST_PREFIX: Final = 4

_home = click.option(
    "--home",
    type=click.Path(path_type=Path),
    help="Folder of the records.  [default: CONTEXTWRAP_HOME, else your data folder]",
)
_yes = click.option("--yes", is_flag=True, help="Do not ask.")


@click.group(invoke_without_command=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
@_home
@click.pass_context
def outbox(context: click.Context, *, as_json: bool, home: Path | None) -> None:
    """Show what waits for delivery, by process, and the dead letters: what was refused, with the reason."""
    if context.invoked_subcommand is not None:
        context.obj = home
        return
    found = _summary(_folder(home))
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _show_summary(found)


@outbox.command()
@click.option("--reason", default="", help="Only those whose reason contains this.")
@_home
@click.pass_context
def retry(context: click.Context, *, reason: str, home: Path | None) -> None:
    """Have every dead letter delivered again, once what it was refused for is mended."""
    count = sum(box.revive(reason=reason) for _, box in _boxes(_folder(home or context.obj)))
    click.echo(f"{count} dead letters will be tried again")


@outbox.command()
@click.argument("key", required=False)
@click.option("--dead", is_flag=True, help="Only dead letters.")
@_home
@click.pass_context
def show(context: click.Context, *, key: str | None, dead: bool, home: Path | None) -> None:
    """Show the newest parcels, or all of the one whose key begins like this."""
    found = [(parcel, gone) for parcel, gone in _parcels(_folder(home or context.obj)) if gone or not dead]
    if key is None:
        _show_parcels(sorted(found, key=lambda one: one[0].created_at)[-_NEWEST:], len(found))
        return
    matching = [one for one in found if one[0].key.startswith(key)]
    if not matching or (len(key) < _LEAST_PREFIX and len(matching) > 1):
        raise ContextwrapError(f"no one parcel has a key like {key[:80]!r}: `contextwrap outbox show` lists them")
    for parcel, gone in matching[:_NEWEST]:
        click.echo(json.dumps(_whole(parcel, dead=gone), indent=2))


@outbox.command()
@click.option("--user", help="All that waits of this user, and of their threads.")
@click.option("--thread", help="All that waits of this thread.")
@click.option("--tenant", default="", help="The thread's tenant.")
@click.option("--dead", is_flag=True, help="All dead letters.")
@_yes
@_home
@click.pass_context
def purge(
    context: click.Context,
    *,
    user: str | None,
    thread: str | None,
    tenant: str,
    dead: bool,
    yes: bool,
    home: Path | None,
) -> None:
    """Drop records that were not delivered, and wipe their bytes from the files. This cannot be undone."""
    from contextwrap.doctor.checks import one_line
    from contextwrap.keeping import forget_in, purge_in

    if (user is not None) + (thread is not None) + dead != 1:
        raise click.UsageError("say one of --user, --thread and --dead")
    folder = _folder(home or context.obj)
    whose = "all dead letters" if dead else one_line(f"user {user}" if user is not None else f"thread {thread}")
    if not yes:
        click.confirm(f"Drop what waits here of {whose}?", abort=True)
    complaints: list[str] = []
    if user is not None:
        gone = forget_in(folder.parent, user, lost=complaints.append)
    elif thread is not None:
        gone = purge_in(folder.parent, {f"{tenant}/{thread}"}, lost=complaints.append)
    else:
        gone = 0
        for _, box in _boxes(folder):
            gone += box.drop_dead_letters()
            box.scrub()
    for complaint in dict.fromkeys(complaints):
        click.echo(complaint, err=True)
    click.echo(f"{gone} parcels dropped")


@outbox.command()
@click.option("--timeout", type=click.FloatRange(min=0), default=60.0, show_default=True, help="Seconds this may take.")
@click.option("--readdress", is_flag=True, help="Also what waits for another endpoint or token, or for this machine.")
@_yes
@_home
@click.pass_context
def send(context: click.Context, *, timeout: float, readdress: bool, yes: bool, home: Path | None) -> None:
    """Deliver now what ended processes left, to the endpoint and token of the environment.

    Running processes deliver their own. The exit code is 1 when something is left.
    """
    settings = load({"home": home or context.obj})
    if settings.address == LOCAL:
        raise ConfigurationError(
            "there is no endpoint to send to: set CONTEXTWRAP_ENDPOINT and CONTEXT_API_TOKEN, "
            "or run `contextwrap serve`, which takes what waits on this machine"
        )
    folder = settings.home / "outbox"
    if readdress:
        _readdress(folder, settings, yes=yes)
    delivered = _send(folder, settings, timeout=timeout)
    mine, theirs = _left(folder, settings.address, living=False), _left(folder, settings.address, living=True)
    dead = sum(one["dead"] for one in _summary(folder)["files"])
    click.echo(f"{delivered} delivered, {mine} waiting, {dead} dead letters")
    if theirs:
        click.echo(f"{theirs} more belong to running processes, which deliver them")
    for reason in {one["held"] for one in _summary(folder)["files"] if one["waiting"] and one["held"]}:
        click.echo(f"not delivered: {reason}", err=True)
    if mine:
        raise SystemExit(1)


def _send(folder: Path, settings: Settings, *, timeout: float) -> int:
    """How many parcels could be delivered in time."""
    from concurrent.futures import ThreadPoolExecutor, wait

    from rich.console import Console
    from rich.progress import Progress

    from contextwrap.courier import Courier
    from contextwrap.transport import ContextTransport

    total = _left(folder, settings.address, living=False)
    if not total:
        return 0
    assert settings.endpoint is not None
    assert settings.token is not None
    transport = ContextTransport(endpoint=settings.endpoint, token=settings.token)
    courier = Courier(folder=folder, outbox=None, address=settings.address, transport=transport)
    console = Console(stderr=True)
    with (
        ThreadPoolExecutor(1) as beside,
        Progress(console=console, transient=True, disable=not console.is_terminal) as bars,
    ):
        task = bars.add_task("Delivering", total=total)
        flushing = beside.submit(courier.flush, timeout)
        while wait([flushing], timeout=0.1).not_done:
            bars.update(task, completed=courier.delivered)
        flushing.result()
    courier.stop(1.0)
    return courier.delivered


def _readdress(folder: Path, settings: Settings, *, yes: bool) -> None:
    from contextwrap.boxfiles import lives, outbox_files
    from contextwrap.outbox import Outbox

    counted: dict[str, int] = {}
    for path in outbox_files(folder):
        for found in [] if lives(path) else _waiting(path):
            if found.pending and found.address != settings.address:
                counted[found.address] = counted.get(found.address, 0) + found.pending
    for address, count in counted.items():
        click.echo(f"{count} records wait for {_shown(address, settings.address)}")
    if not counted:
        return
    if not yes:
        click.confirm(f"Send {sum(counted.values())} records to {_shown(settings.address)}?", abort=True)
    for path in outbox_files(folder):
        if (box := Outbox.adopt(path)) is not None:
            with closing(box):
                for address in counted:
                    box.readdress(address, settings.address)


def _summary(folder: Path) -> dict[str, Any]:
    """All there is to say of the folder, as JSON has it; `oldest` is seconds ago."""
    from contextwrap.boxfiles import damaged_files, lives, outbox_files

    now = time.time()
    files = [
        {
            "file": path.name,
            "process": path.name.partition("-")[0],
            "lives": lives(path),
            "to": _shown(found.address),
            "waiting": found.pending,
            "oldest": round(now - found.oldest) if found.pending else None,
            "dead": found.dead,
            "held": found.held,
        }
        for path in outbox_files(folder)
        for found in _waiting(path)
    ]
    letters = [_line(parcel) for parcel, dead in _parcels(folder) if dead]
    damaged = [{"file": path.name, "bytes": path.stat().st_size} for path in damaged_files(folder)]
    return {"files": files, "dead_letters": letters, "damaged": damaged}


def _show_summary(found: dict[str, Any]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from contextwrap.doctor.checks import ago

    console = Console()
    waiting = sum(one["waiting"] for one in found["files"])
    click.echo(f"{waiting} waiting for delivery")
    if found["files"]:
        table = Table("Process", "To", "Waiting", "Oldest", "Dead", "Not delivered because")
        for one in found["files"]:
            process = f"{one['process']}{'' if one['lives'] else ' (ended)'}"
            oldest = "" if one["oldest"] is None else ago(one["oldest"])
            cells = (process, one["to"], str(one["waiting"]), oldest, str(one["dead"]), one["held"])
            # Text, not str: a reason is a server's words and no markup.
            table.add_row(*map(Text, cells))
        console.print(table)
    for one in found["damaged"]:
        click.echo(f"set aside as damaged: {one['file']} ({one['bytes']} bytes)")
    letters = found["dead_letters"]
    if not letters:
        click.echo("no dead letters")
        return
    table = Table("Key", "Refused", "To", "Tries", "Reason", title="Dead letters")
    for one in letters[:_SHOWN]:
        table.add_row(*map(Text, (one["key"][:12], one["made"], one["to"], str(one["tries"]), one["reason"])))
    console.print(table)
    if len(letters) > _SHOWN:
        click.echo(f"… and {len(letters) - _SHOWN} more")


def _show_parcels(found: list[tuple[Parcel, bool]], count: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("Key", "Made", "Thread", "User", "Bytes", "Tries", "Reason")
    for parcel, dead in found:
        line = _line(parcel)
        reason = f"refused: {line['reason']}" if dead else line["reason"]
        cells = (
            line["key"][:12],
            line["made"],
            line["thread"],
            line["user"],
            str(line["bytes"]),
            str(line["tries"]),
            reason,
        )
        table.add_row(*map(Text, cells))
    Console().print(table)
    if count > len(found):
        click.echo(f"the newest {len(found)} of {count}")


def _line(parcel: Parcel) -> dict[str, Any]:
    from datetime import UTC, datetime

    from contextwrap.doctor.checks import one_line

    return {
        "key": one_line(parcel.key),
        "made": f"{datetime.fromtimestamp(parcel.created_at, UTC):%Y-%m-%d %H:%M} UTC",
        "to": _shown(parcel.address),
        "thread": one_line(parcel.lane.partition("/")[2]),
        "user": one_line(_user(parcel)),
        "bytes": len(parcel.body),
        "tries": parcel.attempts,
        "reason": one_line(parcel.reason or ""),
    }


def _whole(parcel: Parcel, *, dead: bool) -> dict[str, Any]:
    try:
        body = json.loads(parcel.body)
    except ValueError:
        body = parcel.body.decode("utf-8", "backslashreplace")
    request = {"method": parcel.method, "target": parcel.target, "body": body}
    return _line(parcel) | {"key": parcel.key, "dead": dead, "request": request}


def _user(parcel: Parcel) -> str:
    from contextwrap.model import Log

    try:
        log = Log.of_call(parcel.method, parcel.target, json.loads(parcel.body))
    except (WireError, ValueError):
        return ""
    return (log.conversation.user_id or "") if log.conversation is not None else ""


def _shown(address: str, other: str = "") -> str:
    """An address without its token's fingerprint, and how it differs from one that looks the same."""
    from contextwrap.doctor.checks import one_line
    from contextwrap.doctor.machine import without_password

    if address == LOCAL:
        return "this machine"
    to = without_password(address.partition("#")[0])
    return one_line(to if to != without_password(other.partition("#")[0]) else f"{to} with another token")


def _left(folder: Path, address: str, *, living: bool) -> int:
    from contextwrap.boxfiles import lives, outbox_files

    paths = [path for path in outbox_files(folder) if lives(path) == living]
    return sum(found.pending for path in paths for found in _waiting(path) if found.address == address)


def _waiting(path: Path) -> list[Waiting]:
    from contextwrap.doctor.waiting import waiting

    try:
        return waiting(path)
    except sqlite3.Error as error:
        if path.exists():
            click.echo(f"cannot read {path}: {error}", err=True)
        return []


def _parcels(folder: Path) -> Iterator[tuple[Parcel, bool]]:
    from contextwrap.boxfiles import outbox_files
    from contextwrap.outbox import look

    for path in outbox_files(folder):
        try:
            yield from look(path)
        except OutboxError as error:
            if path.exists():
                click.echo(str(error), err=True)


def _boxes(folder: Path) -> Iterator[tuple[Path, Outbox]]:
    from contextwrap.boxfiles import outbox_files
    from contextwrap.outbox import Outbox

    for path in outbox_files(folder):
        try:
            with closing(Outbox(path)) as box:
                yield path, box
        except OutboxError as error:
            click.echo(str(error), err=True)


def _folder(home: Path | None) -> Path:
    """Where the outboxes are; an endpoint the environment names is no concern of who only looks."""
    local = {"CONTEXTWRAP_HOME": os.environ["CONTEXTWRAP_HOME"]} if "CONTEXTWRAP_HOME" in os.environ else {}
    return load({"home": home}, environ=local).home / "outbox"
