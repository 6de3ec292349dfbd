"""The sidebar and the status bar's line, in a real JupyterLab. The tests go on where the one before them ended."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Locator, Page, Route, expect

from tests.browser.conftest import Pictures, built_extension, eventually, used_by
from tests.support import Json, JupyterServer

_SETTINGS = {
    "jupyter-dsserve/plugin": {"pollInterval": 0.5},
    # JupyterLab would ask whether one wants its news, over what we look at.
    "@jupyterlab/apputils-extension/notification": {"fetchNews": "false", "checkForUpdates": False},
}


@dataclass
class Lab:
    """A JupyterLab with the extension, and its gateway through ``/dsserve``."""

    server: JupyterServer

    def ask(self, method: str, path: str, body: Json = None) -> Json:
        url = f"{self.server.url}/dsserve{path}"
        headers = {"Authorization": f"token {self.server.token}"}
        answer = httpx.request(method, url, headers=headers, json=body, timeout=60, trust_env=False)
        assert answer.is_success, answer.text
        return answer.json()

    def load(self, version: str, **fields: Json) -> None:
        self.ask("POST", "/api/deployments", {"name": "demo", "version": version, **fields})

    def state(self, version: str) -> str:
        found: str = self.ask("GET", f"/api/deployments/demo/versions/{version}")["state"]
        return found

    def weights(self) -> dict[str, float]:
        found: dict[str, float] = self.ask("GET", "/api/deployments/demo/route")["weights"]
        return found

    def complete(self, number: int = 1) -> None:
        for _ in range(number):
            self.ask("POST", "/v1/completions", {"model": "demo", "prompt": "hello", "max_tokens": 5})


@pytest.fixture(scope="module")
def lab(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    home = tmp_path_factory.mktemp("home")
    for name, values in _SETTINGS.items():
        path = home / f"config/lab/user-settings/{name}.jupyterlab-settings"
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps(values))
    # Notebook 7 stands beside JupyterLab for tests of its own; who has only JupyterLab sees no button to go there.
    page_config = home / "config/labconfig/page_config.json"
    page_config.parent.mkdir()
    page_config.write_text(json.dumps({"disabledExtensions": {"@jupyter-notebook/lab-extension": True}}))
    options = ("--LabApp.expose_app_in_browser=True", f"--LabApp.extra_labextensions_path={built_extension(home)}")
    with JupyterServer(home, *options, base_url="/user/a%40b/", program="jupyterlab") as server:
        yield Lab(server)


@pytest.fixture(scope="module")
def page(browser: Browser, lab: Lab) -> Iterator[Page]:
    """JupyterLab with its launcher, and the sidebar shown."""
    context = browser.new_context(
        viewport={"width": 1360, "height": 900}, permissions=["clipboard-read", "clipboard-write"]
    )
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.goto(f"{lab.server.url}/lab?token={lab.server.token}&reset", timeout=60_000)
    page.locator(".jp-LauncherCard:visible").first.wait_for(timeout=60_000)
    run(page, "dsserve:show")
    yield page
    context.close()


def run(page: Page, command: str, **args: Any) -> None:
    """A command of JupyterLab's own, where its way there is not what is tested."""
    page.evaluate("([id, args]) => void window.jupyterapp.commands.execute(id, args)", [command, args])


def sidebar(page: Page) -> Locator:
    return page.locator("#jupyter-dsserve-sidebar")


def version(page: Page, name: str) -> Locator:
    return sidebar(page).get_by_role("listitem", name=f"demo@{name}", exact=True)


def line(page: Page) -> Locator:
    """The status bar's."""
    return page.locator(".jp-DSServe-statusItem button")


def choose(page: Page, of: str, label: str) -> None:
    """From the menu of a version or a deployment."""
    sidebar(page).get_by_role("button", name=f"Actions for {of}", exact=True).click()
    page.get_by_role("menuitem", name=label, exact=True).click()


def dress(page: Page, theme: str) -> None:
    run(page, "apputils:change-theme", theme=f"JupyterLab {theme}")
    page.locator(f"body[data-jp-theme-name='JupyterLab {theme}']").wait_for(state="attached")
    page.locator("#jupyterlab-splash").wait_for(state="detached")  # it lies over the page while a theme loads


def copied(page: Page) -> str:
    found: str = page.evaluate("navigator.clipboard.readText()")
    return found


