"""A minute of traffic while versions come and go. Long: `make test-long`."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections import Counter

import pytest

from jupyter_dsserve.gateway.server import Gateway
from tests.engine.test_loop import toy_text
from tests.support import Caller, until

SECONDS = 60
TOY = "toy:step_s=0.005"


@pytest.mark.long
async def test_swaps_for_a_minute_lose_no_request_and_leave_nothing(caller: Caller, gateway: Gateway) -> None:
    for version in ("v1", "v2"):
        await caller.load("demo", version, TOY)
    end = time.monotonic() + SECONDS
    answers: Counter[tuple[int, str]] = Counter()

    async def ask(number: int) -> None:
        draw = random.Random(number)
        while time.monotonic() < end:
            num_tokens = draw.randint(1, 60)
            answer = await caller.complete(max_tokens=num_tokens)
            is_whole = answer.json()["choices"][0]["text"] == toy_text("hello", num_tokens)
            answers[answer.status_code, "whole" if is_whole else "cut"] += 1

    asking = asyncio.gather(*(ask(number) for number in range(32)))
    for turn in range(1000):
        if time.monotonic() > end:
            break
        old, new = ("v1", "v2") if turn % 2 == 0 else ("v2", "v1")
        assert (await caller.post("/api/deployments/demo/activate", json={"version": new})).status_code == 200
        await caller.settled("demo", old, "STOPPED")
        await caller.post(f"/api/deployments/demo/versions/{old}/load")
        await caller.settled("demo", old, "READY")
    await asking
    assert answers.keys() == {(200, "whole")}
    assert sum(r.in_flight for v in ("v1", "v2") for r in gateway.fleet.version("demo", v).replicas) == 0


@pytest.mark.long
async def test_callers_that_leave_and_workers_that_die_leave_nothing_behind(caller: Caller, gateway: Gateway) -> None:
    await caller.load("demo", "v1", TOY, replicas=2)
    version, end, draw = gateway.fleet.version("demo", "v1"), time.monotonic() + SECONDS, random.Random(1)

    async def leave() -> None:
        while time.monotonic() < end:
            try:
                await asyncio.wait_for(caller.complete(max_tokens=1000, stream=draw.random() < 0.5), draw.random())
            except asyncio.TimeoutError:
                continue

    leaving = asyncio.gather(*(leave() for _ in range(16)))
    while time.monotonic() < end:
        await asyncio.sleep(12)
        if ready := [r.pid for r in version.replicas]:
            os.kill(draw.choice(ready), signal.SIGKILL)
    await leaving
    await until(lambda: [r.state.value for r in version.replicas] == ["READY", "READY"])
    await until(lambda: all(r.in_flight == r.heartbeat.running == r.heartbeat.waiting == 0 for r in version.replicas))
    assert (await caller.complete()).status_code == 200
