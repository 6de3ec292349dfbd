"""Load tests of a real gateway with toy models, whose speed is known."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp.web
import pytest

from jupyter_dsserve.bench import run
from jupyter_dsserve.bench.measure import Window
from jupyter_dsserve.bench.picture import sweep_svg
from jupyter_dsserve.bench.plan import Plan
from jupyter_dsserve.bench.report import Report
from jupyter_dsserve.bench.run import Bench, run_blocking
from jupyter_dsserve.bench.target import Target
from jupyter_dsserve.bench.workload import arrivals
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.errors import InvalidRequest, NotFound, Unauthorized, Unavailable
from tests.support import Caller, until


async def pressed(gateway: Gateway, model: str = "demo", **options: Any) -> Report:
    return await Bench(Target.at(gateway.url, gateway.admin_key, model), Plan.read(**options)).run()


async def hold_up(for_s: float, pause_s: float) -> None:
    """The event loop, again and again."""
    while True:
        time.sleep(for_s)  # noqa: ASYNC251  (holding up the loop is the point)
        await asyncio.sleep(pause_s)


async def test_a_closed_loop_keeps_so_many_in_flight_and_finds_the_toys_speed(gateway: Gateway, caller: Caller) -> None:
    """A toy gives each sequence a token every step, however many there are: never sooner, on a busy machine later."""
    await caller.load("demo", "v1", "toy:step_s=0.04")
    seen: list[int] = []

    async def watch() -> None:
        while True:
            seen.append((await caller.version("demo", "v1"))["replicas"][0]["in_flight"])
            await asyncio.sleep(0.05)

    watching = asyncio.create_task(watch())
    report = await pressed(gateway, concurrency="2,8", seconds=2, output_tokens="4-10", prompt_tokens=40)
    watching.cancel()
    two, eight = report.points
    assert 1.7 < two.in_flight < 2.01
    assert 7 < eight.in_flight < 8.01
    assert sorted(seen)[-1] == 8, "the gateway saw more than were asked for"
    assert seen.count(8) >= 3
    for point in report.points:
        per_token_s = point.per_token_s.p50 or 0
        assert 0.035 < per_token_s < 0.2
        # While the machine stood still no token came: a gap between two of each answer, and in no median.
        stood_still = (point.gap_s.p99 or 0) / point.window_s
        usual = point.in_flight / per_token_s
        assert (0.6 - stood_still) * usual < point.output_tokens_per_s < 1.4 * usual
        assert point.prompt_tokens == pytest.approx(40, rel=0.2)
        assert 4 <= point.output_tokens <= 10
        assert (point.errors, point.unfinished) == ({}, 0)
    assert report.tokens_counted_by == "usage"
    assert report.error_details == {}


async def test_arrivals_at_a_rate_never_wait_for_answers(
    gateway: Gateway, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An answer takes 0.8 s or more and 40 arrive each second: some 32 or more are under way at once, those that have
    arrived while one is answered (Little's law). Clients that wait would be few."""
    await caller.load("demo", "v1", "toy:step_s=0.02")
    seen: list[run._Running] = []

    class Seen(run._Running):
        async def run(self) -> Window:
            seen.append(self)
            return await super().run()

    monkeypatch.setattr(run, "_Running", Seen)
    (point,) = (await pressed(gateway, rate=40, seconds=1, output_tokens=40, seed=5)).points
    (running,) = seen
    start_s, end_s = running._start_s, running._start_s + point.window_s
    drawn = [running._begun_s + at for at in itertools.takewhile(lambda at: at < 600, arrivals(40, 5, 0))]
    asked = sum(start_s <= at < end_s for at in drawn)
    assert point.answered == asked, "they did not come when they were drawn to"
    assert min(outcome.latency_s for outcome in running.outcomes if outcome.end == "answered") > 0.8
    most_s = max(outcome.latency_s for outcome in running.outcomes)

    def under_way(latency_s: float) -> float:
        return sum(max(0.0, min(at + latency_s, end_s) - max(at, start_s)) for at in drawn) / point.window_s

    assert 20 < under_way(0.8) <= point.in_flight + 0.01
    assert point.in_flight <= under_way(most_s) + 0.01
    assert point.unfinished == 0


