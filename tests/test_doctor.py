"""The doctor beside real servers, broken ones and real outboxes: it sees what is wrong, and leaves all as it was."""

from __future__ import annotations

import json
import os
import pty
import sqlite3
import ssl
import subprocess
import sys
import tempfile
import time
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from fakeserver import HANG, OK, Answer, FakeServer, free_port
from processes import killed, run
from serving import served, serving

from contextwrap.client import ContextWrap
from contextwrap.doctor import diagnose
from contextwrap.doctor.checks import Check, one_line, todos, works
from contextwrap.doctor.journey import ask, within
from contextwrap.doctor.machine import python, versions
from contextwrap.doctor.show import to_json, verdict
from contextwrap.doctor.waiting import lives, waiting
from contextwrap.errors import ConfigurationError
from contextwrap.model import Conversation, Message
from contextwrap.outbox import LOCAL, Outbox, Parcel, outbox_files
from contextwrap.settings import load

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent
TOKEN = "cw_ingest_very-secret-indeed"
NOTHING_YET = b'{"conversations":[],"pagination":{}}'
TALK = Conversation(messages=(Message(role="user", message="Hello"), Message(role="assistant", message="Hi")))


def _find(home: Path, *, timeout: float = 5, send: bool = True, **variables: str) -> dict[str, Check]:
    """The checks by name; of a name that comes twice the worse one."""
    environ = {"CONTEXTWRAP_HOME": str(home), **variables}
    found: dict[str, Check] = {}
    for check in diagnose({}, environ=environ, timeout=timeout, send=send):
        if check.name not in found or found[check.name].status == "ok":
            found[check.name] = check
    return found


def _at(url: str, token: str = TOKEN) -> dict[str, str]:
    return {"CONTEXTWRAP_ENDPOINT": url, "CONTEXT_API_TOKEN": token}


def _failed(found: dict[str, Check]) -> list[str]:
    return [name for name, check in found.items() if check.status == "fail"]


def _parcel(key: str, *, address: str = LOCAL, created_at: float = 1.0) -> Parcel:
    return Parcel(key=key, address=address, lane=key, method="POST", target="/", body=b"{}", created_at=created_at)


def _files(folder: Path) -> dict[str, bytes]:
    """What is in the folder, but for SQLite's shared memory, which every reader writes its mark into."""
    paths = [path for path in folder.rglob("*") if path.is_file() and not path.name.endswith("-shm")]
    return {str(path): path.read_bytes() for path in paths}


@contextmanager
def _reading(*answers: Answer, always: Answer = OK) -> Iterator[FakeServer]:
    """A fake server that answers GET as well."""
    with FakeServer(*answers, always=always) as server:
        handler = server._http.RequestHandlerClass
        handler.do_GET = handler.do_POST
        yield server


def _run(*options: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "contextwrap", "doctor", *options],
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | variables,
        text=True,
        timeout=60,
    )


def test_with_nothing_set_all_is_well(home: Path, tmp_path: Path) -> None:
    """A machine where nothing was ever recorded is fine, and nothing is made on it."""
    found = _find(home)
    assert todos(list(found.values())) == []
    assert found["disk"].status == "ok"
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_may_be_read_gives_the_conversation_back(home: Path, tmp_path: Path) -> None:
    """With an admin key the test conversation is sent, stored and read back, marked as the doctor's."""
    with served(tmp_path / "server") as server:
        found = _find(home, **_at(server.url, server.key()))
        server.settle()
        (kept,) = server.house.store.export(tenant_id="")
    assert works(list(found.values()))
    assert found["token"].said == "accepted, and may read"
    assert "read back" in found["test conversation"].said
    assert kept.metadata == {"user_id": "contextwrap-doctor", "contextwrap_doctor": "true"}


def test_an_ingest_key_need_not_read(home: Path, tmp_path: Path) -> None:
    """A key that may only send is all an app needs."""
    with served(tmp_path / "server") as server:
        found = _find(home, **_at(server.url, server.key("ingest")))
    assert works(list(found.values()))
    assert found["token"].said.startswith("known, and may not read")
    assert found["test conversation"].said.endswith("this key may not read it back")


