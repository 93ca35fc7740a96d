"""The page at / in a real browser: Chromium without a window, driven by Playwright.

Playwright's own browsers are not needed: any Chromium on PATH serves (Debian: `apt install chromium-headless-shell`).
"""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from patience import PATIENCE
from playwright.sync_api import Browser, Page, Request, Route, expect, sync_playwright

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
TELL_VIOLATIONS = "addEventListener('securitypolicyviolation', (event) => console.error(`policy: ${event.violatedDirective}`))"

GREEDY = "localStorage['engine.settings'] ??= JSON.stringify({temperature: '0'})"


@contextmanager
def chromium() -> Iterator[Browser]:
    """Skips the test where there is none."""
    path = next(filter(None, map(shutil.which, NAMES)), None)
    if path is None:
        pytest.skip(f"the page is not tested: no Chromium on PATH ({', '.join(NAMES)}); Debian: apt install chromium-headless-shell")
    expect.set_options(timeout=1000 * PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path)
        yield browser
        browser.close()


class Visit:
    """A browser that sees the page for the first time, with what it asked for and what went wrong meanwhile.

    Its settings are greedy, so that the scripted worker says back what it is told. options: of Playwright's new_context,
    as `color_scheme` and `viewport`.
    """

    def __init__(self, browser: Browser, url: str, **options: Any) -> None:
        self.url = url
        self.requests: list[Request] = []
        self.complaints: list[str] = []
        self.context = browser.new_context(reduced_motion=options.pop("reduced_motion", "no-preference"), **options)
        self.context.set_default_timeout(1000 * PATIENCE)
        self.context.add_init_script(f"{TELL_VIOLATIONS}; {GREEDY}")
        self.page = self.open()

    def open(self, path: str = "/") -> Page:
        """Another tab."""
        page = self.context.new_page()
        page.on("request", lambda request: self.requests.append(request))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("console", lambda message: self.complaints.append(message.text))
        page.goto(self.url + path)
        return page

    def check(self) -> None:
        """Nothing was asked of another host, and no policy or script failed. An answer that is an error is a line on the console."""
        foreign = [request.url for request in self.requests if not request.url.startswith((f"{self.url}/", "data:", f"blob:{self.url}/"))]
        assert foreign == []
        assert [text for text in self.complaints if not text.startswith("Failed to load resource")] == []


def answer_with(page: Page, *answers: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Answers the page's next chat requests with these deltas, one list each. The bodies of the requests, as they come."""
    bodies: list[dict[str, Any]] = []
    left = iter(answers)

    def answer(route: Route) -> None:
        bodies.append(json.loads(route.request.post_data or ""))
        chunks: list[dict[str, Any]] = [{"choices": [{"index": 0, "delta": delta}]} for delta in next(left)]
        chunks += [{"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}, {"choices": [], "usage": {"completion_tokens": 7}}]
        events = [f"data: {json.dumps(chunk)}\n\n" for chunk in chunks]
        route.fulfill(content_type="text/event-stream", body="".join([*events, "data: [DONE]\n\n"]))

    page.route("**/v1/chat/completions", answer)
    return bodies


def say(page: Page, text: str) -> None:
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")


def settings(page: Page, **values: str) -> None:
    """Fill in fields of the settings, by their names."""
    page.get_by_role("button", name="Settings").click()
    for name, value in values.items():
        page.locator(f"#settings [name={name}]").fill(value)
    page.get_by_role("button", name="Done").click()
