"""The command line as a user meets it: real processes, and one line for whatever goes wrong."""

from __future__ import annotations

import gzip
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import duckdb
import pytest

import contextwrap

ROOT = Path(__file__).parent.parent
TIMEOUT = 60


def _command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "contextwrap", *map(str, arguments)]


def _environment(**variables: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "200"} | variables


def _run(*arguments: str | Path, stdin: bytes = b"", **variables: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        _command(*arguments),
        capture_output=True,
        check=False,
        input=stdin,
        env=_environment(**variables),
        timeout=TIMEOUT,
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def _failed(done: subprocess.CompletedProcess[str]) -> str:
    """The one line a failed command says."""
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("Error: ")
    return lines[0]


def _conversation(number: int, *, turns: int = 1) -> dict[str, object]:
    messages = [{"role": role, "message": f"{role} {turn}"} for turn in range(turns) for role in ("user", "assistant")]
    return {"id": f"c{number}", "user_id": f"u{number % 3}", "topic": "billing", "messages": messages}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Ten conversations of one turn, in JSON Lines."""
    path = tmp_path / "ten.jsonl"
    path.write_text("".join(json.dumps(_conversation(number)) + "\n" for number in range(10)))
    return path


def _exported(home: Path, *options: str) -> list[dict]:
    done = _run("export", "--home", home, *options)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_version() -> None:
    """`--version` says which one this is."""
    assert _run("--version").stdout.strip() == f"contextwrap, version {contextwrap.__version__}"


def test_help_loads_no_server() -> None:
    """`--help` is quick: it loads neither the web server nor the store nor LangChain."""
    code = (
        "import sys\nfrom contextwrap.__main__ import main\nsys.argv = ['contextwrap', '--help']\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        "print(sorted({'fastapi', 'duckdb', 'langchain_core', 'rich', 'uvicorn'} & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, env=_environment(), text=True, timeout=TIMEOUT
    )
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.parametrize("package", ["click", "duckdb"])
def test_a_missing_package_is_one_line(package: str, file: Path, home: Path) -> None:
    """Installed without its server part, the command says what to install."""
    code = (
        f"import sys\nsys.modules[{package!r}] = None\nfrom contextwrap.__main__ import main\n"
        f"sys.argv = ['contextwrap', 'import', {str(file)!r}, '--home', {str(home)!r}]\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, env=_environment(), text=True, timeout=TIMEOUT
    )
    assert _failed(done) == f'Error: {package} is not installed; run: pip install "contextwrap[server]"'


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["import"],
        ["serve", "--port", "70000"],
        ["export", "--format", "xml"],
        ["keys", "create"],
        ["keys", "create", "--scope", "everything"],
        ["keys", "revoke"],
    ],
    ids=" ".join,
)
def test_a_wrong_call_says_how_to_call(arguments: list[str]) -> None:
    """A usage error has exit code 2, names what is wrong and shows no traceback."""
    done = _run(*arguments)
    assert done.returncode == 2
    assert "Usage: contextwrap" in done.stderr
    assert "Error: " in done.stderr
    assert "Traceback" not in done.stderr


def test_import_then_export_gives_the_same(file: Path, home: Path) -> None:
    """What was imported comes out again, with its ids, metadata and messages in order."""
    done = _run("import", file, "--home", home)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "10 conversations imported, 10 of them new, with 20 new messages\n"
    exported = {item["id"]: item for item in _exported(home)}
    assert sorted(exported) == [f"c{number}" for number in range(10)]
    assert exported["c4"]["metadata"] == {"user_id": "u1", "topic": "billing"}
    assert [message["message"] for message in exported["c4"]["messages"]] == ["user 0", "assistant 0"]


def test_importing_again_adds_nothing(file: Path, home: Path) -> None:
    """A second import of the same file changes nothing, with or without ids in it."""
    anonymous = file.with_name("anonymous.jsonl")
    anonymous.write_text(file.read_text().replace('"id"', '"ref"'))
    assert _run("import", file, anonymous, "--home", home).returncode == 0
    first = _exported(home)
    done = _run("import", file, anonymous, "--home", home)
    assert done.stdout == "20 conversations imported, 0 of them new, with 0 new messages\n"
    assert _exported(home) == first


def test_importing_a_grown_file_adds_the_rest(file: Path, home: Path) -> None:
    """Conversations that went on since the last import get only their new messages."""
    assert _run("import", file, "--home", home).returncode == 0
    file.write_text("".join(json.dumps(_conversation(number, turns=2)) + "\n" for number in range(11)))
    done = _run("import", file, "--home", home)
    assert done.stdout == "11 conversations imported, 1 of them new, with 24 new messages\n"
    assert {len(item["messages"]) for item in _exported(home)} == {4}


def test_an_export_can_be_imported_elsewhere(file: Path, home: Path, tmp_path: Path) -> None:
    """Export, import into an empty home, export: the same bytes."""
    rich = {
        "id": "rich",
        "metadata": {"user_id": "ü", "model": "m"},
        "messages": [
            {"role": "system", "message": "be kind", "event_timestamp": "2024-02-29T23:59:59.999Z"},
            {"role": "user", "message": "¿qué?\u2028\x00 <b>", "id": "m1", "rating": 0},
            {"type": "tool", "name": "search", "input": {"q": ["a", 1]}, "observation": "found", "thought": "look"},
            {"type": "event", "name": "clicked", "metadata": {"where": "here"}},
            {"role": "assistant", "message": "si", "rating": -1, "event_timestamp": "2024-03-01T00:00:00Z"},
        ],
    }
    file.write_text(file.read_text() + json.dumps(rich) + "\n")
    assert _run("import", file, "--home", home).returncode == 0
    first, second = tmp_path / "first.jsonl", tmp_path / "second.jsonl"
    assert _run("export", "--home", home, "--output", first).returncode == 0
    assert _run("import", first, "--home", tmp_path / "other").returncode == 0
    assert _run("export", "--home", tmp_path / "other", "--output", second).returncode == 0
    assert len(first.read_bytes().splitlines()) == 11
    assert second.read_bytes() == first.read_bytes()


def test_gzip_and_standard_input(file: Path, home: Path) -> None:
    """A gzipped file and a pipe are imported like the file itself."""
    packed = file.with_suffix(".jsonl.gz")
    packed.write_bytes(gzip.compress(file.read_bytes()))
    assert _run("import", packed, "--home", home).returncode == 0
    done = _run("import", "-", "--home", home, stdin=packed.read_bytes())
    assert done.stdout == "10 conversations imported, 0 of them new, with 0 new messages\n"


def test_import_stops_at_a_bad_line(file: Path, home: Path) -> None:
    """The line is named, and what stood before it is imported and counted."""
    file.write_text(file.read_text() + '{"messages": "none"}\n' + json.dumps(_conversation(99)) + "\n")
    line = _failed(_run("import", file, "--home", home))
    assert f"{file}, line 11: conversation.messages must be a list" in line
    assert "The 10 conversations before it are imported" in line
    assert len(_exported(home)) == 10


def test_import_can_skip_bad_lines(file: Path, home: Path) -> None:
    """With --skip-bad each bad line is reported, the first twenty in full, and the good ones are in."""
    file.write_text("nonsense\n" * 30 + file.read_text())
    done = _run("import", file, "--skip-bad", "--home", home)
    assert done.returncode == 0
    assert done.stdout.startswith("10 conversations imported")
    assert done.stderr.count("Skipped: ") == 20
    assert f"Skipped: {file}, line 1: " in done.stderr
    assert "30 bad lines skipped" in done.stderr


def test_a_damaged_gzip_file_is_one_line(file: Path, home: Path) -> None:
    """A file cut short in transfer says so."""
    file.write_bytes(gzip.compress(file.read_bytes())[:-10])
    assert "the gzip file is damaged here" in _failed(_run("import", file, "--home", home))


def test_two_imports_at_once(file: Path, home: Path) -> None:
    """Imports into one home wait for each other, and both are done when they say so."""
    other = file.with_name("other.jsonl")
    other.write_text("".join(json.dumps(_conversation(number)) + "\n" for number in range(10, 400)))
    processes = [
        subprocess.Popen(
            _command("import", path, "--home", home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment()
        )
        for path in (file, other)
    ]
    for process in processes:
        _, errors = process.communicate(timeout=TIMEOUT)
        assert process.returncode == 0, errors.decode()
    assert len(_exported(home)) == 400


def test_an_absent_file_stops_before_anything(file: Path, home: Path) -> None:
    """One file that is not there, and nothing of the others is imported."""
    line = _failed(_run("import", file, file.with_name("absent.jsonl"), "--home", home))
    assert line == f"Error: cannot read {file.with_name('absent.jsonl')}: No such file or directory"
    assert not home.exists()


def test_a_folder_is_no_file(tmp_path: Path, home: Path) -> None:
    """A folder given as a file is refused in one line."""
    assert _failed(_run("import", tmp_path, "--home", home)) == f"Error: cannot read {tmp_path}: Is a directory"


@pytest.mark.parametrize(
    "arguments", [["import", "FILE"], ["export"], ["serve"], ["keys", "create", "--scope", "read"], ["keys", "list"]]
)
def test_a_home_that_cannot_be_written_is_one_line(arguments: list[str], file: Path) -> None:
    """A home below something that is no folder is refused by every command, naming it."""
    home = file / "home"
    words = [str(file) if word == "FILE" else word for word in arguments]
    assert str(file) in _failed(_run(*words, "--home", home))


@pytest.mark.parametrize("arguments", [["import", "FILE"], ["export"]])
def test_a_store_that_is_none_is_one_line(arguments: list[str], file: Path, home: Path) -> None:
    """A store file with something else in it is named, and left as it is."""
    store = home / "server" / "store.duckdb"
    store.parent.mkdir(parents=True)
    store.write_bytes(b"not a database" * 100)
    words = [str(file) if word == "FILE" else word for word in arguments]
    assert "store.duckdb" in _failed(_run(*words, "--home", home))
    assert store.read_bytes() == b"not a database" * 100


def test_the_environment_names_the_home(file: Path, home: Path) -> None:
    """CONTEXTWRAP_HOME is the home; an endpoint in the environment is no concern of the local store."""
    variables = {"CONTEXTWRAP_HOME": str(home), "CONTEXT_API_TOKEN": "a token without an endpoint"}
    assert _run("import", file, **variables).returncode == 0
    assert len(_exported(home)) == 10


def test_tenants_are_apart(file: Path, home: Path) -> None:
    """What is imported for one tenant is exported for that tenant alone."""
    assert _run("import", file, "--tenant", "acme", "--home", home).returncode == 0
    assert _exported(home) == []
    assert len(_exported(home, "--tenant", "acme")) == 10
    assert "tenant_id must be shorter" in _failed(_run("export", "--tenant", "x" * 40, "--home", home))


def test_one_user_can_be_exported(file: Path, home: Path) -> None:
    """`--user` keeps the conversations of one user."""
    assert _run("import", file, "--home", home).returncode == 0
    assert [item["id"] for item in _exported(home, "--user", "u2")] == ["c2", "c5", "c8"]


def test_a_parquet_export_has_a_row_a_message(file: Path, home: Path, tmp_path: Path) -> None:
    """Parquet readers see every message with its conversation, in order."""
    table = tmp_path / "out.parquet"
    assert _run("import", file, "--home", home).returncode == 0
    done = _run("export", "--format", "parquet", "--output", table, "--home", home)
    assert done.returncode == 0, done.stderr
    rows = duckdb.sql(
        f"SELECT conversation_id, user_id, position, role, message, epoch_ms(event_timestamp) > 0 FROM '{table}'"
    ).fetchall()
    assert rows[:2] == [("c0", "u0", 0, "user", "user 0", True), ("c0", "u0", 1, "assistant", "assistant 0", True)]
    assert duckdb.sql(f"SELECT count(*) FROM '{table}'").fetchall() == [(20,)]


def test_an_export_that_cannot_be_written_is_one_line(file: Path, home: Path, tmp_path: Path) -> None:
    """The output is named, and no half file is left behind."""
    target = tmp_path / "no" / "such" / "folder.jsonl"
    line = _failed(_run("export", "--home", home, "--output", target))
    assert line == f"Error: cannot write {target}: No such file or directory"


def test_a_closed_pipe_is_no_traceback(home: Path, tmp_path: Path) -> None:
    """`contextwrap export | head -1` ends quietly."""
    file = tmp_path / "many.jsonl"
    file.write_text("".join(json.dumps(_conversation(number, turns=50)) + "\n" for number in range(100)))
    assert _run("import", file, "--home", home).returncode == 0
    process = subprocess.Popen(
        _command("export", "--home", home), stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=_environment()
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == b""
    process.stderr.close()
    assert process.wait(TIMEOUT) == 1


def test_an_interrupted_import_is_one_word(home: Path) -> None:
    """Ctrl-C ends an import that waits for its input, without a traceback."""
    process = subprocess.Popen(
        _command("import", "-", "--home", home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=_environment(),
    )
    with process:
        _until(lambda: any((home / "outbox").glob("*.sqlite")))
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert "Traceback" not in process.stderr.read().decode()
    assert process.returncode == 1


def test_a_port_in_use_is_one_line(home: Path) -> None:
    """The server says which port is taken, and that another can be chosen."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert str(port) in _failed(_run("serve", "--home", home, "--port", str(port)))


def test_keys_are_made_shown_and_revoked(home: Path) -> None:
    """`create` prints the key alone, `list` everything but the secret, `revoke` takes the id that `list` shows."""
    done = _run("keys", "create", "--scope", "ingest", "--name", "web app", "--home", home)
    assert done.returncode == 0, done.stderr
    key = done.stdout.strip()
    assert done.stdout == f"{key}\n"
    assert len(key.split()) == 1
    shown = _run("keys", "list", "--home", home).stdout
    assert "web app" in shown
    assert "ingest" in shown
    assert key not in shown
    (row,) = [line for line in shown.splitlines() if "web app" in line]
    key_id = row.replace("│", " ").split()[0]
    assert _run("keys", "revoke", key_id, "--home", home).returncode == 0
    assert "web app" not in _run("keys", "list", "--home", home).stdout
    assert key_id in _failed(_run("keys", "revoke", key_id, "--home", home))


@pytest.fixture
def server(home: Path):
    """A running server on the home, on a port of its own choosing."""
    process = subprocess.Popen(
        _command("serve", "--home", home, "--port", "0"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=_environment(),
    )
    with process:
        _until(lambda: (home / "server" / "running.json").exists() or process.poll() is not None)
        assert process.poll() is None, process.stderr and process.stderr.read()
        yield process
        process.send_signal(signal.SIGINT)
        assert process.wait(TIMEOUT) == 0


def test_a_running_server_stores_what_is_imported(server, file: Path, home: Path) -> None:
    """While a server has the store open, import hands over and waits, and export reads through its API."""
    done = _run("import", file, "--home", home)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "10 conversations imported, stored by the server that runs on this home\n"
    served = _exported(home)
    assert sorted(item["id"] for item in served) == sorted(f"c{number}" for number in range(10))


def test_an_export_is_the_same_with_and_without_a_server(file: Path, home: Path) -> None:
    """Who has the store open makes no difference to what is exported, over several pages of the API."""
    file.write_text("".join(json.dumps(_conversation(number, turns=2)) + "\n" for number in range(230)))
    assert _run("import", file, "--home", home).returncode == 0
    alone = {item["id"]: item for item in _exported(home)}
    process = subprocess.Popen(
        _command("serve", "--home", home, "--port", "0"), stdout=subprocess.DEVNULL, env=_environment()
    )
    with process:
        _until((home / "server" / "running.json").exists)
        served = _exported(home)
        one_user = _exported(home, "--user", "u1")
        process.send_signal(signal.SIGTERM)
    assert len(served) == len(alone) == 230
    assert {item["id"]: item for item in served} == alone
    assert {item["id"] for item in one_user} == {
        key for key, item in alone.items() if item["metadata"]["user_id"] == "u1"
    }


def _until(condition, *, seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)