def test_looking_starts_no_gateway(lab: Lab, page: Page) -> None:
    sidebar(page).get_by_text("The gateway is off. It starts when a model is loaded.").wait_for()
    time.sleep(3)  # more than one look
    assert lab.ask("GET", "/gateway")["state"] == "OFF"
    assert lab.server.processes() == []
    assert line(page).count() == 0


def test_the_button_starts_the_gateway(lab: Lab, page: Page) -> None:
    sidebar(page).get_by_role("button", name="Start the gateway").click()
    sidebar(page).get_by_text("Nothing is served yet.").wait_for()
    assert lab.ask("GET", "/gateway")["state"] == "RUNNING"
    assert sidebar(page).get_by_role("button", name="Start the gateway").count() == 0


def test_a_load_shows_its_progress_and_is_told_when_it_ends(lab: Lab, page: Page) -> None:
    lab.load("v1", model="toy:load_s=4,step_s=0.002", note="the one that serves")
    version(page, "v1").get_by_role("progressbar").wait_for()
    version(page, "v1").get_by_text("READY").wait_for()
    assert version(page, "v1").get_by_role("progressbar").count() == 0
    version(page, "v1").get_by_text("the one that serves").wait_for()
    page.locator(".Toastify__toast").get_by_text("demo@v1 is READY").wait_for()
    assert sidebar(page).get_by_role("status").text_content() == "demo@v1 is READY"


def test_the_shares_are_those_of_the_route(lab: Lab, page: Page) -> None:
    lab.load("v2", model="toy:step_s=0.004")
    version(page, "v2").get_by_text("READY").wait_for()
    assert version(page, "v2").locator(".jp-DSServe-share").text_content() == "0 %"
    lab.ask("PUT", "/api/deployments/demo/route", {"weights": {"v1": 75, "v2": 25}})
    sidebar(page).get_by_role("img", name="Traffic: v1 75 %, v2 25 %").wait_for()
    widths = [
        (piece.bounding_box() or {})["width"] for piece in sidebar(page).locator(".jp-DSServe-traffic > div").all()
    ]
    assert 2.9 < widths[0] / widths[1] < 3.1
    assert version(page, "v2").locator(".jp-DSServe-share").text_content() == "25 %"


def test_the_status_bar_says_how_much_is_asked_and_how_fast_it_answers(lab: Lab, page: Page) -> None:
    assert (line(page).text_content() or "").startswith("1 deployment")

    def seen() -> str:
        lab.complete(5)
        return line(page).text_content() or ""

    eventually(seen, lambda text: re.fullmatch(r"1 deployment · [1-9]\S* req/s · p95 \d+(\.\d)? m?s", text))
    assert (line(page).get_attribute("aria-label") or "").startswith("Model serving: 1 deployment · ")
    figures = version(page, "v1").locator(".jp-DSServe-figures")
    assert re.search(r"req/s · p95 \d", figures.text_content() or "")
    drawn = eventually(
        lambda: version(page, "v1").locator("svg path").get_attribute("d"), lambda d: d and d.count("L") >= 2
    )
    assert drawn.startswith("M")
    label = version(page, "v1").locator("svg").get_attribute("aria-label") or ""
    assert re.match(r"p95 of demo@v1 over two minutes: \d", label)


def test_the_line_in_the_status_bar_opens_the_sidebar(page: Page) -> None:
    run(page, "filebrowser:activate")
    sidebar(page).wait_for(state="hidden")
    line(page).click()
    sidebar(page).wait_for(state="visible")
    assert sidebar(page).evaluate("it => it === document.activeElement"), "the keyboard is elsewhere"


def test_the_palette_leads_the_keyboard_to_the_sidebar(page: Page) -> None:
    run(page, "filebrowser:activate")
    sidebar(page).wait_for(state="hidden")
    page.locator(".jp-LauncherCard").first.focus()
    page.keyboard.press("Control+Shift+C")
    page.locator(".lm-CommandPalette-input:focus").wait_for()
    page.keyboard.type("show model serving")
    page.locator(".lm-CommandPalette-item.lm-mod-active", has_text="Show Model Serving in the Sidebar").wait_for()
    page.keyboard.press("Enter")
    eventually(lambda: sidebar(page).evaluate("it => it === document.activeElement"))
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.getAttribute('aria-label')") == "Actions for demo"


