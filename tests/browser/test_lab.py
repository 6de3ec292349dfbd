"""The notebook of ``make demo``, run by a person's clicks. The tests go on where the one before them ended."""

from __future__ import annotations

import json
import math
import re
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page

from tests.browser.conftest import Demo, Pictures, eventually, nodes, run_at_last, used_by
from tests.support import Json


def menu(page: Page, name: str, command: str) -> None:
    page.get_by_role("menuitem", name=name, exact=True).click()
    page.locator(f"[data-command='{command}']").click()


def cell(page: Page, source: str) -> Locator:
    """The code cell whose source begins so. The notebook keeps only cells near the view in the page."""
    found = page.locator(".jp-CodeCell").filter(has=page.locator(".cm-content", has_text=source)).first
    found.scroll_into_view_if_needed()
    return found


def said_by(page: Page, source: str, *words: str) -> str:
    """What the cell whose source begins so shows, once all the ``words`` (patterns) are in it: outputs come one after
    the other."""
    found: str = eventually(
        lambda: " ".join(cell(page, source).locator(".jp-OutputArea-output").all_text_contents()).strip(),
        lambda text: all(re.search(word, text) for word in words),
    )
    return found


def plots(page: Page) -> list[Json]:
    """Name and points of each line of each live plot on the page."""
    found: list[Json] = page.evaluate(
        """() => [...document.querySelectorAll(".js-plotly-plot")].map(plot =>
             plot.data.map(line => ({name: line.name, x: Array.from(line.x), y: Array.from(line.y)})))"""
    )
    return found


def curves(page: Page) -> list[dict[str, Json]]:
    """The lines of each live panel on the page, by what a mouse is told of them (``v1 p95``)."""
    found: list[dict[str, Json]] = page.evaluate(
        """() => [...document.querySelectorAll(".js-plotly-plot")].map(plot => Object.fromEntries((plot.data ?? [])
             .map(line => [line.hovertemplate?.match(/<extra>(.+)<.extra>/)?.[1], line]).filter(([name]) => name)
             .map(([name, line]) => [name, {x: Array.from(line.x ?? []), y: Array.from(line.y ?? [])}])))"""
    )
    return found


def ago_s(plots: list[dict[str, Json]]) -> list[float]:
    """Where v1's curves are on the first panel; none before they are drawn."""
    found: list[float] = plots[0].get("v1 p95", {"x": []})["x"] if plots else []
    return found


def is_up_to_date(plots: list[dict[str, Json]]) -> bool:
    """Whether there are curves that come to the last two seconds."""
    return max(ago_s(plots), default=-math.inf) > -2


def handle(page: Page, version: str) -> Locator:
    slider = page.locator(".widget-slider").filter(has=page.get_by_text(version, exact=True))
    return slider.locator(".noUi-handle")


def drag(page: Page, version: str, by_px: int) -> None:
    handle(page, version).hover()  # once it stands still
    box = handle(page, version).bounding_box()
    assert box
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    for step in range(1, 6):
        page.mouse.move(x + by_px * step / 5, y)
    page.mouse.up()


def test_a_notebook_that_was_only_opened_has_not_changed_and_nobody_asks_for_news(page: Page) -> None:
    """Both come seconds after the page, if they come."""
    page.wait_for_timeout(4_000)
    assert page.locator(".lm-DockPanel-tabBar .lm-mod-current").text_content() == "01_first_answer.ipynb"
    assert page.locator(".jp-mod-dirty").count() == 0
    assert page.locator(".Toastify__toast").count() == 0


def test_the_notebook_answers_from_top_to_bottom(demo: Demo, page: Page) -> None:
    before = demo.worker_pids()
    menu(page, "Run", "runmenu:run-all")
    page.locator(".js-plotly-plot").wait_for(timeout=90_000)
    assert demo.worker_pids() == before, "what ran was loaded again"
    answered = said_by(page, "%%dsserve demo --max-tokens 60", "demo@v[12] · 60 tokens")
    assert len(answered) > 100
    said_by(page, "%dsserve route demo", "v1=90 v2=10")
    said_by(page, "from collections import Counter", "'v1'", "'v2'")
    assert page.locator("[data-mime-type='application/vnd.jupyter.stderr']").count() == 0


