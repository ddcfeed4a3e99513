"""Templates to responses, and the files they link to. Knows nothing of what a page shows."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from starlette.staticfiles import StaticFiles

if TYPE_CHECKING:
    from fastapi import FastAPI
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.templating import Jinja2Templates

STATIC: Final = Path(__file__).parent / "static"


def mount_static(app: FastAPI) -> None:
    """Serve the stylesheet and the icon under /static."""
    app.mount("/static", StaticFiles(directory=STATIC), name="static")


def html(request: Request, template: str, *, status: int = 200, **context: Any) -> Response:
    """The template as a page that no cache keeps: transcripts are personal."""
    templates: Jinja2Templates = request.app.state.templates
    return templates.TemplateResponse(
        request, template, {"asset": _asset, **context}, status_code=status, headers={"Cache-Control": "no-store"}
    )


def error_page(request: Request, *, status: int, title: str, text: str, **context: Any) -> Response:
    """What went wrong, in words, and a way out of it; with a `reader` also the navigation."""
    return html(request, "error.html", status=status, code=status, title=title, text=text, **context)


@cache
def _asset(name: str) -> str:
    """A static file's URL, another one whenever its content is, so that a new release is never shown in old style."""
    digest = hashlib.sha256((STATIC / name).read_bytes()).hexdigest()[:12]
    return f"/static/{name}?v={digest}"
