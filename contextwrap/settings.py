"""Every setting in one table: name, environment variable, type, default, help. Explicit > environment > default.

Only what the SDK needs while it records is here; a server's own choices are options of `contextwrap serve`.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal
from urllib.parse import urlsplit

from contextwrap.errors import ConfigurationError
from contextwrap.model import MAX_TENANT

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

LOCAL: Final = "local"
LOOPBACK: Final = frozenset({"127.0.0.1", "::1", "localhost"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """One row of the table; `default` makes the value, `parse` reads it from text."""

    name: str
    variables: tuple[str, ...]
    default: Callable[[], Any]
    parse: Callable[[str], Any]
    help: str


def default_home() -> Path:
    """Where records are kept when nothing else is said: the platform's folder for a user's data."""
    if "AWS_LAMBDA_FUNCTION_NAME" in os.environ:
        # The one folder there that can be written.
        return Path("/tmp/contextwrap")  # noqa: S108  each function has a machine of its own
    import platformdirs  # noqa: PLC0415  a third of the import budget, needed once

    return Path(platformdirs.user_data_dir("contextwrap"))


def _flag(text: str) -> bool:
    lowered = text.strip().lower()
    if lowered in {"1", "true", "yes", "on"}:
        return True
    if lowered in {"", "0", "false", "no", "off"}:
        return False
    raise ValueError("say 1 or 0")


def _seconds(text: str) -> float:
    seconds = float(text)
    if not 0 <= seconds < float("inf"):
        raise ValueError("say a number of seconds, 0 or more")
    return seconds


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise ValueError(_A_SHARE)
    return share


def _bytes(text: str) -> int:
    found = _SIZE.fullmatch(text.strip())
    size = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if size <= 0:
        raise ValueError(_A_SIZE)
    return size


def _word_of(*words: str) -> Callable[[str], str]:
    def parse(text: str) -> str:
        if text not in words:
            raise ValueError(f"say {' or '.join(words)}")
        return text

    return parse


def _freezes() -> bool:
    return any(name in os.environ for name in _FREEZING)


# AWS Lambda stops the process between two calls; Google Cloud Functions and Cloud Run take its CPU away.
# https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html
# https://cloud.google.com/run/docs/container-contract#env-vars
_FREEZING: Final = ("AWS_LAMBDA_FUNCTION_NAME", "K_SERVICE", "FUNCTION_TARGET")
_UNITS: Final = {"": 1, "K": 1024, "M": 1024**2, "G": 1024**3}
_SIZE: Final = re.compile(r"(\d+(?:\.\d+)?) ?([kKMG]?)(?:i?B)?")
_A_SIZE: Final = "say a number of bytes such as 500MiB"
_DURABILITIES: Final = ("call", "background")
_A_SHARE: Final = "say a share from 0 to 1"
_SAMPLED_BY: Final = ("user", "thread")

TABLE: Final = (
    Setting(
        name="endpoint",
        variables=("CONTEXTWRAP_ENDPOINT",),
        default=lambda: None,
        parse=str,
        help="URL of a server that speaks the Context API; without one, records stay in this home (local mode)",
    ),
    Setting(
        name="token",
        # Not CONTEXT_API_KEY: that name belongs to another company's product on the old host.
        variables=("CONTEXT_API_TOKEN", "CONTEXT_TOKEN", "GETCONTEXT_TOKEN"),
        default=lambda: None,
        parse=str,
        help="bearer token for the endpoint; make one with `contextwrap keys create --scope ingest`",
    ),
    Setting(
        name="home",
        variables=("CONTEXTWRAP_HOME",),
        default=default_home,
        parse=lambda text: Path(text).expanduser(),
        help="folder of the outbox and, for `contextwrap serve`, of everything it keeps",
    ),
    Setting(
        name="tenant_id",
        variables=("CONTEXTWRAP_TENANT_ID",),
        default=lambda: "",
        parse=str,
        help="which tenant's conversations these are; shorter than 40 characters",
    ),
    Setting(
        name="disabled",
        variables=("CONTEXTWRAP_DISABLED",),
        default=lambda: False,
        parse=_flag,
        help="1 records nothing and starts nothing",
    ),
    Setting(
        name="redact",
        variables=("CONTEXTWRAP_REDACT",),
        default=lambda: None,
        parse=str,
        help="what is masked before it is written: names of rules (`email,card`), `all`, or in code a callable",
    ),
    Setting(
        name="sample",
        variables=("CONTEXTWRAP_SAMPLE",),
        default=lambda: 1.0,
        parse=_share,
        help="which share of users or threads is recorded, 0 to 1; the same ones in every process",
    ),
    Setting(
        name="sample_by",
        variables=("CONTEXTWRAP_SAMPLE_BY",),
        default=lambda: "user",
        parse=_word_of(*_SAMPLED_BY),
        help="what is sampled: `user` (a thread, where nobody is named) or `thread`",
    ),
    Setting(
        name="durability",
        variables=("CONTEXTWRAP_DURABILITY",),
        default=lambda: "call",
        parse=_word_of(*_DURABILITIES),
        help="`call`: on disk before your call returns; `background`: within 5 ms of it",
    ),
    Setting(
        name="outbox_limit",
        variables=("CONTEXTWRAP_OUTBOX_LIMIT",),
        default=lambda: 1024**3,
        parse=_bytes,
        help="bytes one process's outbox may hold (`500MiB`); then the newest is refused, and counted",
    ),
    Setting(
        name="flush_calls",
        variables=("CONTEXTWRAP_FLUSH_CALLS",),
        default=_freezes,
        parse=_flag,
        help="1 delivers before a recorded call returns, for machines that stop between calls",
    ),
    Setting(
        name="exit_timeout",
        variables=("CONTEXTWRAP_EXIT_TIMEOUT",),
        default=lambda: 2.0,
        parse=_seconds,
        help="seconds that interpreter exit may wait for delivery; the rest stays on disk and goes next time",
    ),
    Setting(
        name="allow_http",
        variables=("CONTEXTWRAP_ALLOW_HTTP",),
        default=lambda: False,
        parse=_flag,
        help="1 sends the token over plain http also to hosts other than this machine",
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The table's values, checked: an endpoint always comes with a token and a scheme that may carry it."""

    endpoint: str | None
    token: str | None
    home: Path
    tenant_id: str
    disabled: bool
    redact: Any
    sample: float
    sample_by: Literal["user", "thread"]
    durability: Literal["call", "background"]
    outbox_limit: int
    flush_calls: bool
    exit_timeout: float
    allow_http: bool

    @property
    def address(self) -> str:
        """Where parcels go: "local", or the endpoint with a fingerprint of the token (never the token)."""
        if self.endpoint is None or self.token is None:
            return LOCAL
        return f"{self.endpoint.rstrip('/')}#{hashlib.sha256(self.token.encode()).hexdigest()[:16]}"

    def __repr__(self) -> str:
        """The settings without the token."""
        shown = {item.name: getattr(self, item.name) for item in fields(self)}
        shown["token"] = None if self.token is None else "…"
        return f"Settings({', '.join(f'{name}={value!r}' for name, value in shown.items())})"


