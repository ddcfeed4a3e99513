"""A real browser for the tests of the pages, and what must never happen while it looks at one."""

from __future__ import annotations

import os
import shutil
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from playwright.sync_api import sync_playwright

if TYPE_CHECKING:
    from collections.abc import Iterator

    from playwright.sync_api import Browser, BrowserContext, Page

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_ARGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-default-apps",
    "--disable-sync",
    "--no-first-run",
    "--no-default-browser-check",
)
_WATCH = "addEventListener('securitypolicyviolation', e => console.error('CSP', e.violatedDirective, e.blockedURI))"


def executable() -> str | None:
    """The Chromium to use: $CHROMIUM, else one on the PATH, else None for playwright's own."""
    return os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)


@contextmanager
def launched() -> Iterator[Browser]:
    """A headless Chromium that talks to nobody by itself."""
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=list(_ARGS))
        yield browser
        browser.close()


@dataclass(frozen=True, kw_only=True)
class Look:
    """How a page is looked at."""

    width: int = 1440
    theme: str = "light"
    script: bool = True

    def __str__(self) -> str:
        return f"{self.width}-{self.theme}"


LOOKS = tuple(Look(width=width, theme=theme) for width in (1440, 390) for theme in ("light", "dark"))


@dataclass
class Visit:
    """A browser's tab at one host, and all that went wrong in it."""

    page: Page
    context: BrowserContext
    host: str
    wrong: list[str] = field(default_factory=list)

    def sideways(self) -> int:
        """How many pixels the page can be scrolled sideways; 0 is right."""
        width: int = self.page.evaluate("document.scrollingElement.scrollWidth - innerWidth")
        return max(0, width)


@contextmanager
def visiting(browser: Browser, url: str, look: Look = Look()) -> Iterator[Visit]:
    """Open `url` (a sign-in link, say); `wrong` collects errors, CSP violations, dialogs, requests to others."""
    context = browser.new_context(
        viewport={"width": look.width, "height": 900},
        color_scheme=look.theme,
        reduced_motion="reduce",
        java_script_enabled=look.script,
    )
    context.set_default_timeout(20_000)
    context.add_init_script(_WATCH)
    page = context.new_page()
    visit = Visit(page=page, context=context, host=urlsplit(url).netloc)
    page.on("console", lambda said: said.type in {"error", "warning"} and visit.wrong.append(f"console: {said.text}"))
    page.on("pageerror", lambda error: visit.wrong.append(f"script: {error}"))
    page.on("dialog", lambda dialog: (visit.wrong.append(f"dialog: {dialog.message}"), dialog.dismiss()))
    page.on("request", lambda asked: _check(visit, asked.url))
    page.goto(url)
    yield visit
    context.close()


def _check(visit: Visit, url: str) -> None:
    parts = urlsplit(url)
    if parts.netloc != visit.host and parts.scheme != "data":
        visit.wrong.append(f"elsewhere: {url}")
