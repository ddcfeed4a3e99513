"""ContextCallbackHandler: what `wrap` puts into LangChain's objects, and what users pass as a callback.

All of them mean one shared instance; what carries it is recorded, with the whole root run around it.
"""

from __future__ import annotations

import threading
import weakref
from typing import TYPE_CHECKING, Any, Self, TypeVar, cast

from contextwrap.client import ContextWrap, configure, default_client, is_configured
from contextwrap.recorder import Recorder, hook
from contextwrap.settings import load

if TYPE_CHECKING:
    from pathlib import Path

    from contextwrap.guard import Guard

Handler = TypeVar("Handler", bound="ContextCallbackHandler")


class ContextCallbackHandler(Recorder):
    """LangChain's callback handler for contextwrap.

    Without arguments it is the one shared handler, and every such call answers the same instance. With a
    token or endpoint it configures the default client, if nothing has yet, or else has a client of its own.
    `verbose` is accepted for the old class's sake. Raises ConfigurationError for settings that cannot work.
    """

    def __new__(
        cls,
        token: str | None = None,
        verbose: bool = False,  # noqa: FBT001, FBT002  the old class's own signature
        *,
        endpoint: str | None = None,
        home: str | Path | None = None,
    ) -> Self:
        """The shared handler, or one for other settings."""
        if token is None and endpoint is None and home is None:
            return _shared_for(cls)
        if not is_configured():
            configure(token=token, endpoint=endpoint, home=home)
            return _shared_for(cls)
        settings = load({"token": token, "endpoint": endpoint, "home": home})
        if settings == default_client().settings:
            return _shared_for(cls)
        with _making:
            # Apps make one a request: as long as one of them lives, the next has the same client.
            client = next((one for one in _clients if one.settings == settings and not one.closed), None)
            if client is None:
                client = ContextWrap(token=token, endpoint=endpoint, home=home)
                _clients.add(client)
        return _make(cls, client)

    def __init__(
        self,
        token: str | None = None,
        verbose: bool = False,  # noqa: FBT001, FBT002  the old class's own signature
        *,
        endpoint: str | None = None,
        home: str | Path | None = None,
    ) -> None:
        """All is done in `__new__`: the shared handler must not begin anew."""

    @property
    def client(self) -> ContextWrap:
        """Where the turns go: this handler's own client, or the default one as it is now."""
        return self.wants[0] or default_client()

    @property
    def guard(self) -> Guard:
        """What keeps our failures from the host."""
        return self.client.guard

    def __reduce__(self) -> tuple[type[Self], tuple[()]]:
        return (type(self), ())


def shared_handler() -> ContextCallbackHandler:
    """The one handler that everything wrapped shares."""
    return _shared_for(ContextCallbackHandler)


def _make(cls: type[Handler], client: ContextWrap | None) -> Handler:
    handler = object.__new__(cls)
    handler.wants = (client,)
    hook.listening = True
    hook.apart = hook.apart or client is not None
    return handler


def _shared_for(cls: type[Handler]) -> Handler:
    handler = _shared.get(cls)
    if handler is None:
        with _making:
            handler = _shared.get(cls) or _shared.setdefault(cls, _make(cls, None))
    return cast("Handler", handler)


_making = threading.Lock()
_shared: dict[type[Any], Any] = {}
_clients: weakref.WeakSet[ContextWrap] = weakref.WeakSet()
