"""A headless Chromium for tests of pages: the system's own, driven by Playwright. Tests that need one are skipped where
there is none, and say so.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
FLAGS = ["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]  # of containers: root, little shared memory


def chromium() -> str:
    """The path of the system's Chromium; the test is skipped where there is none, or no Playwright."""
    pytest.importorskip("playwright", reason="no Playwright: pip install playwright")
    found = next((path for path in map(shutil.which, NAMES) if path), None)
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium")
    return found


@contextmanager
def browsing() -> Iterator[Any]:
    """A Playwright browser, closed afterwards."""
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        try:
            yield browser
        finally:
            browser.close()


class Page:
    """A page that was opened, with what it complained of: console errors, exceptions, requests that failed."""

    def __init__(self, browser: Any, url: str, width: int = 1400, dark: bool = False) -> None:
        self.complaints: list[str] = []
        self.context = browser.new_context(
            viewport={"width": width, "height": 900}, color_scheme="dark" if dark else "light", accept_downloads=True
        )
        self.page = self.context.new_page()
        self.page.on("console", lambda said: self.complaints.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("requestfailed", lambda asked: self.complaints.append(f"failed: {asked.url[:100]}"))
        self.page.goto(url)

    def broken(self) -> list[str]:
        """Pictures that did not load, after all of them have been asked for."""
        found: list[str] = self.page.evaluate(
            """async () => {
                const all = [...document.images];
                all.forEach(img => { img.loading = "eager"; });
                await Promise.all(all.map(img => img.complete ? 0 : new Promise(done => {
                    img.onload = img.onerror = done; setTimeout(done, 5000);
                })));
                return all.filter(img => !img.naturalWidth).map(img => img.alt || img.src.slice(0, 80));
            }"""
        )
        return found

    def overflows(self) -> bool:
        """Whether the page is wider than its window."""
        wide: bool = self.page.evaluate("document.documentElement.scrollWidth > window.innerWidth + 1")
        return wide

    def close(self) -> None:
        self.context.close()
