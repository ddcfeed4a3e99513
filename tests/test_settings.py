"""Settings: explicit before environment before default, and refused when they cannot work."""

from __future__ import annotations

from pathlib import Path

import pytest

from contextwrap.errors import ConfigurationError
from contextwrap.settings import TABLE, Settings, default_home, load

REMOTE = {"endpoint": "https://context.example", "token": "secret-token"}

VARIABLES = [
    ("CONTEXTWRAP_ENDPOINT", "https://other.example", "endpoint", "https://other.example"),
    ("CONTEXT_API_TOKEN", "t1", "token", "t1"),
    ("CONTEXT_TOKEN", "t2", "token", "t2"),
    ("GETCONTEXT_TOKEN", "t3", "token", "t3"),
    ("CONTEXTWRAP_HOME", "~/there", "home", None),
    ("CONTEXTWRAP_TENANT_ID", "acme", "tenant_id", "acme"),
    ("CONTEXTWRAP_DISABLED", "yes", "disabled", True),
    ("CONTEXTWRAP_REDACT", "email,card", "redact", "email,card"),
    ("CONTEXTWRAP_SAMPLE", "0.25", "sample", 0.25),
    ("CONTEXTWRAP_SAMPLE_BY", "thread", "sample_by", "thread"),
    ("CONTEXTWRAP_DURABILITY", "background", "durability", "background"),
    ("CONTEXTWRAP_OUTBOX_LIMIT", "1.5MiB", "outbox_limit", 1_572_864),
    ("CONTEXTWRAP_FLUSH_CALLS", "1", "flush_calls", True),
    ("CONTEXTWRAP_EXIT_TIMEOUT", "7.5", "exit_timeout", 7.5),
    ("CONTEXTWRAP_ALLOW_HTTP", "1", "allow_http", True),
]


def test_defaults_are_local():
    """With nothing said, records stay on this machine, in the platform's folder."""
    settings = load({}, environ={})
    assert settings == Settings(
        endpoint=None,
        token=None,
        home=default_home(),
        tenant_id="",
        disabled=False,
        redact=None,
        sample=1.0,
        sample_by="user",
        durability="call",
        outbox_limit=1024**3,
        flush_calls=False,
        exit_timeout=2.0,
        allow_http=False,
    )
    assert settings.address == "local"


@pytest.mark.parametrize(("variable", "text", "name", "value"), VARIABLES)
def test_each_variable_is_read(variable, text, name, value):
    """Each environment variable of the table sets its setting."""
    base = {key: value for key, value in REMOTE.items() if key != name}
    settings = load(base, environ={variable: text})
    assert getattr(settings, name) == (Path.home() / "there" if value is None else value)


def test_every_variable_is_under_test():
    """The table holds no variable that the test above leaves out."""
    assert {name for setting in TABLE for name in setting.variables} == {variable for variable, *_ in VARIABLES}


@pytest.mark.parametrize(
    ("text", "size"), [("1000", 1000), ("2k", 2048), ("3KiB", 3072), ("500MB", 524_288_000), ("1 GiB", 1024**3)]
)
def test_sizes_have_units(text, size):
    """A size is a number of bytes, or of KiB, MiB or GiB by whichever name."""
    assert load({}, environ={"CONTEXTWRAP_OUTBOX_LIMIT": text}).outbox_limit == size


@pytest.mark.parametrize(
    "wrong", [{"outbox_limit": 0}, {"outbox_limit": "lots"}, {"durability": "maybe"}, {"durability": 1}]
)
def test_wrong_outbox_settings_are_told(wrong):
    """A limit that is none and a durability nobody knows are configuration errors that name the setting."""
    with pytest.raises(ConfigurationError, match=next(iter(wrong))):
        load(wrong, environ={})
    ((name, value),) = wrong.items()
    with pytest.raises(ConfigurationError, match=f"CONTEXTWRAP_{name.upper()}"):
        load({}, environ={f"CONTEXTWRAP_{name.upper()}": str(value)})


@pytest.mark.parametrize("variable", ["AWS_LAMBDA_FUNCTION_NAME", "K_SERVICE", "FUNCTION_TARGET"])
def test_machines_that_freeze_are_known(monkeypatch, variable):
    """Where the process stops between calls, calls deliver before they return, unless told otherwise."""
    monkeypatch.setenv(variable, "f")
    assert load({}, environ={}).flush_calls
    assert not load({"flush_calls": False}, environ={}).flush_calls


def test_explicit_beats_environment_beats_default():
    """What is said in code wins over the environment; None says nothing; an empty variable says nothing."""
    environ = {"CONTEXTWRAP_TENANT_ID": "from-env", "CONTEXTWRAP_EXIT_TIMEOUT": ""}
    assert load({"tenant_id": "said"}, environ=environ).tenant_id == "said"
    assert load({"tenant_id": None}, environ=environ).tenant_id == "from-env"
    assert load({}, environ=environ).exit_timeout == 2.0
    assert load({"disabled": False}, environ={"CONTEXTWRAP_DISABLED": "1"}).disabled is False