def test_a_read_key_cannot_record(home: Path, tmp_path: Path) -> None:
    """The test conversation shows what no question can: that this key may not send."""
    with served(tmp_path / "server") as server:
        found = _find(home, **_at(server.url, server.key("read")))
    assert _failed(found) == ["test conversation"]
    assert "HTTP 403" in found["test conversation"].todo


def test_a_tenant_goes_along(home: Path, tmp_path: Path) -> None:
    """The test conversation is of the tenant that the settings name."""
    with served(tmp_path / "server") as server:
        found = _find(home, **_at(server.url, server.key(tenant="acme")), CONTEXTWRAP_TENANT_ID="acme")
        wrong = _find(home, **_at(server.url, server.key(tenant="acme")), CONTEXTWRAP_TENANT_ID="other")
    assert works(list(found.values()))
    assert "bound to another tenant" in wrong["test conversation"].said


def test_no_send_sends_nothing(home: Path) -> None:
    """With --no-send a server is only asked."""
    with _reading(always=Answer(status=200, body=NOTHING_YET)) as server:
        found = _find(home, send=False, **_at(server.url))
    assert works(list(found.values()))
    assert {asked.method for asked in server.asked} == {"GET"}
    assert "test conversation" not in found


def test_a_token_that_is_refused_is_told_from_all_else(home: Path, tmp_path: Path) -> None:
    """401 fails the token alone: the way and the server are fine, and nothing is sent in vain."""
    with served(tmp_path / "server") as server:
        found = _find(home, **_at(server.url))
        assert list(server.house.store.export(tenant_id="")) == []
    assert _failed(found) == ["token"]
    assert found["answer"].status == "ok"
    assert "contextwrap keys create" in found["token"].todo


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (Answer(status=404, body=b"<html>Not found</html>"), "not a Context API"),
        (Answer(status=404, body=b'{"detail":"Not Found"}'), "not that of a Context API"),
        (Answer(status=200, body=b"<html>Welcome</html>"), "not a Context API"),
        (Answer(status=200, body=b"[]"), "not that of a Context API"),
        (Answer(status=403, body=b"<html>Blocked</html>"), "not a Context API"),
        (Answer(status=302, headers={"Location": "http://127.0.0.1:9/"}), "not that of a Context API"),
        (Answer(status=500, body=b'{"error":{"code":"x","message":"on fire"}}'), "HTTP 500: on fire"),
        (Answer(status=503, body=b""), "HTTP 503"),
    ],
    ids=lambda value: f"{value.status} {value.body[:10]!r}" if isinstance(value, Answer) else "",
)
def test_an_answer_of_something_else(home: Path, answer: Answer, said: str) -> None:
    """Whatever is no Context API fails as that, one question long; the token is not blamed."""
    with _reading(always=answer) as server:
        found = _find(home, **_at(server.url))
    assert _failed(found) == ["answer"]
    assert said in found["answer"].said
    assert len(server.asked) == 1


def test_a_server_that_hangs_is_given_up(home: Path) -> None:
    """No step takes longer than the timeout, before the test conversation and in it."""
    start = time.monotonic()
    with _reading(always=HANG) as server:
        found = _find(home, timeout=0.3, **_at(server.url))
    assert _failed(found) == ["answer"]
    assert "0.3 s" in found["answer"].said
    with _reading(Answer(status=200, body=NOTHING_YET), always=HANG) as server:
        found = _find(home, timeout=0.3, **_at(server.url))
    assert _failed(found) == ["test conversation"]
    assert time.monotonic() - start < 5


def test_nobody_listens(home: Path) -> None:
    """A refused connection fails as that, and neither server nor token is judged."""
    found = _find(home, **_at(f"http://127.0.0.1:{free_port()}"))
    assert _failed(found) == ["connect"]
    assert "answer" not in found
    assert "test conversation" not in found


def test_a_name_nobody_knows(home: Path) -> None:
    """A host that cannot be resolved is told from one that does not answer."""
    found = _find(home, **_at("https://nowhere.invalid"))
    assert _failed(found) == ["resolve"]
    assert "nowhere.invalid" in found["resolve"].todo


def test_no_tls_where_https_is_said(home: Path) -> None:
    """A server that speaks plain http behind an https endpoint fails at the handshake."""
    with _reading() as server:
        found = _find(home, timeout=2, **_at(server.url.replace("http:", "https:")))
    assert _failed(found) == ["TLS"]
    assert server.asked == []


