"""What the doctor sees without the network: versions, settings and where each came from, and the home's folder."""

from __future__ import annotations

import os
import platform
import re
import shutil
from importlib import metadata
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

from contextwrap import __version__
from contextwrap.doctor.checks import Check, one_line
from contextwrap.errors import ConfigurationError
from contextwrap.settings import TABLE

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from contextwrap.settings import Setting

PACKAGES: Final = (
    "langchain-core",
    "langchain",
    "langchain-classic",
    "langgraph",
    "context-python",
    "wrapt",
    "tenacity",
    "platformdirs",
    "duckdb",
    "fastapi",
)
LITTLE_SPACE: Final = 200 * 1024**2
# Read, but no setting of the product: our own tests raise what a host would never see.
_OTHER_VARIABLES: Final = frozenset({"CONTEXTWRAP_RAISE"})


def this_machine() -> Iterator[Check]:
    """The versions that are installed here, beside what this contextwrap was made for."""
    try:
        about = metadata.metadata("contextwrap")
        # `json` has a get: asked for what is not there, the metadata itself warns from Python 3.12 on.
        pythons = str(about.json.get("requires_python", ""))
        requirements = metadata.requires("contextwrap") or []
        yield Check("contextwrap", "ok", __version__)
    except metadata.PackageNotFoundError:
        pythons, requirements = "", []
        yield Check("contextwrap", "ok", f"{__version__}, not installed as a package: bounds are not known")
    yield python(platform.python_version(), pythons)
    yield from versions({name: version for name in PACKAGES if (version := _installed(name))}, requirements)


def python(version: str, supported: str) -> Check:
    """The interpreter, held to a specifier such as ">=3.11"."""
    said = f"{version} ({platform.python_implementation()}) on {platform.platform()}"
    if _within(version, supported):
        return Check("Python", "ok", said)
    return Check("Python", "warn", f"{said}; supported is {supported}", f"Use a Python that is {supported}.")


def versions(installed: Mapping[str, str], requirements: Sequence[str]) -> Iterator[Check]:
    """Each package's version, held to `requirements` as a distribution's metadata lists them."""
    # LangChain's own requirement, so it is here wherever there is something to record.
    from packaging.requirements import Requirement  # noqa: PLC0415

    bounds: dict[str, list[str]] = {}
    needed = set()
    for line in requirements:
        requirement = Requirement(line)
        bounds.setdefault(requirement.name, []).append(str(requirement.specifier))
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            needed.add(requirement.name)
    for name in (*PACKAGES, *sorted(needed - set(PACKAGES))):
        bound = ",".join(filter(None, bounds.get(name, [])))
        version = installed.get(name)
        mend = f'pip install -U "{name}{bound}"'
        if version is None and name in needed:
            yield Check(name, "fail", f"not installed; needed is {bound or 'any'}", f"Run: {mend}.")
        elif version is not None and not _within(version, bound):
            yield Check(name, "warn", f"{version}; supported is {bound}", f"Run: {mend}.")
        elif version is not None:
            yield Check(name, "ok", version)


def value(row: Setting, explicit: Mapping[str, Any], environ: Mapping[str, str]) -> Any:
    """What the row is set to, or None where that cannot be read."""
    if explicit.get(row.name) is not None:
        return explicit[row.name]
    variable = source(row, explicit, environ)
    try:
        return row.parse(environ[variable]) if variable in environ else row.default()
    except (ValueError, ConfigurationError):
        return None


def source(row: Setting, explicit: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """Where the row's value comes from: "option", the variable's name, or "default"."""
    if explicit.get(row.name) is not None:
        return "option"
    return next((variable for variable in row.variables if environ.get(variable)), "default")


def settings_rows(explicit: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[Check]:
    """Every row of the table with its value and where that came from; of a token only whether there is one."""
    for row in TABLE:
        found = value(row, explicit, environ)
        if found is None or found == "":
            said = "not set"
        elif row.name == "token":
            said = "set, not shown"
        else:
            said = one_line(without_password(str(found)))
        yield Check(row.name, "ok", f"{said} ({source(row, explicit, environ)})")


def at_fault(text: str, explicit: Mapping[str, Any], environ: Mapping[str, str]) -> str:
    """The variable or option that a ConfigurationError's text is about: the one it names first."""
    places = []
    for row in TABLE:
        for name in (*row.variables, row.name):
            if place := re.search(rf"(?<!\w){name}(?!\w)", text):
                said = source(row, explicit, environ)
                places.append((place.start(), row.variables[0] if said == "default" else said.replace("option", name)))
    return min(places, default=(0, "the settings"))[1]


def notices(endpoint: str | None, environ: Mapping[str, str]) -> Iterator[Check]:
    """What looks like a setting and is none, and the address that is somebody else's now."""
    if environ.get("CONTEXT_API_KEY"):
        yield Check("CONTEXT_API_KEY", "ok", "set, and never read: it belongs to another company's product")
    known = {variable for row in TABLE for variable in row.variables} | _OTHER_VARIABLES
    for variable in sorted(environ):
        if variable.startswith("CONTEXTWRAP_") and variable not in known:
            yield Check(variable, "warn", "no setting has this name", f"Unset {variable}, or spell it as the README.")
    try:
        host = (urlsplit(endpoint or "").hostname or "").lower()
    except ValueError:
        return
    if host == "context.ai" or host.endswith(".context.ai"):
        yield Check(
            "endpoint",
            "warn",
            f"{host} no longer serves the Context API but another company's product",
            "Set the endpoint to a server of your own: `contextwrap serve` is one.",
        )


def home_folder(home: Path) -> Check:
    """Whether records can be written to the home, and how much room there is."""
    try:
        there = nearest(home)
        # The outbox is what recording writes to; the home above it may belong to somebody else.
        folder = home / "outbox" if (home / "outbox").exists() else there
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Check("home folder", "fail", f"{home}: {one_line(error)}", _elsewhere(home))
    said = f"{home}, {free / 1024**3:.1f} GiB free"
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        return Check("home folder", "fail", f"{said}; {folder} cannot be written", _elsewhere(home))
    if free < LITTLE_SPACE:
        return Check("home folder", "warn", said, f"Make room on the disk of {home}: without it nothing is recorded.")
    return Check("home folder", "ok", said if there == home else f"{said}; made with the first record")


def nearest(home: Path) -> Path:
    """The home, or while it does not exist the folder above it that does."""
    return next(path for path in (home, *home.absolute().parents) if path.exists())


def without_password(address: str) -> str:
    """An address as it may be shown: nothing stands before its host."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", address)


def _elsewhere(home: Path) -> str:
    return f"Make {home} a folder this user may write, or set CONTEXTWRAP_HOME to one."


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _within(version: str, specifier: str) -> bool:
    from packaging.specifiers import SpecifierSet  # noqa: PLC0415  see above

    return SpecifierSet(specifier).contains(version, prereleases=True)
