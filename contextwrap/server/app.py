"""The server's parts, put together; nothing is done here."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from fastapi import FastAPI
from starlette.templating import Jinja2Templates

from contextwrap import __version__
from contextwrap.server import api, auth, batches, pages, refusals, series
from contextwrap.server.limits import SafeHeaders
from contextwrap.server.render import mount_static

if TYPE_CHECKING:
    from starlette.types import ASGIApp

    from contextwrap.server.house import House

TEMPLATES: Final = Path(__file__).parent / "templates"


def create_app(house: House) -> ASGIApp:
    """The Context API and the dashboard on one home."""
    app = FastAPI(
        title="contextwrap",
        version=__version__,
        openapi_url="/api/v1/openapi.json",
        # The pages that show it load scripts from elsewhere.
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.house = house
    app.state.templates = Jinja2Templates(TEMPLATES)
    app.state.throttle = auth.Throttle()
    refusals.install(app)
    # Before the conversations, whose ids may be anything.
    app.include_router(series.router)
    app.include_router(api.router)
    app.include_router(batches.router)
    app.include_router(auth.router)
    app.include_router(pages.router)
    mount_static(app)
    # Outside of everything, so that also what answers a failure gets the headers.
    return SafeHeaders(app, hosts=house.hosts)