def test_a_version_is_unloaded_and_loaded_by_the_keyboard(lab: Lab, page: Page) -> None:
    button = sidebar(page).get_by_role("button", name="Actions for demo@v2", exact=True)
    button.focus()
    page.keyboard.press("Enter")
    page.get_by_role("menuitem", name="Unload", exact=True).wait_for()
    assert page.get_by_role("menuitem", name="Load", exact=True).get_attribute("aria-disabled") == "true"
    page.keyboard.press("u")  # the first letter goes there
    page.keyboard.press("Enter")
    version(page, "v2").get_by_text("STOPPED").wait_for()
    assert lab.state("v2") == "STOPPED"
    assert lab.weights() == {"v1": 100}
    sidebar(page).get_by_role("img", name="Traffic: v1 100 %").wait_for()
    assert button.evaluate("it => it === document.activeElement"), "the keyboard is lost after the menu"
    page.keyboard.press("Enter")
    page.get_by_role("menuitem", name="Load", exact=True).wait_for()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    version(page, "v2").get_by_text("READY").wait_for()
    assert lab.state("v2") == "READY"


def test_activate_in_the_menu_gives_a_version_all_traffic(lab: Lab, page: Page) -> None:
    choose(page, "demo@v2", "Activate (all traffic)")
    sidebar(page).get_by_role("img", name="Traffic: v2 100 %").wait_for()
    version(page, "v1").get_by_text("STOPPED").wait_for()
    assert lab.weights() == {"v2": 100}


