"""What /metrics says of what really happened, in the words that Prometheus takes."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import GatewayConfig
from tests.support import Caller, held, until

V1 = {"deployment": "demo", "version": "v1"}


async def scraped(caller: Caller) -> str:
    answer = await caller.get("/metrics")
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
    return answer.text


def values(text: str, name: str, **labels: str) -> dict[tuple[str, ...], float]:
    """By the labels that are not given, in the order of their names."""
    return {
        tuple(value for label, value in sample.labels.items() if label not in labels): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    }


def value(text: str, name: str, **labels: str) -> float:
    """Of the one that has these labels."""
    [found] = values(text, name, **labels).values()
    return found


async def test_a_call_is_in_the_counters_and_histograms_of_its_version(caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.06")
    began = time.monotonic()
    for _ in range(3):
        assert (await caller.complete(max_tokens=11)).status_code == 200
    assert (await caller.complete(n=2, prompt=["a", "b"], max_tokens=11)).status_code == 200
    took_s = time.monotonic() - began
    text = await scraped(caller)
    assert value(text, "gen_ai_server_request_duration_seconds_count", **V1, outcome="ok") == 4
    assert value(text, "dsserve_requests_total", **V1) == 7
    assert value(text, "dsserve_request_errors_total", **V1) == 0
    assert value(text, "dsserve_tokens_total", **V1, type="output") == 7 * 11
    assert value(text, "dsserve_tokens_total", **V1, type="input") > 0
    assert value(text, "gen_ai_server_time_to_first_token_seconds_count", **V1) == 7
    assert value(text, "gen_ai_server_time_per_output_token_seconds_count", **V1) == 7
    mean_s = value(text, "gen_ai_server_time_per_output_token_seconds_sum", **V1) / 7
    assert 0.005 <= mean_s < took_s
    buckets = values(text, "gen_ai_server_time_per_output_token_seconds_bucket", **V1)
    assert buckets["0.0025",] == 0
    assert buckets["+Inf",] == 7
    assert value(text, "dsserve_ready_workers", **V1) == value(text, "dsserve_wanted_workers", **V1) == 1
    assert value(text, "dsserve_route_weight_ratio", **V1) == 1
    assert value(text, "dsserve_version_state", **V1, state="READY") == 1
    assert value(text, "dsserve_version_state", **V1, state="FAILED") == 0
    assert value(text, "dsserve_breaker_state", **V1, worker="demo@v1#0", state="closed") == 1
    assert value(text, "dsserve_ledger_held_bytes", worker="demo@v1#0", device="cpu") > 0
    assert value(text, "dsserve_events_total", **V1, kind="ready") == 1
    assert value(text, "dsserve_calls_running") == 0


async def test_every_way_a_call_ends_has_its_outcome(caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.005")
    await caller.load("bad", "v1", "toy:step_s=0.005,fail_rate=1")
    await caller.put("/api/deployments/bad/policy", json={"breaker_failures": 2})
    assert (await caller.complete()).status_code == 200
    assert (await caller.complete("nobody")).status_code == 404
    assert (await caller.complete(timeout_s=0.02, max_tokens=1000)).status_code == 504
    assert (await caller.post("/v1/embeddings", json={"model": "demo", "input": "x"})).status_code == 400
    for _ in range(2):
        assert (await caller.complete("bad")).status_code == 500
    await caller.put("/api/deployments/demo/policy", json={"rate": 0.001, "burst": 1})
    leaving = caller.stream_complete(max_tokens=1000)
    await anext(leaving)
    await leaving.aclose()
    assert (await caller.complete()).status_code == 429

    def outcomes(text: str) -> dict[tuple[str, ...], float]:
        found = values(text, "gen_ai_server_request_duration_seconds_count")
        return {(key[0], key[1]): count for key, count in found.items()}

    text = await until(lambda: scraped(caller), lambda t: outcomes(t).get(("demo", "cancelled")) == 1)
    assert outcomes(text) == {
        ("demo", "ok"): 1,
        ("", "client_error"): 1,
        ("demo", "timeout"): 1,
        ("demo", "client_error"): 1,
        ("bad", "error"): 2,
        ("demo", "cancelled"): 1,
        ("demo", "rate_limited"): 1,
    }
    bad = {"deployment": "bad", "version": "v1"}
    assert value(text, "dsserve_breaker_state", **bad, worker="bad@v1#0", state="open") == 1
    assert value(text, "dsserve_events_total", **bad, kind="breaker_open") == 1


async def test_a_stream_that_ends_in_an_error_is_none_that_went_well(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.02")
    stream = caller.stream_complete(max_tokens=1000)
    await anext(stream)
    [replica] = gateway.fleet.version("demo", "v1").replicas
    replica.lost()
    assert [piece async for piece in stream][-1] == "[DONE]"
    text = await scraped(caller)
    assert values(text, "gen_ai_server_request_duration_seconds_count") == {("demo", "error", "v1"): 1}


async def test_waiting_in_line_is_seen_while_it_lasts_and_afterwards(caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.01")
    await caller.put("/api/deployments/demo/policy", json={"max_in_flight": 1})
    with held((await caller.version("demo", "v1"))["replicas"][0]["pid"]):
        calls = [asyncio.create_task(caller.complete(max_tokens=20)) for _ in range(3)]
        length = {**V1, "place": "gateway"}
        text = await until(lambda: scraped(caller), lambda t: value(t, "dsserve_queue_length", **length) == 2)
    assert value(text, "dsserve_in_flight", **V1) == 1
    assert value(text, "dsserve_calls_running") == 3
    await asyncio.gather(*calls)
    text = await scraped(caller)
    assert value(text, "dsserve_queue_seconds_count", **V1) == 3
    assert value(text, "dsserve_queue_seconds_sum", **V1) >= 0.2 + 0.3
    assert values(text, "dsserve_queue_seconds_bucket", **V1)["0.1",] == 1


async def test_what_is_deleted_leaves_no_series_but_that_of_what_happened(caller: Caller) -> None:
    await caller.load("gone", "v1", "toy:step_s=0")
    await caller.complete("gone")
    assert 'deployment="gone"' in await scraped(caller)
    await caller.delete("/api/deployments/gone")
    text = await until(lambda: scraped(caller), lambda t: not values(t, "dsserve_version_state", deployment="gone"))
    left = [line for line in text.splitlines() if 'deployment="gone"' in line]
    assert left
    assert all(line.startswith("dsserve_events_total") for line in left), left


async def test_it_needs_a_key_that_may_look(caller: Caller, gateway: Gateway) -> None:
    async with Caller(gateway.url, "wrong") as stranger:
        assert (await stranger.get("/metrics")).status_code == 401
    key = (await caller.post("/api/keys", json={"name": "app"})).json()["key"]
    async with Caller(gateway.url, key) as app:
        assert (await app.get("/metrics")).status_code == 403


async def test_opened_it_needs_none_and_nothing_else_is_open(tmp_path: Path) -> None:
    gateway = Gateway(GatewayConfig(tmp_path / "data", port=0, open_metrics=True))
    await gateway.start()
    try:
        async with Caller(gateway.url, "none") as stranger:
            assert "dsserve_build_info" in await scraped(stranger)
            assert (await stranger.get("/api/status")).status_code == 401
    finally:
        await gateway.stop()


async def test_promtool_finds_nothing_to_mend(caller: Caller) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed here: apt-get install prometheus")
    await caller.load("demo", "v1", "toy:step_s=0")
    await caller.load("demo", "v2", "toy:step_s=0")
    await caller.post("/api/deployments/demo/rollout", json={"candidate": "v2"})
    await caller.complete()
    text = await scraped(caller)
    assert value(text, "dsserve_rollout_state", deployment="demo", candidate="v2", state="PROGRESSING") == 1
    check = await asyncio.to_thread(
        subprocess.run, [promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False
    )
    assert (check.returncode, check.stdout, check.stderr) == (0, "", "")