def load(explicit: Mapping[str, Any], *, environ: Mapping[str, str] = os.environ) -> Settings:
    """The settings from `explicit` values (None counts as unsaid), then the environment, then the defaults.

    Raises ConfigurationError, in one line that says what to do, for a value that cannot be used.
    """
    values: dict[str, Any] = {}
    for setting in TABLE:
        value = explicit.get(setting.name)
        if value is None:
            value = _from_environment(setting, environ)
        values[setting.name] = setting.default() if value is None else value
    settings = Settings(**values | {"home": Path(values["home"]).expanduser()})
    _check(settings)
    return settings


def _from_environment(setting: Setting, environ: Mapping[str, str]) -> Any:
    for variable in setting.variables:
        text = environ.get(variable)
        if text:
            try:
                return setting.parse(text)
            except ValueError as error:
                raise ConfigurationError(f"{variable}={text!r}: {error}") from None
    return None


def _check(settings: Settings) -> None:
    if len(settings.tenant_id) >= MAX_TENANT:
        raise ConfigurationError(f"tenant_id must be shorter than {MAX_TENANT} characters")
    sample: Any = settings.sample
    if not isinstance(sample, (int, float)) or not 0 <= sample <= 1:
        raise ConfigurationError(f"sample={sample!r}: {_A_SHARE}")
    if settings.sample_by not in _SAMPLED_BY:
        raise ConfigurationError(f"sample_by={settings.sample_by!r}: say {' or '.join(_SAMPLED_BY)}")
    if settings.durability not in _DURABILITIES:
        raise ConfigurationError(f"durability={settings.durability!r}: say {' or '.join(_DURABILITIES)}")
    limit: Any = settings.outbox_limit
    if not isinstance(limit, int) or limit <= 0:
        raise ConfigurationError(f"outbox_limit={limit!r}: say a number of bytes")
    if not settings.disabled:
        _check_endpoint(settings)


def _check_endpoint(settings: Settings) -> None:
    if settings.endpoint is None:
        if settings.token is not None:
            raise ConfigurationError(
                "a token without an endpoint: the hosted service is gone, so there is no default endpoint. "
                "Set endpoint= or CONTEXTWRAP_ENDPOINT to your server, or unset the token to record locally"
            )
        return
    if not settings.token:
        raise ConfigurationError(
            f"endpoint {settings.endpoint} needs a token: set CONTEXT_API_TOKEN or token=; "
            "on the server, `contextwrap keys create --scope ingest` prints one"
        )
    try:
        parts = urlsplit(settings.endpoint)
        host = parts.hostname
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in {"http", "https"} or not host:
        raise ConfigurationError(
            f"endpoint {settings.endpoint!r} is not an http(s) URL such as https://context.example"
        )
    if parts.scheme == "http" and host not in LOOPBACK and not settings.allow_http:
        raise ConfigurationError(
            f"endpoint {settings.endpoint} would send the token over plain http: use https, or set allow_http"
        )
