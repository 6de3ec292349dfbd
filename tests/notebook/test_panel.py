"""The panel and its feed against a real gateway; what a browser adds is tested in a browser."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import ipywidgets
import nbformat
import numpy as np
import pytest
from ipywidgets.widgets.widget import _instances
from nbconvert import HTMLExporter

from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.notebook import panel as panel_module
from jupyter_dsserve.notebook import session
from jupyter_dsserve.notebook.panel import Panel, panel
from jupyter_dsserve.protocol.errors import Forbidden
from tests.support import Caller, Command, until

TOY = "toy:step_s=0.001"


@pytest.fixture
async def two(gateway: Gateway, caller: Caller) -> AsyncIterator[Caller]:
    """demo with v1=90 v2=10, and the kernel's session with this gateway."""
    await caller.load("demo", "v1", TOY)
    await caller.load("demo", "v2", TOY)
    await caller.put("/api/deployments/demo/route", json={"weights": {"v1": 90, "v2": 10}})
    await asyncio.to_thread(session.connect, gateway.url, gateway.admin_key)
    yield caller
    for live in list(panel_module._live.values()):
        await asyncio.to_thread(live.close)
    panel_module._live.clear()
    await until(lambda: feeds() == 0)


def feeds() -> int:
    return sum(t.name == "dsserve-feed" for t in threading.enumerate())


async def opened(name: str = "") -> Panel:
    return await asyncio.to_thread(panel, name)


async def by_hand(work: Callable[[], Any]) -> None:
    """As the kernel runs a callback: in a thread that is neither the feed's nor the gateway's."""
    await asyncio.to_thread(work)


async def weights(caller: Caller) -> Any:
    return (await caller.get("/api/deployments/demo")).json()["weights"]


def lines(view: Panel, version: str) -> dict[str, Any]:
    """The lines of a version, by what a mouse is told of them."""
    found = {trace.hovertemplate.partition("<extra>")[2]: trace for trace in view.plots.figure.data}
    return {
        k.removeprefix(f"{version} ").removesuffix("</extra>"): t for k, t in found.items() if k.startswith(version)
    }


def num_drawn(view: Panel) -> int:
    """How many live seconds of v1 are on the plot. Lines are there a moment before their points are, and minutes
    before seconds."""
    line, heard = lines(view, "v1").get("p95"), view.series._stats.get("v1", ())
    return 0 if line is None or line.x is None else min(len(line.x), len(heard))


def whole(view: Panel, look: Callable[[], Any]) -> Callable[[], Any]:
    """``look`` between two updates of the panel: within one, some of it is new and some of it old."""

    def looked() -> Any:
        with view._lock:
            return look()

    return looked


def shown(view: Panel) -> dict[str, int]:
    return {name: row.slider.value for name, row in view.versions.rows.items()}


async def test_a_slider_that_is_let_go_changes_the_route_and_the_others_follow(two: Caller) -> None:
    view = await opened()
    assert shown(view) == {"v1": 90, "v2": 10}
    await by_hand(lambda: setattr(view.versions.rows["v2"].slider, "value", 40))
    assert await weights(two) == {"v1": 60, "v2": 40}
    assert shown(view) == {"v1": 60, "v2": 40}
    assert not view.versions.rows["v1"].slider.continuous_update, "it would be applied on each pixel"


async def test_a_change_made_elsewhere_shows_up_and_is_not_overwritten(two: Caller) -> None:
    view = await opened("demo")
    await two.put("/api/deployments/demo/route", json={"weights": {"v1": 20, "v2": 80}})
    await until(lambda: shown(view), lambda s: s == {"v1": 20, "v2": 80})
    await by_hand(view.stop)  # so that the news do not come before the hand moves
    await until(lambda: feeds() == 0)  # nor by a look that had begun
    await two.put("/api/deployments/demo/route", json={"weights": {"v1": 5, "v2": 95}})
    await by_hand(lambda: setattr(view.versions.rows["v1"].slider, "value", 50))
    assert await weights(two) == {"v1": 5, "v2": 95}
    assert "somebody changed it meanwhile" in view._message.value
    assert shown(view) == {"v1": 5, "v2": 95}


