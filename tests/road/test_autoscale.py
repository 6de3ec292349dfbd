"""Workers by what is asked, with toy workers: up under load, down after it, to rest, and back with the next request."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import psutil
import pytest

from jupyter_dsserve.fleet import autoscale as autoscale_module
from tests.support import Caller, until, worker_pids

SLOW = "toy:step_s=0.02,load_s=0.3,bytes=1000"


@pytest.fixture(autouse=True)
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looked at five times a second, and not once."""
    monkeypatch.setattr(autoscale_module, "TICK_S", 0.2)
    monkeypatch.setattr(autoscale_module, "UP_S", 0.6)


async def autoscale(caller: Caller, **fields: Any) -> Any:
    return await caller.put("/api/deployments/demo/versions/v1/autoscale", json=fields)


async def kinds(caller: Caller) -> list[str]:
    return [e["kind"] for e in (await caller.get("/api/history")).json()]


async def num_ready(caller: Caller) -> int:
    return sum(r["state"] == "READY" for r in (await caller.version("demo", "v1"))["replicas"])


async def test_it_grows_under_load_and_shrinks_after_it(caller: Caller) -> None:
    await caller.load("demo", "v1", SLOW)
    set_to = await autoscale(caller, min=1, max=3, target_in_flight=2, stable_s=1.5)
    assert set_to.status_code == 200
    assert set_to.json()["settings"]["autoscale"]["max"] == 3
    is_grown, codes = asyncio.Event(), set[int]()

    async def ask() -> None:
        """Until it has grown, however long its workers take to start."""
        while not is_grown.is_set():
            codes.add((await caller.complete(max_tokens=50)).status_code)

    asking = [asyncio.create_task(ask()) for _ in range(12)]
    await until(lambda: num_ready(caller), lambda n: n == 3)
    is_grown.set()
    await asyncio.gather(*asking)
    assert codes == {200}
    await until(lambda: num_ready(caller), lambda n: n == 1)
    reasons = [e["reason"] for e in (await caller.get("/api/history")).json() if e["kind"] == "scaled"]
    assert [r.partition(":")[0] for r in reasons[-2:]] == ["from 3 workers to 2", "from 2 workers to 1"]
    assert len(reasons) <= 4  # up at once, or twice where the requests were slow to come; `plan` has tests of its own


async def test_it_rests_and_the_next_request_waits_for_it(caller: Caller) -> None:
    await caller.load("demo", "v1", SLOW)
    await autoscale(caller, min=0, max=2, idle_s=0.5)
    resting = await caller.settled("demo", "v1", "STOPPED")
    assert resting["reason"] == "at rest, as nobody asked it: the next request loads it"
    assert resting["weight"] == 100
    assert resting["replicas"] == []
    assert [m["id"] for m in (await caller.get("/v1/models")).json()["data"]] == ["demo"], "it can answer"
    assert (await caller.get("/health/ready")).status_code == 200
    answers = await asyncio.gather(*(caller.complete() for _ in range(3)), caller.complete("demo@v1"))
    assert {a.status_code for a in answers} == {200}
    assert (await kinds(caller)).count("woken") == 1
    await caller.settled("demo", "v1", "STOPPED")


async def test_a_request_waits_for_it_no_longer_than_its_own_time(caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:load_s=1.5,bytes=1000")
    await autoscale(caller, min=0, max=1, idle_s=0.2)
    await caller.settled("demo", "v1", "STOPPED")
    late = await caller.complete(timeout_s=0.4)
    assert late.status_code == 504
    assert "0.4 s has passed in line for demo@v1" in late.json()["error"]["message"]
    # It was woken all the same, and may be at rest again.
    await until(lambda: kinds(caller), lambda seen: seen.count("ready") == 2)


async def test_what_rests_is_loaded_unloaded_and_kept_awake_like_any_other(caller: Caller) -> None:
    await caller.load("demo", "v1", SLOW)
    await autoscale(caller, min=0, max=1, idle_s=0.2)
    await caller.settled("demo", "v1", "STOPPED")
    await caller.delete("/api/deployments/demo/versions/v1/autoscale")
    assert (await caller.settled("demo", "v1", "READY"))["settings"]["autoscale"] is None
    await autoscale(caller, min=0, max=1, idle_s=0.2)
    await caller.settled("demo", "v1", "STOPPED")
    await caller.post("/api/deployments/demo/versions/v1/unload")
    unloaded = await caller.version("demo", "v1")
    assert (unloaded["state"], unloaded["reason"], unloaded["weight"]) == ("STOPPED", "", 0)
    assert (await caller.complete()).status_code == 503


async def test_a_load_that_fails_after_a_wake_is_an_error_and_not_a_wait(caller: Caller, gateway: Any) -> None:
    await caller.load("demo", "v1", "toy:load_s=3,bytes=1000")  # it is killed while it loads
    await autoscale(caller, min=0, max=1, idle_s=0.2)
    await caller.settled("demo", "v1", "STOPPED")
    asking = asyncio.create_task(caller.complete())
    woken = await until(lambda: caller.version("demo", "v1"), lambda v: v["replicas"] and v["replicas"][0]["pid"])
    psutil.Process(woken["replicas"][0]["pid"]).kill()
    answer = await asking
    assert answer.status_code == 503
    assert "FAILED" in answer.json()["error"]["message"]
    assert not worker_pids(os.getpid())


async def test_limits_that_cannot_be_are_refused(caller: Caller) -> None:
    await caller.load("demo", "v1", SLOW)
    for fields, said in (({"min": 3, "max": 2}, "max is 2"), ({"max": 0}, "max"), ({"min": 0}, "max"), ({}, "max")):
        refused = await autoscale(caller, **fields)
        assert refused.status_code == 400
        assert said in refused.json()["error"]["message"]
    await autoscale(caller, max=2)
    by_hand = await caller.post("/api/deployments/demo/versions/v1/scale", json={"replicas": 2})
    assert by_hand.status_code == 409
    assert "scaled automatically" in by_hand.json()["error"]["message"]


async def test_one_that_rests_and_stands_in_for_another_is_woken(caller: Caller) -> None:
    await caller.load("demo", "v1", SLOW)
    await autoscale(caller, min=0, max=1, idle_s=0.2)
    await caller.settled("demo", "v1", "STOPPED")
    await caller.load("demo", "v2", "toy:step_s=0,fail_rate=1")
    await caller.put("/api/deployments/demo/route", json={"weights": {"v2": 100}})
    await caller.put("/api/deployments/demo/policy", json={"fallback": "v1"})
    answer = await asyncio.wait_for(caller.complete(), 30)
    assert (answer.status_code, answer.headers["X-DSServe-Version"]) == (200, "v1")


async def test_one_in_a_rollout_does_not_rest_before_that_is_over(caller: Caller) -> None:
    await caller.load("demo", "v1", SLOW)
    await caller.load("demo", "v2", SLOW)
    begun = await caller.post("/api/deployments/demo/rollout", json={"candidate": "v2"})
    assert begun.status_code < 300
    await autoscale(caller, min=0, max=1, idle_s=0.1)
    await asyncio.sleep(0.7)
    assert (await caller.version("demo", "v1"))["state"] == "READY"
    await caller.post("/api/deployments/demo/rollout/rollback")
    await caller.settled("demo", "v1", "STOPPED")
