"""The `contextwrap` command: what can be said on the command line, and nothing of how it is done.

Every command imports what it needs inside, so `contextwrap --help` is quick. Errors rise as ContextwrapError;
`__main__` makes one line of them.
"""

from __future__ import annotations

import os
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from contextwrap import __version__
from contextwrap.outbox_commands import outbox
from contextwrap.settings import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from contextwrap.importers.intake import Progress as Tell
    from contextwrap.server.keys import Keys
    from contextwrap.settings import Settings

_BAD_SHOWN: Final = 20

_home = click.option(
    "--home",
    type=click.Path(path_type=Path),
    help="Folder of the records and of what the server keeps.  [default: CONTEXTWRAP_HOME, else your data folder]",
)
_tenant = click.option(
    "--tenant", help="Which tenant's conversations.  [default: CONTEXTWRAP_TENANT_ID, else the one without a name]"
)


def _listening(command: Callable[..., None]) -> Callable[..., None]:
    """The options of a command that opens the server."""
    host = click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
    port = click.option(
        "--port",
        type=click.IntRange(0, 65535),
        default=8321,
        show_default=True,
        help="Port to listen on; 0 takes a free one.",
    )
    return host(port(command))


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="contextwrap")
def cli() -> None:
    """Who your LLM product's users are, what they ask, and how it serves them."""


@cli.command()
@_listening
@click.option(
    "--allow-host", "names", multiple=True, help="Another host name to answer to, as a proxy has; repeatable."
)
@_home
def serve(*, host: str, port: int, names: tuple[str, ...], home: Path | None) -> None:
    """Open the dashboard and the Context API on this home's records."""
    from contextwrap.server.run import serve as run

    run(host=host, port=port, home=_settings(home).home, names=names)


@cli.command()
@click.option("--serve/--no-serve", default=True, show_default=True, help="Open the dashboard at the end.")
@_listening
@click.option("--home", type=click.Path(path_type=Path), help="Folder for the demo's records.  [default: a new one]")
def demo(*, serve: bool, host: str, port: int, home: Path | None) -> None:
    """Record example conversations with a small app, then open the dashboard on them."""
    from contextwrap.demo import run_demo

    run_demo(home=home, serve=serve, host=host, port=port)