async def test_only_what_can_take_traffic_has_a_slider_that_moves(two: Caller) -> None:
    view = await opened("demo")
    await two.post("/api/deployments/demo/versions/v2/unload")
    await two.settled("demo", "v2", "STOPPED")
    await until(lambda: view.versions.rows["v2"].load.description == "Load")
    assert shown(view) == {"v1": 100, "v2": 0}
    assert view.versions.rows["v1"].slider.disabled
    assert view.versions.rows["v2"].slider.disabled


async def test_buttons_load_unload_and_activate(two: Caller) -> None:
    view = await opened("demo")
    await by_hand(view.versions.rows["v2"].load.click)
    await two.settled("demo", "v2", "STOPPED")
    await until(lambda: view.versions.rows["v2"].load.description, lambda d: d == "Load")
    await by_hand(view.versions.rows["v2"].load.click)
    await two.settled("demo", "v2", "READY")
    await by_hand(view.versions.rows["v2"].activate.click)
    await until(lambda: weights(two), lambda w: w == {"v2": 100})
    await until(lambda: shown(view), lambda s: s == {"v1": 0, "v2": 100})


async def test_the_form_loads_another_version_and_shows_how_far_it_is(two: Caller) -> None:
    view = await opened("demo")
    await by_hand(view.versions.form.button.click)
    await until(lambda: "name a model first" in view._message.value)
    await until(lambda: not view.versions.form.button.disabled)
    view.versions.form.model.value = "toy:load_s=5"
    await by_hand(view.versions.form.button.click)
    row = await until(lambda: view.versions.rows.get("v3"))
    look = whole(view, lambda: (row.label.value, row.progress.value, row.progress.layout.display))
    _, _, display = await until(look, lambda seen: 0 < seen[1] < 1)
    assert display != "none"
    _, _, display = await until(look, lambda seen: "READY" in seen[0])
    assert display == "none"