def test_the_first_token_variable_wins():
    """Of the names a token may have, the Context API's own comes first."""
    environ = {"GETCONTEXT_TOKEN": "c", "CONTEXT_TOKEN": "b", "CONTEXT_API_TOKEN": "a"}
    assert load({"endpoint": REMOTE["endpoint"]}, environ=environ).token == "a"


def test_the_other_products_variable_is_never_read():
    """CONTEXT_API_KEY belongs to another product: it never becomes our token."""

    class Watched(dict):
        def get(self, key, default=None):
            assert key != "CONTEXT_API_KEY"
            return super().get(key, default)

    assert load({}, environ=Watched(CONTEXT_API_KEY="theirs")).token is None


@pytest.mark.parametrize(
    ("explicit", "reason"),
    [
        ({"token": "t"}, "a token without an endpoint"),
        ({"endpoint": "https://context.example"}, "needs a token"),
        ({"endpoint": "https://context.example", "token": ""}, "needs a token"),
        ({"endpoint": "http://context.example", "token": "t"}, "plain http"),
        ({"endpoint": "ftp://context.example", "token": "t"}, "is not an http"),
        ({"endpoint": "context.example", "token": "t"}, "is not an http"),
        ({"endpoint": "https://", "token": "t"}, "is not an http"),
        ({"endpoint": "http://[::1", "token": "t"}, "is not an http"),
        ({"tenant_id": "x" * 40}, "shorter than 40 characters"),
        ({"sample": 1.5}, "sample=1.5: say a share"),
        ({"sample": "0.5"}, "sample='0.5': say a share"),
        ({"sample": float("nan")}, "sample=nan: say a share"),
        ({"sample_by": "tenant"}, "sample_by='tenant': say user or thread"),
    ],
)
def test_settings_that_cannot_work_are_refused(explicit, reason):
    """A setting that cannot work is refused in one line that says what to do."""
    with pytest.raises(ConfigurationError, match=reason) as refusal:
        load(explicit, environ={})
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("variable", "text"),
    [
        ("CONTEXTWRAP_DISABLED", "perhaps"),
        ("CONTEXTWRAP_ALLOW_HTTP", "2"),
        ("CONTEXTWRAP_EXIT_TIMEOUT", "soon"),
        ("CONTEXTWRAP_EXIT_TIMEOUT", "-1"),
        ("CONTEXTWRAP_EXIT_TIMEOUT", "nan"),
        ("CONTEXTWRAP_EXIT_TIMEOUT", "inf"),
        ("CONTEXTWRAP_SAMPLE", "most"),
        ("CONTEXTWRAP_SAMPLE", "1.01"),
        ("CONTEXTWRAP_SAMPLE", "-0.1"),
        ("CONTEXTWRAP_SAMPLE", "nan"),
        ("CONTEXTWRAP_SAMPLE_BY", "tenant"),
    ],
)
def test_a_bad_variable_is_named(variable, text):
    """A variable that cannot be read is refused by its name."""
    with pytest.raises(ConfigurationError, match=variable):
        load({}, environ={variable: text})


@pytest.mark.parametrize("endpoint", ["http://127.0.0.1:8000", "http://localhost:8000", "http://[::1]:8000"])
def test_plain_http_goes_to_this_machine(endpoint):
    """Plain http is fine as far as this machine."""
    assert load({"endpoint": endpoint, "token": "t"}, environ={}).endpoint == endpoint


def test_plain_http_elsewhere_when_allowed():
    """Plain http leaves this machine only when that was asked for."""
    settings = load({"endpoint": "http://context.example", "token": "t", "allow_http": True}, environ={})
    assert settings.endpoint == "http://context.example"


def test_disabled_asks_for_nothing():
    """Who records nothing needs no endpoint that works."""
    assert load({"disabled": True, "token": "t"}, environ={}).disabled


def test_the_token_is_never_shown():
    """Neither repr nor address nor any refusal holds the token; the address tells tokens apart."""
    settings = load(REMOTE, environ={})
    other = load(REMOTE | {"token": "another"}, environ={})
    assert "secret-token" not in repr(settings)
    assert "https://context.example" in repr(settings)
    assert "secret-token" not in settings.address
    assert settings.address.startswith("https://context.example#")
    assert settings.address != other.address
    with pytest.raises(ConfigurationError) as refusal:
        load({"token": "secret-token", "endpoint": "nowhere"}, environ={})
    assert "secret-token" not in str(refusal.value)


def test_a_final_slash_is_the_same_address():
    """The endpoint with and without a final slash is one server: what waits for it is carried."""
    assert load(REMOTE, environ={}).address == load(REMOTE | {"endpoint": REMOTE["endpoint"] + "/"}, environ={}).address
