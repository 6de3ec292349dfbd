"""What breaks under load, and what becomes of every request that was sent meanwhile."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path

import grpc.aio
import pytest

from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol import worker_pb2 as pb
from jupyter_dsserve.protocol.spec import PROTOCOL_VERSION
from jupyter_dsserve.protocol.worker_pb2_grpc import LinkStub
from tests.faults.load import Load
from tests.support import Caller, Command, Json, is_running, until, worker_pids

CLIENTS = 16


async def two_replicas(caller: Caller, model: str = "toy:step_s=0.005") -> list[int]:
    """Load demo@v1 as two workers; their processes."""
    await caller.load("demo", "v1", model, replicas=2)
    both = await until(lambda: caller.version("demo", "v1"), _are_two_ready)
    return [r["pid"] for r in both["replicas"]]


def _are_two_ready(version: Json) -> bool:
    return [r["state"] for r in version["replicas"]] == ["READY", "READY"]


async def test_a_worker_that_is_killed_costs_only_answers_that_had_begun(caller: Caller) -> None:
    pids = await two_replicas(caller)
    async with Load(caller).running(CLIENTS) as load:
        await load.answered(50)
        os.kill(pids[0], signal.SIGKILL)
        await load.answered(100)
        await until(lambda: caller.version("demo", "v1"), _are_two_ready)
        await load.answered(50)
    load.check()
    assert load.counts["cut"] == 0
    assert load.counts["told"] <= CLIENTS
    assert all("ended while it was answering" in why for why in load.told())


async def test_a_worker_that_hangs_keeps_nobody_waiting(caller: Caller) -> None:
    pids = await two_replicas(caller)
    async with Load(caller).running(CLIENTS) as load:
        await load.answered(100)
        os.kill(pids[0], signal.SIGSTOP)
        await until(lambda: not is_running(pids[0]))
        await load.answered(100)
        before = len(load.fates)
        await load.answered(200)
        slowest = max(fate.seconds for fate in load.fates[before:])
    load.check()
    assert load.counts["cut"] == 0
    assert load.counts["told"] <= CLIENTS
    assert slowest < 10, "a request waited on the worker that hangs"  # which would be for ever


async def test_a_worker_that_stumbles_for_a_second_is_left_alone(caller: Caller) -> None:
    pids = await two_replicas(caller)
    async with Load(caller).running(CLIENTS) as load:
        await load.answered(50)
        os.kill(pids[0], signal.SIGSTOP)
        await asyncio.sleep(1.0)
        os.kill(pids[0], signal.SIGCONT)
        await load.answered(200)
    load.check()
    assert load.counts == {"answered": load.num_asked}
    assert {r["pid"] for r in (await caller.version("demo", "v1"))["replicas"]} == set(pids)


async def test_a_slow_worker_gets_less_of_the_work(caller: Caller) -> None:
    """Two versions share one processor here; what counts is that the slow one delays only what it was given."""
    await caller.load("demo", "v1", "toy:step_s=0.002")
    await caller.load("demo", "v2", "toy:step_s=0.05")
    await caller.put("/api/deployments/demo/route", json={"weights": {"v1": 50, "v2": 50}})
    async with Load(caller).running(CLIENTS) as load:
        await load.answered(200)
    load.check()
    assert load.counts == {"answered": load.num_asked}
    slow = sorted(fate.seconds for fate in load.fates if fate.version == "v2")
    fast = sorted(fate.seconds for fate in load.fates if fate.version == "v1")
    assert fast[len(fast) // 2] < slow[len(slow) // 2] / 3


async def test_garbage_on_the_workers_socket_harms_nobody(caller: Caller, gateway: Gateway) -> None:
    await two_replicas(caller)
    draw = random.Random(3)
    path = gateway.fleet._link.address.removeprefix("unix:")
    async with Load(caller).running(CLIENTS) as load:
        await load.answered(50)
        for size in (1, 100, 10_000):
            _, writer = await asyncio.open_unix_connection(path)
            writer.write(draw.randbytes(size))
            writer.close()
        await _say(gateway, pb.FromWorker(heartbeat=pb.Heartbeat(num_steps=7)))  # no Hello before it
        replica = gateway.fleet.version("demo", "v1").replicas[0]
        hello = pb.Hello(
            replica=replica.id, token="guessed", spec_digest=replica.spec_digest, protocol_version=PROTOCOL_VERSION
        )
        await _say(gateway, pb.FromWorker(hello=hello))
        await load.answered(100)
    load.check()
    assert load.counts == {"answered": load.num_asked}


async def _say(gateway: Gateway, message: pb.FromWorker) -> None:
    async with grpc.aio.insecure_channel(gateway.fleet._link.address) as channel:
        stream = LinkStub(channel).Connect()
        await stream.write(message)
        await stream.done_writing()
        while await stream.read() is not grpc.aio.EOF:
            pass


@pytest.mark.parametrize("by_s", [86_400.0, -86_400.0])
async def test_a_clock_that_jumps_a_day_changes_nothing(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, by_s: float
) -> None:
    pids = await two_replicas(caller)
    now = time.time
    async with Load(caller).running(CLIENTS) as load:
        await load.answered(50)
        monkeypatch.setattr(time, "time", lambda: now() + by_s)
        await asyncio.sleep(2.5)  # heartbeats, statistics and everything else that looks at a clock has done so
        await load.answered(100)
        await caller.load("demo", "v2", "toy:")
    load.check()
    assert load.counts == {"answered": load.num_asked}
    assert {r["pid"] for r in (await caller.version("demo", "v1"))["replicas"]} == set(pids)
    ids = [event["id"] for event in (await caller.get("/api/history")).json()]
    assert ids == sorted(set(ids))


async def test_a_gateway_that_is_killed_leaves_no_worker_and_comes_back(tmp_path: Path) -> None:
    with Command(tmp_path) as command:
        async with await command.caller() as caller:
            workers = await two_replicas(caller)
            async with Load(caller).running(CLIENTS) as load:
                await load.answered(50)
                command.signal(signal.SIGKILL)
                await until(lambda: load.counts["cut"] >= CLIENTS)  # they go on asking
            load.check()
            await until(lambda: not any(is_running(pid) for pid in workers))
    with Command(tmp_path) as command:
        async with await command.caller() as caller:
            await until(lambda: caller.version("demo", "v1"), _are_two_ready)
            async with Load(caller).running(CLIENTS) as load:
                await load.answered(50)
            load.check()
            assert load.counts == {"answered": load.num_asked}
            assert len(worker_pids(command.pid)) == 2