@cli.command(name="import")
@click.argument("files", nargs=-1, required=True, metavar="FILE…", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--skip-bad", is_flag=True, help="Report bad lines and go on, instead of stopping at the first.")
@_tenant
@_home
def import_(*, files: tuple[Path, ...], skip_bad: bool, tenant: str | None, home: Path | None) -> None:
    """Import conversations from JSON Lines files, plain or gzipped; - is standard input.

    One Context API conversation a line. Importing a file again adds nothing, and a conversation that has grown
    since gets its new messages.
    """
    from contextwrap.importers.intake import import_files

    settings = _settings(home, tenant)
    with _progress() as progress:
        imported = import_files(
            files, home=settings.home, tenant_id=settings.tenant_id, skip_bad=skip_bad, progress=progress
        )
    for error in imported.bad[:_BAD_SHOWN]:
        click.echo(f"Skipped: {error}", err=True)
    if imported.bad:
        click.echo(f"{len(imported.bad)} bad lines skipped", err=True)
    stored = (
        "stored by the server that runs on this home"
        if imported.new_conversations is None
        else f"{imported.new_conversations} of them new, with {imported.new_messages} new messages"
    )
    click.echo(f"{imported.conversations} conversations imported, {stored}")


@cli.command()
@click.option(
    "--format",
    "form",
    type=click.Choice(["jsonl", "parquet"]),
    default="jsonl",
    show_default=True,
    help="A conversation a line, or a table with a row a message.",
)
@click.option(
    "--output", type=click.Path(path_type=Path, allow_dash=True), default="-", help="File to write.  [default: stdout]"
)
@_tenant
@click.option("--user", help="Only this user's conversations.")
@_home
def export(*, form: str, output: Path, tenant: str | None, user: str | None, home: Path | None) -> None:
    """Write every conversation: as JSON Lines that `contextwrap import` reads, or as Parquet with a row a message."""
    from contextwrap.exporter import export_to

    settings = _settings(home, tenant)
    count = export_to(output, form=form, home=settings.home, tenant_id=settings.tenant_id, user_id=user)
    click.echo(f"{count} conversations", err=True)


@cli.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of lines.")
@click.option("--send/--no-send", default=True, show_default=True, help="Send a test conversation and read it back.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    help="Seconds that each step over the network may take.",
)
@_tenant
@_home
def doctor(*, as_json: bool, send: bool, timeout: float, tenant: str | None, home: Path | None) -> None:
    """Check versions, settings, the outbox and the way to the server, and say what to do.

    The test conversation is of the user contextwrap-doctor. What waits in the outbox is not touched. The exit code
    is 1 when something does not work.
    """
    from rich.console import Console

    from contextwrap.doctor import diagnose
    from contextwrap.doctor.checks import works
    from contextwrap.doctor.show import show, to_json

    checks = diagnose({"home": home, "tenant_id": tenant}, timeout=timeout, send=send)
    if as_json:
        found = list(checks)
        click.echo(to_json(found))
    else:
        found = show(checks, Console())
    if not works(found):
        raise SystemExit(1)


@cli.group()
def keys() -> None:
    """API keys: who may send, read or administer."""


@keys.command(name="create")
@click.option("--scope", type=click.Choice(["ingest", "read", "admin"]), required=True, help="What the key may do.")
@click.option("--tenant", default="", help="The one tenant it is for.  [default: each call names its own]")
@click.option("--name", default="", help="What the key is for, to tell it from others.")
@_home
def create_key(*, scope: str, tenant: str, name: str, home: Path | None) -> None:
    """Make a key and print it: the one time it can be seen."""
    settings = _settings(home, tenant)
    with _keys(settings) as kept:
        click.echo(kept.create(scope=scope, tenant_id=tenant, name=name))


@keys.command(name="list")
@_home
def list_keys(*, home: Path | None) -> None:
    """Show all keys, without the secret."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table("ID", "Name", "Scope", "Tenant", "Made", "Last used")
    with _keys(_settings(home)) as kept:
        for key in kept.list():
            made, used = (_day(moment) for moment in (key.created_at, key.used_at))
            # Text, not str: a name is anybody's words and no markup.
            table.add_row(*map(Text, (key.id, key.name, key.scope, key.tenant_id, made, used)))
    Console().print(table)


@keys.command(name="revoke")
@click.argument("key_id", metavar="ID")
@_home
def revoke_key(*, key_id: str, home: Path | None) -> None:
    """Let a key open nothing from now on."""
    with _keys(_settings(home)) as kept:
        key = kept.revoke(key_id)
    click.echo(f"Revoked {key.id} ({key.name or key.scope})")


cli.add_command(outbox)


def _keys(settings: Settings) -> closing[Keys]:
    from contextwrap.server.keys import Keys

    return closing(Keys(settings.home / "server" / "keys.sqlite"))


def _day(moment: float | None) -> str:
    return "never" if moment is None else f"{datetime.fromtimestamp(moment, UTC):%Y-%m-%d %H:%M} UTC"


def _settings(home: Path | None, tenant: str | None = None) -> Settings:
    """Where and for whom; an endpoint the environment names is no concern of the store on this machine."""
    local = {name: os.environ[name] for name in ("CONTEXTWRAP_HOME", "CONTEXTWRAP_TENANT_ID") if name in os.environ}
    return load({"home": home, "tenant_id": tenant}, environ=local)


@contextmanager
def _progress() -> Iterator[Tell]:
    """A bar a step on stderr, when somebody looks at it."""
    from rich.console import Console
    from rich.progress import Progress, TaskID

    tasks: dict[str, TaskID] = {}
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:

        def tell(step: str, done: int, total: int | None) -> None:
            if step not in tasks:
                tasks[step] = bars.add_task(step)
            bars.update(tasks[step], completed=done, total=total)

        yield tell