def test_the_plot_moves_while_requests_come(page: Page, pictures: Pictures) -> None:
    cell(page, "%dsserve panel demo")
    first = eventually(lambda: curves(page), lambda p: len(p) == 1 and "v1 p95" in p[0] and "v2 p95" in p[0])
    num = len(ago_s(first))
    later = eventually(lambda: curves(page), lambda p: len(ago_s(p)) >= num + 3 and is_up_to_date(p))[0]
    assert all(y > 0 for line in ("p95", "tokens/s", "requests/s") for y in later[f"v1 {line}"]["y"][-3:])
    if pictures.keeps:  # for people: long enough to see it move
        eventually(lambda: curves(page), lambda p: len(ago_s(p)) > 45, timeout_s=60)
    page.mouse.move(5, 5)
    page.locator(".jp-OutputArea-output > .widget-vbox").last.screenshot(path=pictures.folder / "panel.png")


def told(demo: Demo, code: str, value: str) -> Json:
    """What ``value`` is in the notebook's kernel after ``code`` ran there."""
    with demo.kernel() as kernel:
        reply = kernel.execute_interactive(code, user_expressions={"it": value}, silent=True, timeout=400)
    content = reply["content"]
    assert content["status"] == "ok", content
    found = content["user_expressions"]["it"]
    assert found["status"] == "ok", found
    return json.loads(found["data"]["text/plain"])


def stats_of(demo: Demo, num: int) -> list[float]:
    """When the gateway told the next ``num`` numbers of v1, in seconds since the epoch."""
    headers, at = {"Authorization": f"Bearer {demo.key}"}, list[float]()
    with httpx.stream("GET", f"{demo.url}/api/events", headers=headers, timeout=60, trust_env=False) as answer:
        for line in answer.iter_lines():
            record = json.loads(line.removeprefix("data: ")) if line.startswith("data: ") else {}
            if record.get("version") == "v1" and "p95_s" in record:
                at.append(record["at"])
            if len(at) == num:
                break
    return at


def test_the_plot_goes_on_while_a_cell_keeps_the_kernel_busy(demo: Demo, page: Page) -> None:
    cell(page, "%dsserve panel demo")
    with ThreadPoolExecutor(1) as thread:
        telling = thread.submit(stats_of, demo, 7)
        told(demo, "import time\nend = time.time() + 5\nwhile time.time() < end: sum(range(1000))", "1")
        gaps = [b - a for a, b in pairwise(telling.result())]

    def are_there(plots: list[dict[str, Json]]) -> bool:
        """Whether the plot has each second that was told, as far apart."""
        drawn = [b - a for a, b in pairwise(ago_s(plots))]
        return any(drawn[i : i + len(gaps)] == pytest.approx(gaps, abs=0.05) for i in range(len(drawn)))

    eventually(lambda: curves(page), are_there)


def test_a_zoom_goes_with_its_moment_until_a_double_click(page: Page) -> None:
    plot = page.locator(".js-plotly-plot").last
    plot.scroll_into_view_if_needed()
    box = plot.locator(".nsewdrag").first.bounding_box()
    assert box

    def ranges() -> list[list[float]]:
        found: list[list[float]] = plot.evaluate(
            "plot => Object.keys(plot.layout).filter(k => /^xaxis/.test(k)).map(k => plot.layout[k].range)"
        )
        return found

    across, down = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(across, down)
    page.mouse.down()
    page.mouse.move(across + box["width"] / 4, down, steps=4)
    page.mouse.up()
    # From the middle of two minutes on, less what has passed since then.
    first = eventually(ranges, lambda r: all(-100 < low < -55 for low, _ in r))[0]
    later = eventually(ranges, lambda r: all(low < first[0] - 2 for low, _ in r))[0]
    assert later[1] - later[0] == pytest.approx(first[1] - first[0], abs=0.1)
    page.mouse.dblclick(across, down)
    eventually(ranges, lambda r: all(each == [-120, 0] for each in r))


