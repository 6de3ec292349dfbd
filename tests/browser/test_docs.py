"""The page at ``/docs`` in a browser: it asks nobody else, is searched and read by keyboard, and axe finds nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.support import Command


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    data_dir: Path = tmp_path_factory.mktemp("docs") / "data"
    with Command(data_dir) as command:
        yield command.url()


@pytest.fixture(params=["light", "dark"])
def page(request: pytest.FixtureRequest, browser: Browser, url: str) -> Iterator[Page]:
    scheme: Literal["light", "dark"] = request.param
    page = browser.new_page(color_scheme=scheme, viewport={"width": 1100, "height": 900})
    said: list[str] = []
    asked: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda fault: said.append(str(fault)))
    page.on("request", lambda request: asked.append(request.url))
    page.goto(f"{url}/docs")
    yield page
    page.close()
    assert said == []
    assert {each.partition("#")[0] for each in asked} <= {f"{url}/docs", f"{url}/favicon.ico"}


def test_it_is_searched_and_read_by_keyboard(page: Page, url: str) -> None:
    expect(page.locator("#url")).to_have_text(f"URL={url}")
    chat, keys = page.locator("#post_v1_chat_completions"), page.locator("#post_api_keys")
    page.keyboard.press("/")
    page.keyboard.type("POST chat")
    expect(chat).to_be_visible()
    expect(keys).to_be_hidden()
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(chat.get_by_text('curl "$URL/v1/chat/completions"')).to_be_visible()
    chat.get_by_role("link", name="ChatBody").click()
    expect(page.locator("#ChatBody").get_by_text("messages", exact=True)).to_be_visible()
    expect(page.get_by_role("searchbox")).to_have_value("")
    page.keyboard.press("/")
    page.keyboard.type("nothing is named so")
    expect(page.get_by_role("status")).to_have_text("0 found")
    page.keyboard.press("Escape")
    expect(keys).to_be_visible()


def test_axe_finds_nothing_serious_and_a_narrow_window_shows_all(page: Page) -> None:
    page.evaluate("document.querySelectorAll('details').forEach((each, at) => each.open = at % 8 == 0)")
    found = Axe().run(page).response
    assert "color-contrast" in {rule["id"] for rule in found["passes"]}, "it saw nothing"
    serious = {rule["id"]: rule["nodes"] for rule in found["violations"] if rule["impact"] in ("serious", "critical")}
    assert serious == {}
    page.set_viewport_size({"width": 360, "height": 700})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
