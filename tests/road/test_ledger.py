"""Loads under a memory ledger, with toy workers: what does not fit waits, says why, and starts when it can."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from jupyter_dsserve.fleet import supervisor
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import AdmissionSettings, GatewayConfig
from tests.support import Caller, held, until

BUDGET = 10_000_000


def toy(num_bytes: int, **more: float) -> str:
    return f"toy:step_s=0.001,bytes={num_bytes}" + "".join(f",{k}={v}" for k, v in more.items())


@asynccontextmanager
async def serving(data_dir: Path, budget: int = BUDGET, **settings: float) -> AsyncIterator[Caller]:
    admission = AdmissionSettings(**settings)
    config = GatewayConfig(data_dir, port=0, drain_s=5, memory_budget_bytes=budget, admission=admission)
    gateway = Gateway(config)
    await gateway.start()
    try:
        async with Caller(gateway.url, gateway.admin_key) as caller:
            yield caller
    finally:
        await gateway.stop()


@pytest.fixture
async def small(data_dir: Path) -> AsyncIterator[Caller]:
    """A gateway that may hold 10 MB."""
    async with serving(data_dir) as caller:
        yield caller


async def ram(caller: Caller) -> Any:
    return next(d for d in (await caller.get("/api/ledger")).json()["devices"] if d["id"] == "cpu")


async def unload(caller: Caller, name: str, version: str = "v1") -> None:
    assert (await caller.post(f"/api/deployments/{name}/versions/{version}/unload")).status_code == 202


async def queued(caller: Caller, name: str, model: str, **fields: Any) -> Any:
    """Load it as v1, which cannot start now; its status once it waits."""
    await caller.load(name, "v1", model, wait=False, **fields)
    return await until(lambda: caller.version(name, "v1"), lambda v: v["state"] == "QUEUED" and v["reason"])


async def test_what_does_not_fit_waits_says_why_and_starts_when_memory_is_released(small: Caller) -> None:
    await small.load("one", "v1", toy(6_000_000))
    waiting = await queued(small, "two", toy(5_000_000))
    assert waiting["reason"] == (
        "waits for 4.8 MiB on cpu: of the 9.5 MiB that we may hold 3.8 MiB are free (one@v1 holds 5.7 MiB)"
    )
    (line,) = (await small.get("/api/ledger")).json()["waiting"]
    assert (line["owner"], line["priority"], line["bytes"]) == ("two@v1", "high", 5_000_000)
    assert line["reason"] == waiting["reason"]
    assert abs(line["since"] - time.time()) < 10
    await unload(small, "one")
    stopped = time.monotonic()
    await until(lambda: small.version("two", "v1"), lambda v: v["state"] in ("LOADING", "WARMING", "READY"))
    assert time.monotonic() - stopped < 5
    await small.settled("two", "v1", "READY")
    assert (await small.get("/api/ledger")).json()["waiting"] == []


async def test_the_ledger_names_who_holds_what(small: Caller) -> None:
    before = await ram(small)
    assert (before["capacity_bytes"], before["free_bytes"], before["held"]) == (BUDGET, BUDGET, [])
    await small.load("one", "v1", toy(3_000_000), replicas=2)
    memory = await until(lambda: ram(small), lambda m: all(h["taken_bytes"] for h in m["held"]))
    assert memory["free_bytes"] == BUDGET - 6_000_000
    assert sorted((h["owner"], h["replica"], h["bytes"], h["taken_bytes"]) for h in memory["held"]) == [
        ("one@v1", f"one@v1#{i}", 3_000_000, 3_000_000) for i in (0, 1)
    ]
    assert memory["device_bytes"] > 10 * BUDGET
    pids = [o["pid"] for o in memory["others"]]
    assert psutil.Process().pid not in pids, "the gateway is no other"


async def test_a_load_that_never_fits_is_refused_at_once_with_the_figures(small: Caller) -> None:
    body = {"name": "big", "version": "v1", "model": toy(8_000_001)}
    refused = await small.post("/api/deployments", json=body)
    assert refused.status_code == 409
    assert (
        "big@v1 needs 7.6 MiB, but a version of priority high may take 80% of a device: 7.6 MiB of the 9.5 MiB"
        in (refused.json()["error"]["message"])
    )
    assert (await small.get("/api/deployments")).json() == [], "what is refused is not registered"
    low = await small.post("/api/deployments", json=body | {"model": toy(3_500_000), "priority": "low"})
    assert low.status_code == 409
    assert "priority low may take 30%" in low.json()["error"]["message"]
    several = await small.post("/api/deployments", json=body | {"model": toy(3_000_000), "replicas": 3})
    assert "for each of 3 replicas, of which 2 fit" in several.json()["error"]["message"]


async def test_a_high_load_overtakes_a_low_one_and_both_get_their_turn(small: Caller) -> None:
    await small.load("one", "v1", toy(8_000_000))
    await queued(small, "low", toy(3_000_000), priority="low")
    high = await queued(small, "high", toy(8_000_000))
    assert (await small.version("low", "v1"))["reason"].endswith("; first comes high@v1")
    assert "first comes" not in high["reason"]
    await unload(small, "one")
    await small.settled("high", "v1", "READY")
    assert (await small.version("low", "v1"))["state"] == "QUEUED"
    await unload(small, "high")
    await small.settled("low", "v1", "READY")


async def test_a_low_load_that_has_waited_long_is_before_a_new_high_one(data_dir: Path) -> None:
    async with serving(data_dir, ageing_s=0.2) as caller:
        await caller.load("one", "v1", toy(8_000_000))
        await queued(caller, "low", toy(3_000_000), priority="low")
        await asyncio.sleep(0.5)
        await queued(caller, "high", toy(8_000_000))
        await unload(caller, "one")
        await caller.settled("low", "v1", "READY")
        assert (await caller.version("high", "v1"))["state"] == "QUEUED"


async def test_a_load_that_waits_can_be_cancelled_and_those_behind_move_up(small: Caller) -> None:
    await small.load("one", "v1", toy(4_000_000))
    await queued(small, "two", toy(8_000_000))
    behind = await queued(small, "three", toy(5_000_000))
    assert behind["reason"].endswith("first comes two@v1"), "it would fit, but nobody passes"
    await unload(small, "two")
    await small.settled("two", "v1", "STOPPED")
    await small.settled("three", "v1", "READY")


async def test_a_load_waits_no_longer_than_it_may(data_dir: Path) -> None:
    async with serving(data_dir, max_wait_s=0.3) as caller:
        await caller.load("one", "v1", toy(8_000_000))
        failed = await caller.load("two", "v1", toy(5_000_000))
        assert failed["state"] == "FAILED"
        assert "two@v1#0 waited 0.3 s for memory, as long as it may" in failed["reason"]
        assert "one@v1 holds 7.6 MiB" in failed["reason"]


async def test_a_load_that_takes_longer_than_its_class_may_is_ended(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(data_dir, timeout_high_s=100) as caller:
        await caller.load("slow", "v1", toy(1000, load_s=60), wait=False)
        await until(lambda: caller.version("slow", "v1"), lambda v: v["progress"] > 0)
        # So that it stands in the middle by then, however long its process takes to start.
        monkeypatch.setattr(supervisor, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + 101))
        failed = await caller.settled("slow", "v1")
        assert failed["state"] == "FAILED"
        assert "the load took over 100 s and was ended: it stands at weights" in failed["reason"]
        assert (await ram(caller))["held"] == []


async def test_a_load_that_stands_still_is_ended(data_dir: Path) -> None:
    async with serving(data_dir, stall_s=1.0) as caller:
        await caller.load("stuck", "v1", toy(1000, load_s=10), wait=False)
        loading = await until(lambda: caller.version("stuck", "v1"), lambda v: v["progress"] > 0)
        psutil.Process(loading["replicas"][0]["pid"]).suspend()
        failed = await caller.settled("stuck", "v1", "FAILED")
        assert "the load made no progress for" in failed["reason"]


async def test_a_worker_that_died_keeps_its_place(small: Caller) -> None:
    await small.load("one", "v1", toy(6_000_000))
    await queued(small, "two", toy(5_000_000))
    psutil.Process((await small.version("one", "v1"))["replicas"][0]["pid"]).kill()
    await until(
        lambda: small.get("/api/history"), lambda a: sum(e["kind"] == "ready" for e in a.json()) == 2, timeout_s=30
    )
    assert (await small.version("one", "v1"))["state"] == "READY"
    assert (await small.version("two", "v1"))["state"] == "QUEUED"


async def test_a_priority_may_change_while_the_version_stays(small: Caller) -> None:
    first = await small.load("one", "v1", toy(1000), priority="medium")
    assert first["settings"] == {"priority": "medium"}
    assert (await small.load("one", "v1", toy(1000)))["settings"] == {"priority": "medium"}
    assert (await small.load("one", "v1", toy(1000), priority="low"))["settings"] == {"priority": "low"}


# ---- several workers


async def scale(caller: Caller, num: int) -> Any:
    return await caller.post("/api/deployments/one/versions/v1/scale", json={"replicas": num})


async def ready(caller: Caller) -> list[str]:
    return [r["id"] for r in (await caller.version("one", "v1"))["replicas"] if r["state"] == "READY"]


async def test_a_version_grows_and_shrinks_under_the_ledger(small: Caller) -> None:
    await small.load("one", "v1", toy(2_000_000))
    grown = await scale(small, 3)
    assert (grown.status_code, grown.json()["num_replicas"]) == (202, 3)
    await until(lambda: ready(small), lambda ids: len(ids) == 3)
    assert (await ram(small))["free_bytes"] == BUDGET - 6_000_000
    with held(*(r["pid"] for r in (await small.version("one", "v1"))["replicas"])):
        asking = [asyncio.create_task(small.complete("one", max_tokens=300)) for _ in range(6)]
        await until(lambda: small.version("one", "v1"), lambda v: sum(r["in_flight"] for r in v["replicas"]) == 6)
        assert (await scale(small, 1)).status_code == 202
    assert {a.status_code for a in await asyncio.gather(*asking)} == {200}, "what runs on a leaving worker ends in full"
    await until(lambda: ram(small), lambda m: m["free_bytes"] == BUDGET - 2_000_000)
    assert await ready(small) == ["one@v1#0"], "the newest go"
    await scale(small, 2)
    await until(lambda: ready(small), lambda ids: ids == ["one@v1#0", "one@v1#1"])


async def test_a_worker_too_many_waits_for_memory_and_one_that_never_fits_is_refused(small: Caller) -> None:
    await small.load("one", "v1", toy(4_000_000))
    await small.load("two", "v1", toy(3_000_000))
    assert (await scale(small, 2)).status_code == 202
    line = await until(lambda: small.get("/api/ledger"), lambda a: a.json()["waiting"])
    assert line.json()["waiting"][0]["replica"] == "one@v1#1"
    assert (await small.complete("one")).status_code == 200, "the first serves meanwhile"
    await unload(small, "two")
    await until(lambda: ready(small), lambda ids: len(ids) == 2)
    refused = await scale(small, 3)
    assert refused.status_code == 409
    assert "of which 2 fit" in refused.json()["error"]["message"]


@pytest.mark.parametrize("num", [0, 65, -1, 1.5, "2"])
async def test_only_a_number_of_workers_from_1_to_64_is_taken(small: Caller, num: object) -> None:
    await small.load("one", "v1", toy(1000))
    refused = await small.post("/api/deployments/one/versions/v1/scale", json={"replicas": num})
    assert refused.status_code == 400
    assert "replicas" in refused.json()["error"]["message"]


async def test_what_is_not_loaded_is_not_scaled(small: Caller) -> None:
    await small.load("one", "v1", toy(1000))
    await unload(small, "one")
    await small.settled("one", "v1", "STOPPED")
    refused = await scale(small, 2)
    assert refused.status_code == 409
    assert "one@v1 is STOPPED, and only a loaded version is scaled" in refused.json()["error"]["message"]


# ---- a real model


async def test_a_model_takes_what_was_expected_and_its_kv_cache_keeps_to_what_it_got(data_dir: Path) -> None:
    async with serving(data_dir, 600 * 2**20) as caller:
        loaded = await caller.load("demo", "v1", "builtin:demo-v1", dtype="fp32")
        assert loaded["state"] == "READY", loaded["reason"]
        assert loaded["spec"]["kv_bytes"] == 0, "the version is what it was asked to be"
        (held,) = (await until(lambda: ram(caller), lambda m: m["held"][0]["bytes"] != m["held"][0]["expected_bytes"]))[
            "held"
        ]
        room = re.search(r"in up to (\d+) MiB", loaded["info"]["note"])
        assert room
        kv_bytes = int(room[1]) * 2**20
        # Half of what is left of its class's 480 MiB, and not the 256 MiB that all its sequences could fill.
        assert 60 * 2**20 < kv_bytes < 100 * 2**20
        assert abs(held["bytes"] - held["expected_bytes"]) < 0.15 * held["expected_bytes"]
        assert held["taken_bytes"] + kv_bytes == pytest.approx(held["bytes"], rel=0.05)
        assert (await caller.complete("demo")).status_code == 200