def test_a_certificate_has_to_be_trusted(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A certificate nobody vouches for fails at the handshake, until REQUESTS_CA_BUNDLE names who does."""
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 1 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    answers = Answer(status=200, body=NOTHING_YET), OK, Answer(status=403, body=b"{}")
    server = FakeServer(*answers)
    handler = server._http.RequestHandlerClass
    handler.do_GET = handler.do_POST
    server._http.socket = context.wrap_socket(server._http.socket, server_side=True)
    with server:
        url = server.url.replace("http:", "https:")
        assert _failed(_find(home, **_at(url))) == ["TLS"]
        assert server.asked == []
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
        found = _find(home, **_at(url))
    assert works(list(found.values()))
    assert "certificate good until" in found["TLS"].said
    assert found["test conversation"].said.startswith("accepted")


def test_a_conversation_that_is_accepted_and_lost(home: Path) -> None:
    """Accepted and not found afterwards is a warning: the server may only be slow."""
    missing = Answer(status=404, body=b'{"error":{"code":"NotFound","message":"no such conversation"}}')
    with _reading(Answer(status=200, body=NOTHING_YET), OK, missing) as server:
        found = _find(home, **_at(server.url))
    assert found["test conversation"].status == "warn"
    assert "no such conversation" in found["test conversation"].said


def test_a_redirect_takes_the_token_nowhere() -> None:
    """The place a server points to is never asked."""
    from contextwrap.doctor.journey import Target

    with _reading() as elsewhere, _reading(always=Answer(status=307, headers={"Location": elsewhere.url})) as server:
        assert ask(Target(endpoint=server.url, token=TOKEN), "/x", timeout=5).status == 307
    assert elsewhere.asked == []


def test_a_server_on_this_home_is_found_and_tried(home: Path) -> None:
    """In local mode the running server takes the test conversation and gives it back."""
    with serving(home) as server:
        found = _find(home)
        assert server.url in found["server"].said
    assert works(list(found.values()))
    assert "read back" in found["test conversation"].said


def test_a_server_that_is_gone_without_a_word(home: Path) -> None:
    """A note of a server whose process id somebody else has now is seen through."""
    (home / "server").mkdir(parents=True)
    said = {"url": f"http://127.0.0.1:{free_port()}", "pid": os.getpid(), "token": TOKEN}
    (home / "server" / "running.json").write_text(json.dumps(said))
    assert _failed(_find(home)) == ["server"]


@pytest.mark.parametrize(
    ("variables", "fault"),
    [
        ({"CONTEXTWRAP_ENDPOINT": "https://context.invalid"}, "CONTEXTWRAP_ENDPOINT"),
        ({"CONTEXT_TOKEN": TOKEN}, "CONTEXT_TOKEN"),
        ({"CONTEXTWRAP_EXIT_TIMEOUT": "soon"}, "CONTEXTWRAP_EXIT_TIMEOUT"),
        ({"CONTEXTWRAP_DISABLED": "perhaps"}, "CONTEXTWRAP_DISABLED"),
        ({"CONTEXTWRAP_TENANT_ID": "t" * 40}, "CONTEXTWRAP_TENANT_ID"),
        ({"CONTEXTWRAP_ENDPOINT": "ftp://x", "CONTEXT_API_TOKEN": TOKEN}, "CONTEXTWRAP_ENDPOINT"),
        ({"CONTEXTWRAP_ENDPOINT": "http://[", "CONTEXT_API_TOKEN": TOKEN}, "CONTEXTWRAP_ENDPOINT"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_setting_is_named_and_the_rest_is_looked_at(home: Path, variables: dict[str, str], fault: str) -> None:
    """The error is the one recording raises, with the variable at fault; home and outbox are checked all the same."""
    with pytest.raises(ConfigurationError) as raised:
        load({}, environ={"CONTEXTWRAP_HOME": str(home), **variables})
    found = _find(home, **variables)
    assert str(raised.value) in found["settings"].said
    assert found["settings"].said.endswith(f"[{fault}]")
    assert found["settings"].status == "fail"
    assert {"home folder", "outbox"} <= found.keys()


def test_where_each_setting_came_from(home: Path) -> None:
    """A row says whether an option, which variable or nobody set it; a token is never shown."""
    environ = {
        "CONTEXT_TOKEN": TOKEN,
        "CONTEXTWRAP_TENANT_ID": "other",
        "CONTEXTWRAP_ENDPOINT": "http://u:pw@localhost:9",
    }
    checks = list(diagnose({"home": home, "tenant_id": "acme"}, environ=environ, send=False))
    found = {check.name: check.said for check in reversed(checks)}
    assert found["home"] == f"{home} (option)"
    assert found["tenant_id"] == "acme (option)"
    assert found["token"] == "set, not shown (CONTEXT_TOKEN)"
    assert found["exit_timeout"] == "2.0 (default)"
    assert found["endpoint"] == "http://localhost:9 (CONTEXTWRAP_ENDPOINT)"
    assert "pw" not in to_json(checks)


def test_names_that_are_no_settings(home: Path) -> None:
    """Another product's variable is mentioned without its value, and a misspelt one of ours is a warning."""
    found = _find(home, CONTEXT_API_KEY="a-secret", CONTEXTWRAP_ENDPIONT="https://x.invalid")
    assert found["CONTEXT_API_KEY"].status == "ok"
    assert "a-secret" not in to_json(list(found.values()))
    assert found["CONTEXTWRAP_ENDPIONT"].status == "warn"


def test_the_old_host_is_somebody_elses(home: Path) -> None:
    """An endpoint on the old host is a warning, said before anything is sent there."""
    environ = {
        "CONTEXTWRAP_HOME": str(home),
        "CONTEXTWRAP_DISABLED": "1",
        "CONTEXTWRAP_ENDPOINT": "https://api.context.ai",
    }
    checks = list(diagnose({}, environ=environ))
    assert [check.status for check in checks if "another company" in check.said] == ["warn"]
    assert checks[-1].name == "recording"


@pytest.mark.parametrize("inside", ["", "outbox"])
def test_a_home_that_cannot_be_written(tmp_path: Path, inside: str) -> None:
    """A home or an outbox that is no folder fails, with what to do."""
    home = tmp_path / "home"
    (home / inside).parent.mkdir(exist_ok=True)
    (home / inside).write_text("I am a file")
    found = _find(home)
    assert found["home folder"].status == "fail"
    assert "CONTEXTWRAP_HOME" in found["home folder"].todo


@pytest.mark.parametrize("mode", [0o500, 0o000], ids=oct)
def test_a_folder_of_somebody_elses(mode: int) -> None:
    """Who may not write a home, or not even look into it, is told so, and nothing is raised."""
    code = """
        import os, sys
        from pathlib import Path
        import packaging.specifiers
        from contextwrap.doctor import machine, waiting
        if os.getuid() == 0:
            os.setuid(65534)
        home = Path(sys.argv[1])
        for check in (machine.home_folder(home), *waiting.outboxes(home, address=None)):
            print(check.name, check.status)
    """
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        home = Path(folder, "home")
        (home / "outbox").mkdir(parents=True)
        (home / "outbox").chmod(0o500)
        home.chmod(mode)
        said = run(code, home).splitlines()
        home.chmod(0o700)
    assert said[0] == "home folder fail"
    assert len(said) > 1


def test_what_waits_is_counted_by_address(home: Path) -> None:
    """Pending and dead parcels are told apart by address, which is shown without the token's fingerprint."""
    outbox = Outbox.create(home / "outbox")
    with closing(outbox):
        outbox.put([_parcel("a", created_at=time.time() - 300), _parcel("b"), _parcel("c", address="https://x#f00d")])
        dead = [parcel for parcel in outbox.lease(LOCAL) if parcel.key == "b"]
        outbox.bury(dead[0].seq, reason="HTTP 400:\n\x1b[31m" + "long " * 200)
        found = _find(home)
    assert found["outbox"].said == "files of living processes: 1, of dead ones: 0"
    assert "dead letters: 1, the newest for: HTTP 400:" in found["outbox to local"].said
    assert len(found["outbox to local"].said) < 300
    assert "\n" not in found["outbox to local"].said
    assert "\x1b" not in found["outbox to local"].said
    assert "not the one set now" in found["outbox to https://x"].said
    assert "f00d" not in to_json(list(found.values()))


def test_records_of_another_token_have_to_be_fetched(home: Path) -> None:
    """What waits for the same endpoint under a former token is a warning that says so."""
    with ContextWrap(endpoint="http://127.0.0.1:9", token="of-before", home=home, exit_timeout=0) as client:
        client.record(TALK)
        found = _find(home, send=False, timeout=1, **_at("http://127.0.0.1:9"))
    assert "with another token" in found["outbox to http://127.0.0.1:9"].said


def test_the_outbox_is_left_as_it_was(home: Path, tmp_path: Path) -> None:
    """With a server at hand, what a living or a killed process left waiting is not delivered, leased or adopted."""
    script = """
        import sys
        from contextwrap.client import ContextWrap
        from contextwrap.model import Conversation, Message
        client = ContextWrap(endpoint=sys.argv[2], token=sys.argv[3], home=sys.argv[1], exit_timeout=0)
        client.record(Conversation(messages=(Message(role="user", message="Hello"),)))
        print("ready", flush=True)
        sys.stdin.read()
    """
    with served(tmp_path / "server") as server:
        token = server.key()
        address = load({"endpoint": server.url, "token": token, "home": home}).address
        # Recorded where nobody answers, under the address that does.
        killed(script, home, f"http://127.0.0.1:{free_port()}", token)
        with closing(Outbox.create(home / "outbox")) as living:
            living.put([_parcel("waiting", address=address)])
            before = _files(home / "outbox")
            found = _find(home, **_at(server.url, token))
            assert _files(home / "outbox") == before
            assert [lives(path) for path in outbox_files(home / "outbox")].count(True) == 1
            assert [parcel.key for parcel in living.lease(address)] == ["waiting"]
        server.settle()
        assert [item.user_id for item in server.house.store.export(tenant_id="")] == ["contextwrap-doctor"]
    assert found["outbox"].said == "files of living processes: 1, of dead ones: 1"


def test_a_file_closed_well_is_read_without_a_trace(home: Path) -> None:
    """Reading a file that nobody has open adds nothing beside it, as on a disk that cannot be written."""
    outbox = Outbox.create(home / "outbox")
    outbox.put([_parcel("a")])
    outbox.close()
    before = sorted(path.name for path in (home / "outbox").iterdir())
    assert waiting(outbox.path)[0].pending == 1
    assert sorted(path.name for path in (home / "outbox").iterdir()) == before


def test_a_file_that_is_no_outbox_is_a_warning(home: Path) -> None:
    """A broken file is named, and the others are counted all the same."""
    with closing(Outbox.create(home / "outbox")) as outbox:
        outbox.put([_parcel("a")])
        (home / "outbox" / "1-broken.sqlite").write_bytes(b"no database " * 100)
        found = _find(home)
    assert "1-broken.sqlite" in found["outbox"].todo
    assert found["outbox to local"].said.startswith("waiting: 1")


def test_dead_letters_of_a_servers_journal(home: Path) -> None:
    """What a server could never store is told as well."""
    (home / "server").mkdir(parents=True)
    with closing(Outbox(home / "server" / "journal.sqlite")) as journal:
        journal.put([_parcel("a")])
        journal.bury(journal.lease(LOCAL)[0].seq, reason="not of the API's form")
    assert "not of the API's form" in _find(home)["server's journal"].said


@pytest.mark.parametrize(
    ("installed", "requirements", "expected"),
    [
        ({"wrapt": "1.17"}, ["wrapt>=1.17"], {"wrapt": "ok"}),
        ({"wrapt": "1.16"}, ["wrapt>=1.17"], {"wrapt": "warn"}),
        ({}, ["wrapt>=1.17"], {"wrapt": "fail"}),
        ({"duckdb": "2.1"}, ["duckdb<2.1,>=1.5; extra == 'server'"], {"duckdb": "warn"}),
        ({"langgraph": "1.0.0rc1"}, ["langgraph>=1.0.0rc1; extra == 'dev'"], {"langgraph": "ok"}),
        ({}, ["duckdb<2.1,>=1.5; extra == 'server'"], {}),
        ({"langchain": "0.1"}, [], {"langchain": "ok"}),
    ],
)
def test_versions_are_held_to_the_metadata(installed: dict, requirements: list[str], expected: dict[str, str]) -> None:
    """Outside the bounds is a warning, missing a failure unless only an extra needs it."""
    assert {check.name: check.status for check in versions(installed, requirements)} == expected


def test_a_python_that_is_too_old() -> None:
    """The interpreter is held to the bound of the package."""
    assert python("3.10.1", ">=3.11").status == "warn"
    assert python("3.13.0", ">=3.11").status == "ok"


def test_the_bounds_are_those_of_the_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The doctor reads what was installed, not a copy of it."""
    about = tmp_path / "contextwrap-9.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: contextwrap\nVersion: 9\nRequires-Dist: wrapt>=99\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = _find(tmp_path, send=False)
    assert found["wrapt"].status == "warn"
    assert ">=99" in found["wrapt"].todo


def test_a_call_that_never_ends_is_given_up() -> None:
    """Also what knows no timeout of its own is left behind."""
    import threading

    ending = threading.Event()
    with pytest.raises(TimeoutError):
        within(0.05, ending.wait)
    ending.set()
    assert within(5, lambda: "done") == "done"


def test_foreign_words_are_one_short_line() -> None:
    """No control character of a server's reaches the terminal."""
    assert one_line("a\n\x1b[2Jb\tc") == "a [2Jb c"
    assert len(one_line("x" * 10_000)) < 300


def test_the_verdict() -> None:
    """One line when there is nothing to do, else each sentence once."""
    assert verdict([Check("a", "ok", "fine")]).strip() == "All is well."
    twice = [Check("a", "fail", "bad", "Mend it."), Check("b", "warn", "bad", "Mend it.")]
    assert verdict(twice).splitlines()[1:] == ["To do:", "- Mend it."]


def test_in_a_pipe_it_is_plain(home: Path) -> None:
    """Piped there is a line a check, without escape codes, and exit code 0."""
    done = _run("--home", str(home))
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "\x1b" not in done.stdout
    assert done.stdout.splitlines()[-1] == "All is well."
    assert f"home                 {home} (option)" in done.stdout


def test_on_a_terminal_it_is_coloured(home: Path) -> None:
    """Somebody who looks sees colours."""
    ours, theirs = pty.openpty()
    environ = os.environ | {"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "100"}
    environ.pop("NO_COLOR", None)
    command = [sys.executable, "-m", "contextwrap", "doctor", "--home", str(home)]
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environ)
    os.close(theirs)
    said = b""
    # Linux ends the reading of a terminal that nobody writes to with an error, macOS with nothing.
    try:
        while part := os.read(ours, 4096):
            said += part
    except OSError:
        assert said
    finally:
        os.close(ours)
    assert process.wait(30) == 0
    assert b"\x1b[" in said
    assert b"All is well." in said


def test_json_and_the_exit_code(home: Path) -> None:
    """--json is one object with the same checks; exit code 1 says that something fails."""
    done = _run("--json", "--home", str(home), CONTEXTWRAP_ENDPOINT="https://context.invalid")
    assert done.returncode == 1
    said = json.loads(done.stdout)
    assert said["ok"] is False
    assert len(said["todo"]) >= 1
    assert {"name", "status", "said", "todo"} == set(said["checks"][0])


@pytest.mark.parametrize("options", [[], ["--json"]], ids=["lines", "json"])
def test_the_token_is_never_printed(home: Path, options: list[str]) -> None:
    """Not even when the server quotes it, in its answer and in the reason of a dead letter."""
    quoting = Answer(status=401, body=json.dumps({"error": {"code": "x", "message": f"{TOKEN} is bad"}}).encode())
    with closing(Outbox.create(home / "outbox")) as outbox, _reading(always=quoting) as server:
        outbox.put([_parcel("a")])
        outbox.bury(outbox.lease(LOCAL)[0].seq, reason=f"HTTP 401: {TOKEN}")
        done = _run("--home", str(home), *options, **_at(server.url))
    assert done.returncode == 1
    assert "… is bad" in done.stdout
    assert TOKEN not in done.stdout + done.stderr


def test_a_locked_file_does_not_hold_the_doctor_up(home: Path) -> None:
    """A process in the middle of a transaction is read past: the write-ahead log lets readers through."""
    with closing(Outbox.create(home / "outbox")) as outbox:
        outbox.put([_parcel("a")])
        with closing(sqlite3.connect(outbox.path, isolation_level=None)) as writer:
            writer.execute("BEGIN IMMEDIATE")
            assert waiting(outbox.path)[0].pending == 1
            writer.execute("ROLLBACK")
