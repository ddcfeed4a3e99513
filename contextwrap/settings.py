"""Every setting in one table: name, environment variable, type, default, help. Explicit > environment > default.

Only what the SDK needs while it records is here; a server's own choices are options of `contextwrap serve`.
"""

from __future__ import annotations

import hashlib
import os
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


def _sampled_by(text: str) -> str:
    if text not in _SAMPLED_BY:
        raise ValueError(f"say {' or '.join(_SAMPLED_BY)}")
    return text


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
        parse=_sampled_by,
        help="what is sampled: `user` (a thread, where nobody is named) or `thread`",
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