def test_the_copied_curl_line_asks_the_model(lab: Lab, page: Page) -> None:
    choose(page, "demo@v2", "Copy curl Line")
    lines = copied(page)
    assert lab.server.token not in lines
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    env = {**lab.server.env, "PATH": path, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(["bash", "-c", lines], env=env, capture_output=True, text=True, timeout=60, check=False)
    answer = json.loads(done.stdout or json.dumps(done.stderr))
    assert answer["model"] == "demo@v2", answer
    assert answer["choices"][0]["text"]


def test_the_copied_python_asks_the_deployment(lab: Lab, page: Page) -> None:
    choose(page, "demo", "Copy Python Snippet")
    code = copied(page)
    env = {**lab.server.env, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_the_copied_url_is_the_gateways(lab: Lab, page: Page) -> None:
    choose(page, "demo", "Copy URL")
    assert copied(page) == lab.ask("GET", "/gateway")["url"] + "/v1"


def test_a_version_that_fails_says_why_everywhere(lab: Lab, page: Page) -> None:
    lab.load("v3", model="toy:", python="/bin/false")
    failed = version(page, "v3")
    failed.get_by_text("FAILED: ").wait_for()
    page.locator(".Toastify__toast").get_by_text("demo@v3 FAILED: ").wait_for()
    expect(line(page)).to_contain_text("✕ 1 failed")
    assert "demo@v3 FAILED" in (line(page).get_attribute("aria-label") or "")
    assert "jp-mod-bad" in (line(page).get_attribute("class") or "")


def test_what_the_server_refuses_is_shown_in_its_words(page: Page) -> None:
    run(page, "dsserve:load", name="demo", version="v9")
    page.locator(".Toastify__toast").get_by_text("version 'v9' of demo does not exist: there are v1, v2, v3").wait_for()


def test_the_logs_of_a_version_are_shown_beside_the_notebooks(page: Page) -> None:
    choose(page, "demo@v2", "Show Logs")
    shown = page.get_by_role("log", name="Logs of demo@v2")
    shown.filter(has_text="demo@v2#0").wait_for()
    choose(page, "demo@v2", "Show Logs")
    assert shown.count() == 1, "it is shown already"
    run(page, "application:close")
    shown.wait_for(state="detached")


def dialog(page: Page) -> Locator:
    return page.get_by_role("dialog")


def accept(page: Page, label: str) -> None:
    dialog(page).get_by_role("button", name=label, exact=True).click()


def test_a_model_is_loaded_from_the_sidebar_and_what_is_refused_can_be_mended(lab: Lab, page: Page) -> None:
    sidebar(page).get_by_role("button", name="Load a model…").click()
    assert dialog(page).get_by_role("button", name="Load").is_disabled(), "it does not know what to load"
    dialog(page).get_by_label("Deployment").fill("other")
    dialog(page).get_by_label("Model").fill("/no/such/directory")
    dialog(page).get_by_label("Note").fill("by hand")
    accept(page, "Load")
    dialog(page).get_by_role("alert").get_by_text("/no/such/directory").wait_for()
    assert dialog(page).get_by_label("Note").input_value() == "by hand", "what was written is gone"
    dialog(page).get_by_label("Model").fill("toy:bytes=200000000")
    dialog(page).get_by_label("Priority").select_option("low")
    accept(page, "Load")
    loaded = sidebar(page).get_by_role("listitem", name="other@v1", exact=True)
    loaded.get_by_text("READY").wait_for()
    (found,) = lab.ask("GET", "/api/deployments/other/versions")
    assert (found["note"], found["settings"]["priority"]) == ("by hand", "low")


def test_the_number_of_workers_is_set(lab: Lab, page: Page) -> None:
    choose(page, "other@v1", "Number of Workers…")
    dialog(page).locator("input").fill("2")
    accept(page, "Ok")
    eventually(lambda: lab.ask("GET", "/api/deployments/other/versions/v1")["num_replicas"], lambda num: num == 2)


def test_the_memory_is_shown_by_who_holds_it(page: Page) -> None:
    sidebar(page).get_by_text("Memory", exact=True).click()
    cpu = sidebar(page).get_by_role("region", name="Memory of cpu")
    cpu.get_by_text("that may be held").wait_for()
    cpu.get_by_role("listitem").get_by_text("other@v1#0 191 MiB").wait_for()


def test_the_traffic_is_set_by_sliders_that_make_100(lab: Lab, page: Page) -> None:
    lab.ask("POST", "/api/deployments/demo/versions/v1/load")
    version(page, "v1").get_by_text("READY").wait_for()
    choose(page, "demo", "Set Traffic…")
    slider = dialog(page).get_by_role("slider", name="Percent of the traffic for v1")
    slider.fill("30")
    expect(dialog(page).locator("output")).to_have_text(["30 %", "70 %"])
    slider.press("ArrowRight")
    accept(page, "Set")
    eventually(lab.weights, lambda weights: weights == {"v1": 31, "v2": 69})
    sidebar(page).get_by_role("img", name="Traffic: v1 31 %, v2 69 %").wait_for()


def test_a_key_is_made_and_told_once(lab: Lab, page: Page) -> None:
    run(page, "dsserve:key")
    dialog(page).get_by_label("Name").fill("an app")
    dialog(page).get_by_label("Deployments").fill("demo")
    accept(page, "Create")
    key = (dialog(page).get_by_text(re.compile("^dsk_")).text_content() or "").strip()
    accept(page, "Copy")
    assert copied(page) == key
    url = f"{lab.ask('GET', '/gateway')['url']}/v1/completions"
    for model, status in (("demo", 200), ("other", 404)):
        body = {"model": model, "prompt": "hello", "max_tokens": 2}
        answer = httpx.post(url, headers={"Authorization": f"Bearer {key}"}, json=body, timeout=60, trust_env=False)
        assert answer.status_code == status, answer.text
    lab.ask("DELETE", "/api/deployments/other")


def serious(page: Page, place: str, seen: set[str]) -> dict[str, list[str]]:
    """What axe finds there, by its rules; those in ``seen`` found what they look at."""
    # JupyterLab's body has no height and hides what overflows: axe would take the whole page for invisible.
    page.add_style_tag(content="body { height: 100vh }")
    found = Axe().run(page, context=place).response
    assert seen <= {rule["id"] for rule in found["passes"] + found["violations"]}, "it saw nothing"
    rules = [rule for rule in found["violations"] if rule["impact"] in ("serious", "critical")]
    return {rule["id"]: [node["failureSummary"] for node in rule["nodes"]] for rule in rules}


@pytest.mark.parametrize("theme", ["Light", "Dark"])
def test_axe_finds_nothing_serious(page: Page, theme: str) -> None:
    dress(page, theme)
    run(page, "dsserve:load-new")
    dialog(page).wait_for()
    for place in (".jp-Dialog-body", "#jupyter-dsserve-sidebar", ".jp-DSServe-statusItem"):
        if place.startswith("#"):
            dialog(page).get_by_role("button", name="Cancel").click()
            dialog(page).wait_for(state="detached")
        seen = {"color-contrast", "label" if "Dialog" in place else "button-name"}
        assert serious(page, place, seen) == {}, f"{place} in {theme}"


def test_a_gateway_that_hangs_is_told_and_so_is_its_return(lab: Lab, page: Page) -> None:
    sidebar(page).get_by_text("Memory", exact=True).click()  # folded: it is asked no more
    pid = lab.ask("GET", "/gateway")["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        sidebar(page).get_by_role("alert").get_by_text("no answer within 5 s: what is shown is").wait_for()
    finally:
        os.kill(pid, signal.SIGCONT)
    sidebar(page).get_by_role("alert").wait_for(state="detached", timeout=60_000)  # it looks seldom meanwhile


def test_a_jupyter_server_that_is_gone_is_told_and_so_is_its_return(page: Page) -> None:
    page.route(re.compile("/dsserve/gateway"), lambda route: route.abort("connectionrefused"))
    sidebar(page).get_by_role("alert").get_by_text("the Jupyter server does not answer: is it running?").wait_for()
    page.unroute(re.compile("/dsserve/gateway"))
    sidebar(page).get_by_role("alert").wait_for(state="detached", timeout=60_000)  # it looks seldom meanwhile


def test_the_launcher_makes_a_notebook_that_serves(page: Page) -> None:
    page.locator(".jp-LauncherCard:visible", has_text="Serving Notebook").click()
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    sources = page.locator(".jp-CodeCell .cm-content")
    assert sources.nth(0).text_content() == "%load_ext jupyter_dsserve"
    assert "%dsserve load demo --model builtin:demo-v1" in " ".join(sources.all_text_contents())
    assert "%dsserve panel demo" in " ".join(sources.all_text_contents())


def execute(page: Page, cell: Locator) -> None:
    cell.locator(".cm-content").click()
    page.keyboard.press("Control+Enter")


def test_a_cell_that_is_put_into_the_notebook_asks_the_version(page: Page) -> None:
    before = page.locator(".jp-CodeCell").count()
    execute(page, page.locator(".jp-CodeCell", has_text="%load_ext jupyter_dsserve"))
    choose(page, "demo@v2", "Insert Cell into Notebook")
    asks = page.locator(".jp-CodeCell", has_text="%%dsserve demo@v2")
    asks.wait_for()
    assert page.locator(".jp-CodeCell").count() == before + 1, "the notebook loads the extension already"
    execute(page, asks)
    asks.locator(".jp-OutputArea-output").get_by_text(re.compile(r"demo@v2 · \d+ tokens")).wait_for()


def test_axe_finds_nothing_serious_in_a_panel(page: Page) -> None:
    page.set_viewport_size({"width": 1360, "height": 1900})  # of what is scrolled away it does not see the colours
    execute(page, page.locator(".jp-CodeCell", has_text="%dsserve panel demo"))
    panel = page.locator(".dsserve-panel")
    panel.locator(".js-plotly-plot").wait_for()
    for name in ("Playground", "Events", "Memory", "Logs"):
        panel.get_by_text(name, exact=True).click()
    panel.get_by_text("that may be held").wait_for()
    panel.locator("pre", has_text="demo@v1#0").wait_for()
    # Whether they have something to scroll depends on what else runs on this machine.
    page.add_style_tag(content=".dsserve-panel .widget-html[tabindex] { max-height: 3em !important }")
    for theme in ("Light", "Dark"):
        dress(page, theme)
        seen = {"color-contrast", "label", "select-name", "aria-input-field-name", "scrollable-region-focusable"}
        assert serious(page, ".dsserve-panel", seen) == {}, theme
    for name in ("Playground", "Events", "Memory", "Logs"):
        panel.get_by_text(name, exact=True).click()
    panel.get_by_role("slider", name="v1: Percent of the traffic that v1 gets").wait_for()
    panel.get_by_role("button", name="Stop").click()
    page.locator(".jp-Notebook .jp-CodeCell", has_text="%dsserve panel demo").locator(".cm-content").click()
    run(page, "notebook:clear-cell-output")
    panel.wait_for(state="detached")
    page.set_viewport_size({"width": 1360, "height": 900})


def test_the_main_area_shows_the_same(page: Page) -> None:
    run(page, "dsserve:open")
    main = page.locator(".jp-MainAreaWidget .jp-DSServe")
    main.get_by_role("listitem", name="demo@v2", exact=True).get_by_text("READY").wait_for()
    run(page, "application:close")
    main.wait_for(state="detached")


def test_the_picture_of_the_readme(lab: Lab, page: Page, pictures: Pictures, tmp_path: Path) -> None:
    choose(page, "demo@v3", "Delete…")
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    version(page, "v3").wait_for(state="detached")
    lab.ask("PUT", "/api/deployments/demo/route", {"weights": {"v1": 75, "v2": 25}})
    end = time.monotonic() + (75 if pictures.keeps else 1)
    while time.monotonic() < end:
        lab.complete(3)
    lab.load("v4", model="toy:load_s=9", note="loads")
    version(page, "v4").get_by_role("progressbar").wait_for()
    page.set_viewport_size({"width": 1000, "height": 620})
    page.add_style_tag(content=".Toastify { display: none }")
    for theme, path in (("Dark", tmp_path / "dark.png"), ("Light", pictures.folder / "sidebar.png")):
        dress(page, theme)
        page.screenshot(path=path)


def test_a_rollout_is_shown_paused_and_rolled_back(lab: Lab, page: Page) -> None:
    lab.ask("PUT", "/api/deployments/demo/route", {"weights": {"v1": 100}})
    choose(page, "demo@v2", "Roll Out Step by Step…")
    dialog(page).get_by_label("Steps, in percent").fill("5, 100")
    dialog(page).get_by_label("Seconds at each").fill("600")
    accept(page, "Roll Out")
    change = sidebar(page).locator(".jp-DSServe-change")
    change.get_by_text("rollout of v2 PROGRESSING").wait_for()
    choose(page, "demo", "Pause Rollout")
    change.get_by_text("rollout of v2 PAUSED").wait_for()
    choose(page, "demo", "Roll Back")
    change.get_by_text("✕ rollout of v2 ROLLED_BACK").wait_for()
    page.locator(".Toastify__toast").get_by_text("The rollout of demo is ROLLED_BACK").wait_for(state="attached")
    assert lab.weights() == {"v1": 100}
    expect(line(page)).to_contain_text("✕ 1 rolled back")
    line(page).click()  # now it has been seen
    eventually(lambda: line(page).text_content(), lambda text: "rolled back" not in text)
    assert "jp-mod-bad" not in (line(page).get_attribute("class") or "")
    assert sidebar(page).get_by_text("✕ rollout of v2 ROLLED_BACK").is_visible()


def test_looks_for_five_minutes_take_no_more_memory(page: Page) -> None:
    """Each look at once after the last, with numbers that are a second older."""
    num, at = 100, time.time()

    def answer(route: Route) -> None:
        nonlocal at
        at += 1
        stats = [
            {"deployment": "demo", "version": v, "at": at, "requests": at, "p95_s": at % 7 / 100} for v in ("v1", "v2")
        ]
        route.fulfill(body="".join(f"event: stats\ndata: {json.dumps(each)}\n\n" for each in stats))

    page.route(re.compile("/dsserve/api/events"), answer)
    began, seen = at, []
    for _ in range(3):
        end = at + num
        while at < end:  # a fold that opens or shuts has it look
            page.evaluate("() => { const f = document.querySelector('.jp-DSServe-memory'); f.open = !f.open }")
            page.wait_for_timeout(10)
        seen.append(used_by(page))
    page.unroute(re.compile("/dsserve/api/events"))
    assert at - began >= 3 * num
    assert seen[2] < 1.1 * seen[1], seen


def test_settings_hide_the_line_in_the_status_bar(page: Page, lab: Lab) -> None:
    line(page).wait_for()
    url = f"{lab.server.url}/lab/api/settings/jupyter-dsserve:plugin"
    headers = {"Authorization": f"token {lab.server.token}"}
    put = httpx.put(url, headers=headers, json={"raw": '{"statusItem": false}'}, trust_env=False)
    assert put.is_success, put.text
    page.reload()
    page.locator(".jp-DSServe-statusItem").wait_for(state="attached", timeout=60_000)
    version(page, "v2").get_by_text("READY").wait_for()
    expect(line(page)).to_be_hidden()