async def test_a_load_that_takes_its_time_holds_up_nothing(two: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    found = asyncio.Event()

    async def slowly(path: object) -> str:  # as a large directory far away
        await found.wait()
        return ""

    monkeypatch.setattr("jupyter_dsserve.fleet.fleet.content_at", slowly)
    view = await opened("demo")
    monkeypatch.setattr(session.session().quick._http, "timeout", 0.5)
    view.versions.form.model.value = "toy:load_s=0.1"
    await asyncio.wait_for(by_hand(view.versions.form.button.click), 20)  # or the kernel waited
    assert view.versions.form.button.disabled, "a second click would load it twice"
    await asyncio.sleep(0.7)  # longer than the patience of the other buttons' client
    found.set()
    await until(lambda: "demo@v3 is loading" in view._message.value)
    await until(lambda: not view.versions.form.button.disabled)


async def test_what_goes_wrong_is_said_in_the_panel_and_stays_there(two: Caller) -> None:
    view = await opened("demo")
    view.versions.form.model.value = "/no/such/model"
    await by_hand(view.versions.form.button.click)
    await until(lambda: "does not exist" in view._message.value)
    seen = view._num_shown
    await until(lambda: view._num_shown >= seen + 3)
    assert "does not exist" in view._message.value, "the next numbers wiped it away"


async def test_a_gateway_that_hangs_holds_up_neither_stop_nor_close(tmp_path: Path) -> None:
    with Command(tmp_path / "data", "--load", f"demo={TOY}") as command:
        async with await command.caller() as caller:
            await caller.settled("demo", "v1", "READY")
            await caller.load("demo", "v2", TOY)
            await asyncio.to_thread(session.connect, str(caller.base_url), command.key)
            view = await opened("demo")
            command.signal(signal.SIGSTOP)
            moving = asyncio.create_task(by_hand(lambda: setattr(view.versions.rows["v2"].slider, "value", 50)))
            await asyncio.sleep(0.2)
            assert not moving.done()
            # A callback that asks the gateway gives up after 10 s.
            await asyncio.wait_for(by_hand(view.stop), 8)
            await asyncio.wait_for(by_hand(view.close), 8)
            command.signal(signal.SIGCONT)
            await moving
    panel_module._live.clear()
    await until(lambda: feeds() == 0)


async def test_the_plot_gets_a_point_for_every_second_of_each_version(two: Caller) -> None:
    view = await opened("demo")

    async def num_points() -> int:
        await two.complete()  # all the time, so that there are requests per second
        return num_drawn(view)

    await until(num_points, lambda num: num >= 3)
    with view._lock:  # or the next second is drawn meanwhile
        found = lines(view, "v1")
        p50, p95 = found["p50"], found["p95"]
        assert max(p50.x) <= 0
        assert p95.y[-1] >= p50.y[-1] > 0
        assert found["requests/s"].y[-1] > 0
        assert np.isnan(found["errors/s"].y).all()
        assert lines(view, "v2").keys() == found.keys()
    assert "0 of " in view.versions.rows["v1"].numbers.value


async def test_a_new_panel_begins_with_what_was_and_shows_an_hour_if_it_is_asked_to(two: Caller) -> None:
    """As after a restart of the kernel: nothing of it is in this process."""

    async def counted() -> int:
        await two.complete()
        told = (await two.get("/api/stats?deployment=demo&version=v1")).json()["series"]
        return sum(point["requests"] for series in told for point in series["points"])

    await until(counted)
    view = await opened("demo")
    await until(lambda: num_drawn(view) >= 1)
    await until(lambda: "v1" in view.series._stats)
    live = view.series._stats["v1"][0].at
    first = lines(view, "v1")["p95"]
    assert time.time() + float(first.x[0]) < live, "it was drawn at most now: before the first live second"
    assert first.y[0] > 0
    assert lines(view, "v1")["requests/s"].y[0] > 0
    await by_hand(lambda: setattr(view.span, "value", 3600.0))
    assert tuple(view.plots.figure.layout.xaxis.range) == (-3600, 0)
    assert (await opened("demo")).span.value == 3600, "it stays when the cell is run again"


async def test_running_the_cell_again_leaves_one_panel_one_plot_and_one_thread(two: Caller) -> None:
    first = await opened("demo")
    await until(lambda: feeds() == 1)
    second = await opened("demo")
    third = await opened("demo")
    await until(lambda: feeds() == 1)
    assert [view.plots.figure.comm is None for view in (first, second, third)] == [True, True, False]
    num_widgets = len(_instances)
    for _ in range(3):
        await opened("demo")
    assert len(_instances) == num_widgets, "widgets of closed panels are left in the kernel and in the browser"
    assert list(panel_module._live) == ["demo"]
    assert len(session.session().feed._listeners) == 1


async def test_a_panel_that_nobody_sees_asks_and_draws_nothing_and_is_whole_when_it_is_seen_again(two: Caller) -> None:
    view = await opened("demo")
    await until(lambda: num_drawn(view) >= 2)
    await by_hand(lambda: view.eye.set_state({"is_seen": False}))
    heard = view.series._stats["v1"]
    seen = heard[-1].at
    await until(lambda: sum(s.at > seen for s in list(heard)) >= 2)  # what was on its way is through
    num_asked, drawn = view._num_asked, lines(view, "v1")["p95"].x
    num = len(heard)
    await until(lambda: len(heard) >= num + 2)
    assert view._num_asked == num_asked
    assert lines(view, "v1")["p95"].x is drawn
    await by_hand(lambda: view.eye.set_state({"is_seen": True}))
    assert num_drawn(view) >= num + 2
    view.eye.set_state({"is_seen": False})
    view.eye._begin()
    assert view.eye.may_see, "while a cell runs the kernel cannot hear the page"


async def test_stop_ends_the_thread_and_keeps_the_picture(two: Caller) -> None:
    view = await opened("demo")
    await until(lambda: feeds() == 1)
    await by_hand(view._stop_button.click)
    await until(lambda: feeds() == 0)
    assert "stopped" in view._message.value
    assert view.plots.figure.comm is not None
    assert view._stop_button.disabled


async def test_two_deployments_have_two_panels_and_one_subscription(two: Caller) -> None:
    await two.load("other", "v1", TOY)
    one, other = await opened("demo"), await opened("other")
    await until(lambda: lines(one, "v2") and lines(other, "v1"))
    assert not lines(other, "v2")
    assert feeds() == 1


async def test_a_second_display_gets_a_figure_of_its_own(two: Caller) -> None:
    """One that is displayed twice takes no more updates."""
    view = await opened("demo")
    view._repr_mimebundle_()
    figure = view.plots.figure
    view._repr_mimebundle_()
    assert view.plots.figure is not figure
    assert view.plots.figure in view.children
    await until(lambda: lines(view, "v2"))


async def test_where_no_widget_shows_there_is_a_table_and_a_picture_of_the_curves_so_far(two: Caller) -> None:
    view = await opened("demo")

    async def num_points() -> int:
        await two.complete()
        return int(np.isfinite(view.series.curves("v1", time.time()).p95_ms).sum())

    await until(num_points, lambda num: num >= 3)
    again = await opened("demo")  # as when the cell is run again: it goes on with the curves
    output = nbformat.v4.new_output("display_data", data=again._repr_mimebundle_())
    cell = nbformat.v4.new_code_cell("%dsserve panel demo", outputs=[output])
    html, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert "<b>demo: v1=90 v2=10</b>" in html
    assert html.count("toy:step_s=0.001") == 2
    picture = re.search(r"<svg [^>]*>(?:(?!</svg>).)*p95 of the answers.*?</svg>", html)
    assert picture
    curve = re.search(r'd="M[\d. ]+L[\d. L]+" fill="none" stroke="#0072B2"', picture[0])
    assert curve, "v1 has no curve"


async def test_it_says_that_the_gateway_is_gone_and_goes_on_when_it_is_back(two: Caller, gateway: Gateway) -> None:
    view = await opened("demo")
    await until(lambda: lines(view, "v2"))
    gateway.fleet.events.close()  # ends the stream, as a gateway that ends does
    await until(lambda: "the gateway ended" in view._trouble.value)
    await until(lambda: view._trouble.value == "")


@pytest.mark.parametrize("what", ["history", "stats"])
async def test_a_past_that_is_refused_is_said_and_asked_for_until_it_is_told(
    two: Caller, what: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise Forbidden(f"no {what} for you")

    await opened("demo")
    with monkeypatch.context() as patched:
        patched.setattr(session.session().quick, what, refuse, raising=True)
        view = await opened("demo")
        await until(lambda: f"no {what} for you" in view._trouble.value)
        assert view._minute < 0 or what == "history"
    await until(lambda: view._trouble.value == "")
    await until(lambda: view._minute > 0 and view._past.marks(0.0))


async def test_a_panel_of_a_name_that_is_none_says_which_there_are_and_draws_nothing_until_it_is_one(
    two: Caller,
) -> None:
    view = await opened("nope")
    assert "no such deployment: there is demo (%dsserve panel demo)" in view._title.value
    assert "no such deployment: there is demo" in view._repr_mimebundle_()["text/html"]
    assert view.plots.figure not in view.children
    assert view.playground not in view.children
    view.versions.form.model.value = TOY
    await by_hand(view.versions.form.button.click)
    await until(whole(view, lambda: view.plots.figure in view.children and view.playground in view.children))
    assert "served at" in view._title.value
    first = view.plots.figure
    await two.delete("/api/deployments/nope")
    await until(whole(view, lambda: "no such deployment" in view._title.value))
    assert view.plots.figure not in view.children
    await two.load("nope", "v1", TOY)
    await until(whole(view, lambda: view.plots.figure in view.children))
    assert view.plots.figure is not first, "one that is displayed again takes no more updates"
    num_widgets = len(_instances)
    await by_hand((await opened("other"))._stop_button.click)
    await by_hand(panel_module._live.pop("other").close)
    assert len(_instances) == num_widgets, "what did not stand in it is left in the kernel"


async def test_a_panel_of_nothing_yet_offers_to_load(gateway: Gateway, caller: Caller) -> None:
    await asyncio.to_thread(session.connect, gateway.url, gateway.admin_key)
    view = await opened()
    assert "nothing is loaded yet" in view._title.value
    view.versions.form.model.value = TOY
    await by_hand(view.versions.form.button.click)
    await until(lambda: "v1" in view.versions.rows)
    await caller.settled("demo", "v1", "READY")
    assert isinstance(view, ipywidgets.VBox)
    await asyncio.to_thread(view.close)
    panel_module._live.clear()
