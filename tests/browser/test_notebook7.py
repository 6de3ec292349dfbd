"""Notebook 7: the panel there, and what of the sidebar there is a place for."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from tests.browser.conftest import built_extension, eventually, run_at_last
from tests.browser.test_lab import curves
from tests.browser.test_sidebar import run, sidebar
from tests.support import JupyterServer

_CELLS = ["%load_ext jupyter_dsserve\n%dsserve load demo --model toy:step_s=0.002", "%dsserve panel demo"]


@pytest.fixture(scope="module")
def page(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A notebook of two cells, with its kernel running."""
    home = tmp_path_factory.mktemp("home")
    cells = [
        {"id": f"c{i}", "cell_type": "code", "source": source, "metadata": {}, "outputs": [], "execution_count": None}
        for i, source in enumerate(_CELLS)
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    written = {"cells": cells, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    (home / "two.ipynb").write_text(json.dumps(written))
    app = "--JupyterNotebookApp"
    options = (f"{app}.expose_app_in_browser=True", f"{app}.extra_labextensions_path={built_extension(home)}")
    with JupyterServer(home, *options, base_url="/user/a%40b/", program="notebook") as server:
        page = browser.new_page(viewport={"width": 1360, "height": 1000})
        page.set_default_timeout(30_000)
        page.goto(f"{server.url}/notebooks/two.ipynb?token={server.token}", timeout=60_000)
        page.locator(".jp-CodeCell .cm-content").nth(1).wait_for(timeout=60_000)
        yield page
        page.close()


def test_the_panel_shows_its_rows_and_its_plots(page: Page) -> None:
    for cell in page.locator(".jp-CodeCell").all():
        run_at_last(page, cell)
    panel = page.locator(".dsserve-panel")
    panel.get_by_text("READY").first.wait_for(timeout=90_000)
    eventually(lambda: curves(page), lambda p: p and len(p[0].get("v1 p95", {"x": []})["x"]) >= 2)


def test_the_sidebar_is_there_too(page: Page) -> None:
    run(page, "dsserve:show")
    sidebar(page).get_by_role("listitem", name="demo@v1", exact=True).get_by_text("READY").wait_for()


def test_a_panel_whose_kernel_is_gone_says_so_once(page: Page) -> None:
    """And not with a sign at each of its widgets."""
    run(page, "kernelmenu:restart")
    page.locator(".jp-Dialog button.jp-mod-accept").last.click()
    signs = """() => [...document.querySelectorAll(".dsserve-panel, .dsserve-panel *")]
        .map(each => getComputedStyle(each, "::before").content).filter(it => /kernel|\\uf127/.test(it))"""
    only = '"✕ The kernel of this panel is gone: run the cell again."'
    eventually(lambda: page.evaluate(signs), lambda found: found == [only])
