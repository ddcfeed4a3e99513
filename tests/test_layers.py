"""The house has one direction: a file imports only what stands above it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "contextwrap"

# Top to bottom. A folder is one room; inside it there are no cycles.
ROOMS = (
    "errors",
    "ids",
    "forking",
    "guard",
    "model",
    "bounds",
    "tokens",
    "settings",
    "redaction",
    "sampling",
    "boxfiles",
    "outbox",
    "window",
    "transport",
    "courier",
    "keeping",
    "identity",
    "client",
    "transcript",
    "heard",
    "turns",
    "whose",
    "runs",
    "recorder",
    "handler",
    "streams",
    "sessions",
    "instrumenting",
    "ratings",
    "fields",
    "responses",
    "calls",
    "following",
    "ownruns",
    "wrapping",
    "tracking",
    "web",
    "testing",
    "pytest_plugin",
    "__init__",
    "store",
    "analytics",
    "server",
    "importers",
    "exporter",
    "doctor",
    "demo",
    "outbox_commands",
    "cli",
    "__main__",
)

_SDK = set(ROOMS[ROOMS.index("transport") : ROOMS.index("__init__")])

# What the SDK keeps out of the server's rooms and the other way round, though the order alone would let it pass.
CLOSED_DOORS = {
    "store": _SDK | {"__init__"},
    "analytics": _SDK | {"__init__"},
    "server": _SDK,
}


def _modules() -> dict[str, Path]:
    """Every module by its dotted name below the package: "outbox", "store.records", "server.__init__"."""
    return {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in sorted(PACKAGE.rglob("*.py"))}


MODULES = _modules()


def _room(module: str) -> str:
    return module.partition(".")[0]


def _resolved(dotted: str) -> str | None:
    """The module file that `dotted` (below the package) names, or None when it is a name inside one."""
    if not dotted:
        return "__init__"
    if dotted in MODULES:
        return dotted
    return f"{dotted}.__init__" if f"{dotted}.__init__" in MODULES else None


def _imports(path: Path, *, typing_too: bool) -> set[str]:
    """The modules of the package that the file imports anywhere, also inside functions."""
    found: set[str] = set()
    todo: list[ast.AST] = [ast.parse(path.read_text())]
    while todo:
        node = todo.pop()
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING" and not typing_too:
            todo.extend(node.orelse)
            continue
        todo.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import hides where it leads"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            top, _, rest = name.partition(".")
            if top == "contextwrap":
                target = _resolved(rest) or _resolved(rest.rpartition(".")[0])
                assert target is not None, f"{path} imports {name}, which is no module"
                found.add(target)
    return found


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_stands_above_it(module: str) -> None:
    """An import of a lower room, for types or inside a function as well, is an import the wrong way."""
    room = _room(module)
    assert room in ROOMS, f"{room} has no place in the house yet: add it to ROOMS where it belongs"
    allowed = set(ROOMS[: ROOMS.index(room) + 1]) - CLOSED_DOORS.get(room, set())
    wrong = sorted(name for name in _imports(MODULES[module], typing_too=True) if _room(name) not in allowed)
    assert wrong == []


def test_no_module_imports_itself_by_a_detour() -> None:
    """Following imports that run never leads back to where it started."""
    graph = {module: _imports(path, typing_too=False) - {module} for module, path in MODULES.items()}
    while leaves := {module for module, targets in graph.items() if not targets & graph.keys()}:
        graph = {module: targets for module, targets in graph.items() if module not in leaves}
    assert graph == {}


def test_the_list_names_only_rooms_that_exist() -> None:
    """A room that is gone is gone from the list."""
    assert sorted(set(ROOMS)) == sorted({_room(module) for module in MODULES})


def test_a_lower_room_is_noticed(tmp_path: Path) -> None:
    """The search sees plain, from-, function-level and typing-only imports."""
    path = tmp_path / "sample.py"
    path.write_text(
        "import contextwrap.guard\n"
        "from contextwrap import outbox\n"
        "from contextwrap.errors import WireError\n"
        "def f():\n    from contextwrap.model import Log\n"
        "if TYPE_CHECKING:\n    from contextwrap.ids import new_id\n"
    )
    assert _imports(path, typing_too=True) == {"guard", "outbox", "errors", "model", "ids"}
    assert _imports(path, typing_too=False) == {"guard", "outbox", "errors", "model"}