def test_a_slider_that_is_dragged_changes_the_route_on_the_gateway(demo: Demo, page: Page) -> None:
    cell(page, "%dsserve panel demo")
    assert demo.weights() == {"v1": 90, "v2": 10}
    drag(page, "v2", by_px=40)
    after = eventually(demo.weights, lambda w: w["v2"] > 10)
    assert sum(after.values()) == 100
    eventually(lambda: handle(page, "v1").get_attribute("aria-valuetext"), lambda v: v == str(int(after["v1"])))
    handle(page, "v2").press("ArrowRight")
    eventually(demo.weights, lambda w: w == {"v1": after["v1"] - 1, "v2": after["v2"] + 1})


def test_a_second_run_of_the_cell_leaves_one_plot_that_moves(page: Page) -> None:
    for _ in range(2):
        cell(page, "%dsserve panel demo").locator(".cm-content").click()
        page.keyboard.press("Control+Enter")
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    first = eventually(lambda: curves(page), lambda p: len(p) == 1 and "v2 p95" in p[0])
    num = len(ago_s(first))
    eventually(lambda: curves(page), lambda p: len(p) == 1 and len(ago_s(p)) >= num + 2)


@pytest.mark.usefixtures("page")  # whose kernel has the magics by now
def test_plots_are_live_on_a_page_that_takes_long_to_read_plotly(demo: Demo, browser: Browser) -> None:
    """Longer than the two seconds in which a widget's code has to be there (anywidget)."""
    slow = browser.new_page(viewport={"width": 1360, "height": 1000})
    slow.add_init_script(
        """const make = URL.createObjectURL;
        URL.createObjectURL = (blob) => make(blob.size < 1e6 ? blob :
            new Blob(["await new Promise((go) => setTimeout(go, 4000));", blob], { type: blob.type }));"""
    )
    slow.goto(f"{demo.notebook}&reset")
    slow.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    run_at_last(slow, cell(slow, "%dsserve panel demo"))
    first = eventually(lambda: curves(slow), lambda p: len(p) == 1 and "v2 p95" in p[0])
    num = len(ago_s(first))
    eventually(lambda: curves(slow), lambda p: len(p) == 1 and len(ago_s(p)) >= num + 2)
    slow.close()


def test_the_deployment_serves_on_when_the_kernel_is_restarted(demo: Demo, page: Page) -> None:
    before = demo.worker_pids()
    menu(page, "Kernel", "kernelmenu:restart-and-clear")
    page.get_by_role("button", name="Confirm").click()
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for()
    run_at_last(page, cell(page, "%load_ext jupyter_dsserve"))
    route = cell(page, "%dsserve route demo")
    route.locator(".cm-content").click()
    page.keyboard.press("Shift+Enter")
    said_by(page, "%dsserve route demo", "v1=90 v2=10")
    assert demo.worker_pids() == before
    assert demo.weights() == {"v1": 90, "v2": 10}


def test_a_load_test_shows_its_table_and_its_plot(demo: Demo, page: Page, pictures: Pictures) -> None:
    page.goto(f"{demo.notebook.replace('01_first_answer', '02_load_test')}&reset")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    sweep = "%dsserve bench demo --concurrency"
    for source in ("%load_ext jupyter_dsserve", sweep):
        cell(page, source).locator(".cm-content").click()
        page.keyboard.press("Control+Enter")
    shown = cell(page, sweep).locator(".jp-OutputArea-output")
    cell(page, sweep).locator(".js-plotly-plot").wait_for(timeout=60_000)
    assert shown.locator("th").all_text_contents() == ["concurrency", "1", "4", "16"]
    (lines,) = plots(page)
    assert [line["x"] for line in lines] == [[1, 4, 16]] * 5
    assert all(y > 0 for line in lines for y in line["y"])
    share = "plot => plot.clientWidth / plot.closest('.jp-OutputArea-output').clientWidth"
    eventually(lambda: cell(page, sweep).locator(".js-plotly-plot").evaluate(share), lambda wide: wide > 0.9)
    page.mouse.move(5, 5)
    cell(page, sweep).locator(".jp-OutputArea").first.screenshot(path=pictures.folder / "bench.png")


def run(page: Page, source: str) -> None:
    """The cell whose source begins so."""
    cell(page, source).locator(".cm-content").click()
    page.keyboard.press("Control+Enter")