async def test_errors_are_counted_by_kind_and_the_rest_is_measured(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.01,fail_rate=0.25")
    report = await pressed(gateway, concurrency=4, requests=40, output_tokens=10)
    (point,) = report.points
    assert sum(point.errors.values()) + point.answered == 40
    assert 8 <= point.errors["HTTP 500"] <= 12
    assert 0.09 < (point.latency_s.p50 or 0) < 1
    assert report.notes()[0] == "HTTP 500: the toy was told to fail: fail_rate=0.25"


async def test_a_version_that_goes_away_meanwhile_is_errors_and_no_end(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.002")
    target = Target.at(gateway.url, gateway.admin_key, "demo")
    bench = Bench(target, Plan.read(concurrency=2, seconds=4, output_tokens=10))
    pressing = asyncio.create_task(bench.run())
    await until(lambda: bench.progress().done > 0.1)
    await caller.post("/api/deployments/demo/versions/v1/unload")
    (point,) = (await pressing).points
    assert point.answered > 0
    assert point.errors["HTTP 503"] > 2


async def test_it_stops_by_itself_also_when_no_answer_ends(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.05")
    begun = time.monotonic()
    report = await pressed(gateway, concurrency=3, seconds=0.5, drain_s=2, output_tokens=100_000)
    assert time.monotonic() - begun < 60  # an answer takes more than an hour
    (point,) = report.points
    assert (point.answered, point.is_warm, point.latency_s.p50) == (0, False, None)
    assert point.in_flight == pytest.approx(3, abs=0.01)
    assert 0.3 * 3 / 0.05 < point.output_tokens_per_s < 1.3 * 3 / 0.05, "what flows is measured all the same"
    assert "the first wave had not ended after 2 s" in report.notes()[0]
    await until(lambda: caller.version("demo", "v1"), lambda v: v["replicas"][0]["in_flight"] == 0)


async def test_a_window_shorter_than_an_answer_lasts_until_some_have_begun(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.1")
    (point,) = (await pressed(gateway, concurrency=2, seconds=0.05, output_tokens=10)).points
    assert point.answered >= 1
    assert 0.4 < point.window_s < 20
    assert 0.3 * 2 / 0.1 < point.output_tokens_per_s < 1.3 * 2 / 0.1


async def test_a_point_of_no_request_says_why(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.02")
    report = await pressed(gateway, concurrency=2, seconds=0.05, drain_s=2, output_tokens=100_000)
    (point,) = report.points
    assert point.window_s >= 2
    assert f"No request began at concurrency 2 within {point.window_s:.3g} s" in report.notes()[1]


async def test_when_asking_itself_comes_late_the_report_says_so(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.002")
    holding = asyncio.create_task(hold_up(0.06, 0.001))
    report = await pressed(gateway, concurrency=1, seconds=0.5, output_tokens=5)
    holding.cancel()
    assert report.points[0].lag_s > 0.03
    assert report.notes()[-1].startswith("Asking itself came late, by ")


async def test_as_many_requests_count_as_were_wanted_though_some_are_asked_late(
    gateway: Gateway, caller: Caller
) -> None:
    """Such as those that were due before the window began, and asked within it."""
    await caller.load("demo", "v1", "toy:step_s=0.002")
    holding = asyncio.create_task(hold_up(0.05, 0.05))
    report = await pressed(gateway, rate="100,105,110,115,120,125,130,135,140,145", requests=10, output_tokens=5)
    holding.cancel()
    assert [point.answered for point in report.points] == 10 * [10]


async def test_what_is_asked_and_not_answered_in_time_is_unfinished(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.02")
    report = await pressed(gateway, rate=20, seconds=0.5, drain_s=2, output_tokens=100_000)
    (point,) = report.points
    assert point.unfinished > 3
    assert (point.answered, point.errors) == (0, {})


async def test_stopped_early_it_tells_what_it_has(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.002")
    target = Target.at(gateway.url, gateway.admin_key, "demo")
    bench = Bench(target, Plan.read(concurrency="1,2", seconds=3, output_tokens=10))
    running = asyncio.create_task(bench.run())
    await until(lambda: bench.progress(), lambda p: p.done > 0.51)
    assert bench.progress().text.startswith("concurrency 2: 2 in flight, ")
    bench.stop()
    report = await asyncio.wait_for(running, 30)
    assert report.is_interrupted
    whole, begun = report.points
    assert whole.window_s == pytest.approx(3, abs=0.01)
    assert begun.window_s < 2.9


async def test_stopped_while_it_looks_at_a_silent_server_it_says_so() -> None:
    silent = await asyncio.start_server(lambda reader, writer: asyncio.sleep(60), "127.0.0.1", 0)
    bench = Bench(Target.at(f"http://127.0.0.1:{silent.sockets[0].getsockname()[1]}", model="m"), Plan.read())
    running = asyncio.create_task(bench.run())
    await asyncio.sleep(0.1)
    bench.stop()
    with pytest.raises(Unavailable, match="stopped before"):
        await asyncio.wait_for(running, 30)
    silent.close()


async def test_a_chat_is_asked_with_its_template_in_the_count(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.001")
    report = await pressed(gateway, concurrency=1, requests=20, chat=True, prompt_tokens=50, output_tokens=5)
    (point,) = report.points
    assert point.answered == 20
    assert point.prompt_tokens == pytest.approx(50, rel=0.15)


async def test_the_model_is_found_if_there_is_one_and_asked_for_if_there_are_two(
    gateway: Gateway, caller: Caller
) -> None:
    with pytest.raises(InvalidRequest, match=r"name the model: .* has none yet"):
        await pressed(gateway, "")
    await caller.load("demo", "v1", "toy:step_s=0.001")
    assert (await pressed(gateway, "", requests=3, concurrency=1)).model == "demo"
    await caller.load("more", "v1", "toy:")
    with pytest.raises(InvalidRequest, match=r"name the model: .* has demo, more"):
        await pressed(gateway, "")


async def test_what_cannot_be_asked_at_all_is_an_error_before_it_begins(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:")
    with pytest.raises(NotFound, match="'nobody' is not a deployment"):
        await pressed(gateway, "nobody")
    with pytest.raises(Unauthorized, match="answers HTTP 401"):
        await Bench(Target.at(gateway.url, "dsk_wrong", "demo"), Plan.read()).run()
    with pytest.raises(Unavailable, match=r"nothing answers at http://127\.0\.0\.1:1/v1"):
        await Bench(Target.at("http://127.0.0.1:1", "", "demo"), Plan.read()).run()
    with pytest.raises(InvalidRequest, match="give one such as"):
        Target.at("127.0.0.1:8000")


@pytest.fixture
async def plain() -> AsyncIterator[str]:
    """The URL of a server that knows nothing but the least of OpenAI's API: no key, no usage, no ignore_eos."""

    async def complete(request: aiohttp.web.Request) -> aiohttp.web.StreamResponse:
        body = await request.json()
        if "ignore_eos" in body:
            return aiohttp.web.json_response({"detail": "what is ignore_eos?"}, status=422)
        answer = aiohttp.web.StreamResponse()
        await answer.prepare(request)
        for i in range(body["max_tokens"]):
            end = "length" if i == body["max_tokens"] - 1 else None
            await answer.write(b"data: " + json.dumps({"choices": [{"text": "x", "finish_reason": end}]}).encode())
            await answer.write(b"\n\n")
            await asyncio.sleep(0.002)
        return answer

    app = aiohttp.web.Application()
    app.router.add_post("/v1/completions", complete)
    runner = aiohttp.web.AppRunner(app)
    await runner.setup()
    await (site := aiohttp.web.TCPSite(runner, "127.0.0.1", 0)).start()
    assert site._server
    yield f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[attr-defined]
    await runner.cleanup()


async def test_another_server_is_sent_nothing_special_and_its_pieces_are_counted(plain: str) -> None:
    report = await Bench(Target.at(plain, model="m"), Plan.read(concurrency=2, requests=10, output_tokens=5)).run()
    (point,) = report.points
    assert (point.answered, point.output_tokens, point.prompt_tokens) == (10, 5, None)
    assert report.tokens_counted_by == "pieces"
    assert report.notes()[0] == "The server tells no usage: each piece of text was counted as one token."
    forced = await Bench(Target.at(plain, model="m"), Plan.read(requests=2, concurrency=1, ignore_eos=True)).run()
    assert set(forced.points[0].errors) == {"HTTP 422"}


async def test_a_report_is_a_table_json_and_rows(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.001")
    report = await pressed(gateway, concurrency="1,2", requests=10, output_tokens=5, slo="latency_s=50")
    punctual = tuple(dataclasses.replace(point, lag_s=0.0) for point in report.points)
    report = dataclasses.replace(report, points=punctual)  # without the note that a busy machine gets
    lines = str(report).splitlines()
    assert lines[2].split() == ["concurrency", "1", "2"]
    assert lines[3].startswith("goodput requests/s (latency_s=50)")
    tree = json.loads(report.to_json())
    assert tree["plan"]["slo"] == "latency_s=50"
    assert tree["points"][1]["latency_s"]["p95"] == report.points[1].latency_s.p95
    assert [row["concurrency"] for row in report.rows()] == [1, 2]
    assert report.rows()[0]["first_token_s_p99"] == report.points[0].first_token_s.p99
    html = report._repr_mimebundle_()["text/html"]
    assert html.count("<tr>") == len(lines) - 2 - 4 * 2, "the three percentiles of each time stand in one line"
    assert "&lt;b&gt;" in dataclasses.replace(report, model="<b>")._repr_mimebundle_()["text/html"]


async def test_the_plot_has_a_line_for_each_figure_and_the_slo(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.001")
    report = await pressed(gateway, rate="20,50", seconds=1, output_tokens=5, slo="first_token_s=30")
    figure = report.figure()
    assert [list(line.x) for line in figure.data] == [[20, 50]] * 5
    assert list(figure.data[0].y) == [p.output_tokens_per_s for p in report.points]
    assert list(figure.data[2].y) == [1000 * (p.first_token_s.p95 or 0) for p in report.points]
    assert [shape.y0 for shape in figure.layout.shapes] == [30_000]
    assert [each.text for each in figure.layout.annotations[3:]] == ["SLO 30000 ms"]
    svg = sweep_svg(figure)
    assert svg.count("<path") == 3 + 5 + 1
    assert svg.count(">SLO 30000 ms<") == 1
    heights = [float(y) for y in re.findall(r'd="M[\d.]+ ([\d.]+)h200"', svg)]
    assert heights == [24], "it is slower than all answers, and the scale ends with it"
    ends = [float(x) for x in re.findall(r"L([\d.]+) [\d.]+h\.1", svg)]
    assert ends == [250, 510, 510, 770, 770], "each line is as wide as its pane"
    assert "nan" not in svg
    alone = sweep_svg(dataclasses.replace(report, points=report.points[:1]).figure())
    assert alone.count("<path") == 3 + 5 + 1, "a sweep of one point has points"


async def test_without_awaiting_it_runs_in_a_thread_and_tells_how_far_it_is(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.001")
    target, seen = Target.at(gateway.url, gateway.admin_key, "demo"), []
    plan = Plan.read(concurrency="1,2", seconds=3, output_tokens=5)
    report = await asyncio.to_thread(run_blocking, target, plan, seen.append, 0.02)
    assert len(report.points) == 2
    assert sorted(p.done for p in seen) == [p.done for p in seen]
    assert any(0.05 < p.done < 0.45 for p in seen)
