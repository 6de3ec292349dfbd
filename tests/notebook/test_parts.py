"""The parts of a panel against a real gateway: its rollout, its playground, and what can be folded out."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest

from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.notebook import session
from jupyter_dsserve.notebook.panel import Panel
from jupyter_dsserve.notebook.parts.memory import bar
from jupyter_dsserve.protocol.records import DeviceMemory, HeldMemory, OtherMemory
from tests.notebook.test_panel import by_hand, feeds, opened, two, weights, whole
from tests.support import Caller, until

__all__ = ["two"]  # a fixture

SLOW = "toy:step_s=0.05"


@asynccontextmanager
async def traffic(caller: Caller) -> AsyncIterator[None]:
    """Eight callers that each ask again when answered."""

    async def ask() -> None:
        while True:
            with contextlib.suppress(httpx.TransportError):
                await caller.complete(max_tokens=8, temperature=0)

    asking = [asyncio.create_task(ask()) for _ in range(8)]
    try:
        yield
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


@pytest.fixture
async def slower(gateway: Gateway, caller: Caller) -> AsyncIterator[Panel]:
    """A panel of demo, whose v1 has all traffic and whose v2 is five times slower."""
    await caller.load("demo", "v1", "toy:step_s=0.01")
    await caller.load("demo", "v2", SLOW)
    await asyncio.to_thread(session.connect, gateway.url, gateway.admin_key)
    view = await opened("demo")
    yield view
    await asyncio.to_thread(view.close)
    await until(lambda: feeds() == 0)


def begin(view: Panel) -> None:
    """Fill in the form, and press its button."""
    view.rollout.steps.value = "20, 50, 100"
    view.rollout.interval.value = 2
    view.rollout.requests.value = 10
    view.rollout.start.click()


async def test_a_rollout_is_begun_shows_its_verdict_and_its_rollback_is_marked_on_the_plot(
    slower: Panel, caller: Caller
) -> None:
    assert slower.rollout.candidate.options == ("v2",)
    async with traffic(caller):
        await by_hand(lambda: begin(slower))
        assert "has begun" in slower._message.value
        await until(whole(slower, lambda: "PROGRESSING" in slower.rollout.view.value))
        assert "v2 moves the shares" in slower.versions.rows["v1"].slider.tooltip
        assert slower.versions.rows["v1"].slider.disabled
        assert slower.rollout.start.disabled
        await until(whole(slower, lambda: "ROLLED_BACK" in slower.rollout.view.value), timeout_s=60)
    assert "latency" in slower.rollout.view.value
    assert not slower.versions.rows["v1"].slider.disabled
    assert not slower.rollout.start.disabled
    heads = slower.plots.figure.data[0]
    await until(whole(slower, lambda: heads.text is not None and "rollout rolled back v2" in str(heads.text)))
    assert any("latency" in text for text in heads.text), "it does not say why"
    assert "rollback" in [word.text for word in slower.plots.figure.layout.annotations]
    await until(lambda: "rollout rolled back v2" in slower.events.table.value)
    assert slower.events.table.value.index("rolled back") < slower.events.table.value.index("rollout started")


async def test_a_rollout_is_paused_resumed_promoted_and_undone_by_hand(slower: Panel, caller: Caller) -> None:
    controls = slower.rollout
    assert controls.pause.disabled
    assert controls.promote.disabled
    await by_hand(lambda: begin(slower))
    await until(lambda: weights(caller), lambda w: w == {"v1": 80, "v2": 20})
    await until(lambda: not controls.pause.disabled)
    await by_hand(controls.pause.click)
    assert "PAUSED" in controls.view.value
    assert controls.pause.description == "Resume"
    await by_hand(controls.pause.click)
    assert "PROGRESSING" in controls.view.value
    assert controls.pause.description == "Pause"
    await by_hand(controls.promote.click)
    assert "PROMOTED" in controls.view.value
    assert await weights(caller) == {"v2": 100}
    await caller.settled("demo", "v1", "STOPPED")
    await by_hand(controls.rollback.click)
    await until(lambda: weights(caller), lambda w: w == {"v1": 100})


async def test_steps_that_are_none_are_refused_in_words(slower: Panel) -> None:
    slower.rollout.steps.value = "five"
    await by_hand(slower.rollout.start.click)
    assert "write percents, such as 5, 25, 50, 100" in slower._message.value


async def test_without_a_second_version_there_is_nothing_to_roll_out(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", SLOW)
    await asyncio.to_thread(session.connect, gateway.url, gateway.admin_key)
    view = await opened("demo")
    assert view.rollout.start.disabled
    assert "second version" in view.rollout.start.tooltip
    await asyncio.to_thread(view.close)


def askers() -> int:
    return sum(t.name == "dsserve-playground" for t in threading.enumerate())


async def test_the_playground_streams_two_answers_and_marks_their_differences(two: Caller) -> None:
    view = await opened("demo")
    ground = view.playground
    assert [each.value for each in ground.chosen] == ["v1", "v2"]
    ground.prompt.value, ground.max_tokens.value = "tell me", 20
    await by_hand(ground.button.click)
    await until(lambda: all("20 tokens" in column.value for column in ground.columns))
    assert [f"demo@v{i + 1} · 20 tokens" in column.value for i, column in enumerate(ground.columns)] == [True, True]
    assert "<mark>" not in ground.columns[0].value, "toys of one kind say the same"
    await until(lambda: askers() == 0)
    assert ground.button.description == "Ask"


async def test_the_playground_shows_what_came_so_far_and_stop_frees_the_place_on_the_gateway(slower: Panel) -> None:
    ground = slower.playground
    ground.prompt.value, ground.max_tokens.value = "tell me", 10_000
    await by_hand(ground.button.click)
    pieces = await until(lambda: ground.columns[1].value, lambda html: len(html) > 300)
    await until(lambda: ground.columns[1].value, lambda html: len(html) > len(pieces))
    assert ground.button.description == "Stop"
    await by_hand(ground.button.click)
    await until(lambda: askers() == 0)
    assert "stopped" in ground.columns[0].value
    await until(lambda: slower.series.latest("v2"), lambda stats: stats is not None and stats.in_flight == 0)


async def test_a_panel_that_is_closed_ends_what_its_playground_asks(two: Caller) -> None:
    view = await opened("demo")
    view.playground.prompt.value, view.playground.max_tokens.value = "tell me", 10_000
    await by_hand(view.playground.button.click)
    await until(lambda: askers() == 1)
    await asyncio.to_thread(view.close)
    await until(lambda: askers() == 0)


async def test_an_error_in_the_playground_is_said_in_its_column(two: Caller) -> None:
    view = await opened("demo")
    view.playground.prompt.value, view.playground.max_tokens.value = "tell me", 100_000
    await two.post("/api/deployments/demo/versions/v2/unload")
    await two.settled("demo", "v2", "STOPPED")

    def ask_the_one_that_just_went() -> None:
        with view._lock:  # or the panel's next look takes it from the list before it is asked
            view.playground.chosen[1].options = ("v2", "")
            view.playground.chosen[1].value = "v2"
            view.playground.button.click()

    await by_hand(ask_the_one_that_just_went)
    await until(lambda: "#D55E00" in view.playground.columns[1].value)
    await asyncio.to_thread(view.close)


async def test_what_is_folded_away_asks_nothing_and_what_is_folded_out_shows_it(two: Caller) -> None:
    view = await opened("demo")
    asked: list[str] = []
    view.memory.ask, ask = lambda: asked.append("memory"), view.memory.ask  # type: ignore[method-assign]
    seen = view._num_shown
    await until(lambda: view._num_shown >= seen + 2)
    assert asked == []
    view.memory.ask = ask  # type: ignore[method-assign]
    await by_hand(lambda: setattr(view.memory, "selected_index", 0))
    assert "demo@v1#0" in view.memory.books.value
    await by_hand(lambda: setattr(view.logs, "selected_index", 0))
    assert view.logs.version.value == "v1"
    assert "demo@v1#0" in view.logs.text.value


async def test_events_are_there_from_the_start(two: Caller) -> None:
    view = await opened("demo")
    await until(lambda: "registered v1" in view.events.table.value)
    assert view.events.table.value.index("v1=90 v2=10") < view.events.table.value.index("registered v1")


def test_the_bar_of_a_device_shows_who_holds_how_much() -> None:
    device = DeviceMemory(
        "cpu", 80, 40, [HeldMemory("demo@v2", "demo@v2#0", 40, 0, 0)], 100, [OtherMemory("<x>", 1, 20)]
    )
    html = bar(device)
    assert 'title="demo@v2#0: 40 B" style="width:40.00%;background:#D55E00' in html
    assert 'title="&lt;x&gt;: 20 B" style="width:20.00%' in html