def words(page: Page) -> list[str]:
    """What is written on the live plots besides their axes."""
    found: list[str] = page.evaluate(
        """() => [...document.querySelectorAll(".js-plotly-plot")].flatMap(plot =>
             plot.layout.annotations.map(each => each.text))"""
    )
    return found


# What a panel shows while a rollout is at its first step, for some seconds: the step, and whether it may be promoted.
_WATCH_STEP = """panel => {
  window.seen = [];
  const look = () => {
    const texts = [...panel.querySelectorAll("span, b")].map(each => each.textContent);
    const promote = [...panel.querySelectorAll("button")].find(each => each.textContent === "Promote");
    if (texts.includes("PROGRESSING") && window.seen.length < 100) {
      const step = texts.find(text => text === "10 %") ?? "another";
      window.seen.push(`${step}, ${promote.disabled ? "disabled" : "enabled"}`);
    }
  };
  new MutationObserver(look).observe(panel, { subtree: true, childList: true });
}"""


def test_a_panel_shows_a_rollout_step_by_step_and_marks_where_it_was_taken_back(
    demo: Demo, page: Page, pictures: Pictures
) -> None:
    page.set_viewport_size({"width": 1360, "height": 1300})
    page.goto(f"{demo.notebook.replace('01_first_answer', '03_gray_release')}&reset")
    page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    for source in ("%load_ext jupyter_dsserve", "import contextlib", "%dsserve panel assistant"):
        run(page, source)
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
    page.locator(".js-plotly-plot").wait_for(timeout=60_000)
    if pictures.keeps:  # for people: long enough to see what it was like before
        eventually(lambda: curves(page), lambda p: len(ago_s(p)) > 40, timeout_s=90)
    panel = cell(page, "%dsserve panel assistant").locator(".jp-OutputArea-output > .widget-vbox")
    panel.evaluate(_WATCH_STEP)
    run(page, "%dsserve load assistant --model toy:step_s=0.015")
    panel.scroll_into_view_if_needed()  # out of view it rests
    eventually(lambda: page.evaluate("window.seen"), lambda seen: "10 %, enabled" in seen)
    panel.get_by_text("ROLLED_BACK").wait_for(timeout=60_000)
    assert "latency" in (panel.text_content() or "")
    eventually(lambda: words(page), lambda found: "rollback" in found)
    assert panel.get_by_role("button", name="Promote").is_disabled()
    if pictures.keeps:
        page.wait_for_timeout(8_000)
    page.mouse.move(5, 5)
    panel.screenshot(path=pictures.folder / "rollout.png")


def new_cell(page: Page, below: str, source: str) -> Locator:
    """Write a cell below the one whose source begins so, and run it."""
    cell(page, below).locator(".cm-content").click()
    for key in ("Escape", "b", "Enter"):
        page.keyboard.press(key)
    page.keyboard.insert_text(source)
    page.keyboard.press("Control+Enter")
    return cell(page, source)


@pytest.mark.timeout(600)  # for pictures
def test_the_history_of_a_time_is_as_wide_as_the_page_with_its_tables_whole(
    demo: Demo, page: Page, pictures: Pictures
) -> None:
    if pictures.keeps:  # for people: some minutes, in which v2 has a share for a while
        for share, minutes in ((25, 2.5), (0, 1)):
            told(demo, f"client.route('assistant', {{'v1': {100 - share}, 'v2': {share}}})", "1")
            page.wait_for_timeout(60_000 * minutes)
    output = new_cell(page, "%dsserve panel assistant", "%dsserve history assistant --since 1h").locator(
        ".jp-OutputArea"
    )
    output.locator(".js-plotly-plot").wait_for(timeout=60_000)
    begin, end = output.locator(".js-plotly-plot").evaluate("plot => plot.layout.xaxis.range.map(at => Date.parse(at))")
    assert (end - begin) / 60_000 < 30, "it is as long as what there is, not as what was asked for"
    for width in (760, 1360):
        page.set_viewport_size({"width": width, "height": 1300})
        box = output.locator(".jp-OutputArea-output").first.bounding_box()
        assert box
        plot = eventually(
            lambda: output.locator(".js-plotly-plot .main-svg").first.bounding_box(),
            lambda seen, wide=box["width"]: seen and 0.9 * wide < seen["width"] <= wide,
        )
        eventually(lambda: output.locator("table").count(), lambda num: num == 2)
        tables = [table.bounding_box() for table in output.locator("table").all()]
        assert len(tables) == 2
        assert tables[0]["y"] > plot["y"] + plot["height"] - 1
        assert tables[1]["y"] > tables[0]["y"] + 50, "side by side"
    assert all(table["width"] <= box["width"] for table in tables), "cut"
    page.mouse.move(5, 5)
    page.add_style_tag(content=".Toastify { display: none }")  # what became of the rollout, over the tables
    output.screenshot(path=pictures.folder / "history.png")


def test_a_panel_that_is_out_of_view_rests_and_is_whole_when_it_is_back(page: Page) -> None:
    panel = cell(page, "%dsserve panel assistant").locator(".jp-OutputArea-output > .widget-vbox")
    panel.evaluate("element => { element.style.display = 'none' }")

    def after_seconds() -> tuple[list[float], list[float]]:
        seen = ago_s(curves(page))
        page.wait_for_timeout(3_000)
        return seen, ago_s(curves(page))

    # Once what was on its way is through.
    before, _ = eventually(after_seconds, lambda seen: seen[0] and seen[0] == seen[1])
    panel.evaluate("element => { element.style.display = '' }")
    eventually(lambda: curves(page), lambda p: is_up_to_date(p) and ago_s(p) != before)


def test_the_playground_shows_two_answers_side_by_side_and_folds_open_and_shut(
    demo: Demo, page: Page, tmp_path: Path
) -> None:
    panel = cell(page, "%dsserve panel assistant").locator(".jp-OutputArea-output > .widget-vbox")
    panel.get_by_text("Playground").click()
    panel.get_by_placeholder("What both are asked").fill("What is new?")
    panel.get_by_role("button", name="Ask").click()
    for version in ("v1", "v2"):
        panel.get_by_text(f"assistant@{version} · 64 tokens").wait_for(timeout=30_000)
    panel.get_by_text("Events", exact=True).click()
    panel.get_by_text("rollout rolled back v2").wait_for()
    panel.get_by_text("Memory", exact=True).click()
    panel.get_by_text("that may be held").wait_for()
    panel.get_by_text("Logs", exact=True).click()
    panel.locator("pre", has_text="assistant@v1#0").wait_for()
    page.mouse.move(5, 5)
    panel.screenshot(path=tmp_path / "folds.png")  # to look at; README does not show it
    for name in ("Playground", "Events", "Memory", "Logs"):
        panel.get_by_text(name, exact=True).click()


# Runs in the kernel: ``NUM`` seconds in which two versions answer, told to the panel as the feed tells them, one after
# another as fast as it draws them. What time it is the panel asks us.
_PASS_TIME = """
import gc, sys, time, types
from dataclasses import replace
import ipywidgets, psutil
from jupyter_dsserve.notebook import panel as _panels
from jupyter_dsserve.protocol.records import Event as _Event
_view = _panels._live["assistant"]
_view._feed.forget(_view._on_records)
_now = globals().get("_now", int(time.time()))
_panels.time = types.SimpleNamespace(time=lambda: _now)
for _ in range(NUM):
    _now += 1
    _told = [replace(_view.series.latest(_name), at=_now, requests=_now, p95_s=0.01 + _now % 7 / 1000)
             for _name in ("v1", "v2")]
    if _now % 10 == 0:
        _told.append(_Event(_now, _now, "route", "assistant", reason=f"by hand at {_now}"))
    _view._on_records(_told, "")
gc.collect()
"""
_USED = "[psutil.Process().memory_info().rss, sys.getallocatedblocks(), len(ipywidgets.widgets.widget._instances)]"


@pytest.fixture
def open_panel(page: Page, demo: Demo) -> Locator:
    """The panel that the tests before left; for a test that runs alone one of two versions, as in their notebook."""
    if "03_gray" not in page.url:
        page.goto(f"{demo.notebook.replace('01_first_answer', '03_gray_release')}&reset")
        page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
        for source in ("%load_ext jupyter_dsserve", "%dsserve panel assistant"):
            run(page, source)
            page.get_by_text("Python 3 (ipykernel) | Idle").wait_for(timeout=60_000)
        told(demo, "%dsserve load assistant --model toy: --version v2", "1")
    panel = cell(page, "%dsserve panel assistant").locator(".jp-OutputArea-output > .widget-vbox")
    panel.scroll_into_view_if_needed()  # out of view it rests
    eventually(lambda: curves(page), lambda p: p and "v2 p95" in p[0], timeout_s=60)
    return panel


_CUT = """panel => {
  const pen = document.createElement("canvas").getContext("2d");
  return [...panel.querySelectorAll("input")].filter(each => {
    const look = getComputedStyle(each);
    pen.font = look.font;
    const room = each.clientWidth - parseFloat(look.paddingLeft) - parseFloat(look.paddingRight);
    return each.placeholder && pen.measureText(each.placeholder).width > room;
  }).map(each => each.placeholder);
}"""
_TITLES = """panel => [...panel.querySelectorAll(".infolayer .annotation")].map(each => {
  const box = each.getBoundingClientRect();
  return {text: each.textContent, left: box.left, right: box.right, top: box.top, bottom: box.bottom};
})"""


@pytest.mark.parametrize(("width", "columns"), [(880, 3), (629, 3), (369, 2)])
def test_on_a_narrow_page_no_title_of_a_panel_is_over_another_and_no_field_is_cut(
    page: Page, open_panel: Locator, width: int, columns: int
) -> None:
    """As where a sidebar is drawn over: the window's size stays."""
    open_panel.evaluate(f"panel => {{ panel.style.width = '{width}px' }}")

    def seen() -> list[Json]:
        found: list[Json] = open_panel.evaluate(_TITLES)
        return found[:6]

    try:
        plot = open_panel.locator(".js-plotly-plot .main-svg").first
        eventually(lambda: len({round(title["left"]) for title in seen()}), lambda num: num == columns)
        eventually(plot.bounding_box, lambda seen: seen and 0.9 * width < seen["width"] <= width)
        titles = seen()
        for one in titles:
            for other in titles:
                is_apart = one["right"] <= other["left"] or one["bottom"] <= other["top"]
                assert one is other or is_apart or other["right"] <= one["left"] or other["bottom"] <= one["top"], (
                    f"{one['text']} and {other['text']} are over one another at {width} px"
                )
        assert open_panel.evaluate(_CUT) == []
    finally:
        open_panel.evaluate("panel => { panel.style.width = '' }")


@pytest.mark.parametrize(
    ("first", "then"), [(60, 60), pytest.param(600, 3600, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]
)
def test_a_panel_that_stays_open_takes_no_more_memory(
    demo: Demo, page: Page, open_panel: Locator, first: int, then: int
) -> None:
    """``first`` until all is loaded and the plots are full; 3,600 are an hour. The kernel's objects are counted too,
    for what the system gave it grows in leaps at first."""
    open_panel.get_by_text("Events", exact=True).click()
    seen = []
    for num in (10, first, then):  # what the page says of the plots the kernel hears only after the first
        for passed in range(0, num, 60):  # a page that has no time falls behind, and is waited for
            seconds = min(60, num - passed)
            kernel, blocks, widgets = told(demo, _PASS_TIME.replace("NUM", str(seconds)), _USED)
            clock = told(demo, "", "_now")
            newest = f"by hand at {clock - clock % 10}"
            eventually(lambda: open_panel.text_content(), lambda text, it=newest: it in text, timeout_s=60)
            eventually(lambda: ago_s(curves(page)), lambda x: x and x[-1] == 0)
        in_kernel = {"kernel": kernel, "blocks": blocks, "widgets": widgets}
        seen.append({**in_kernel, "page": used_by(page), "nodes": nodes(page)})
    open_panel.get_by_text("Events", exact=True).click()
    _, before, after = seen
    allowed = {"blocks": 1.02, "page": 1.1, "nodes": 1.1} | ({"kernel": 1.1} if first >= 600 else {})
    assert {what: after[what] / before[what] for what in allowed if after[what] > allowed[what] * before[what]} == {}
    assert after["widgets"] == before["widgets"], seen
