"""Many loads and unloads at random: the books are right at every moment, agree with the system, and nothing is left."""

from __future__ import annotations

import asyncio
import gc
import os
import random
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.road.test_ledger import ram, serving, toy
from tests.support import Caller, until, worker_pids

MB = 1_000_000
BUDGET = 64 * MB
NAMES = [f"m{i}" for i in range(8)]
SIZES = (4, 9, 16, 25)


def own_bytes(pid: int) -> int:
    memory = psutil.Process(pid).memory_info()
    return int(memory.rss - memory.shared)


async def act(caller: Caller, rng: random.Random) -> None:
    """Load or unload one of the names, at random."""
    name = rng.choice(NAMES)
    if rng.random() < 0.6:
        size = SIZES[NAMES.index(name) % len(SIZES)] * MB
        body = {"name": name, "version": "v1", "model": toy(size), "priority": "high" if size > 16 * MB else "medium"}
        answer = await caller.post("/api/deployments", json=body)
    else:
        answer = await caller.post(f"/api/deployments/{name}/versions/v1/unload")
    assert answer.status_code in (202, 404, 409), answer.text  # not known yet; still draining
    if rng.random() < 0.5:
        await asyncio.sleep(rng.random() * 0.3)


async def check_books(caller: Caller) -> None:
    """At any moment: held and free are all there is, and never more than may be held."""
    memory = await ram(caller)
    held = sum(h["bytes"] for h in memory["held"])
    assert held + memory["free_bytes"] == BUDGET
    assert all(h["bytes"] == h["expected_bytes"] for h in memory["held"]), "a toy takes exactly its bytes"


async def settled_versions(caller: Caller) -> list[Any]:
    """All versions, once none is on its way: each is READY, STOPPED, or waits for memory."""

    async def versions() -> list[Any]:
        deployments = (await caller.get("/api/deployments")).json()
        return [v for d in deployments for v in d["versions"]]

    def are_settled(found: list[Any]) -> bool:
        return all(v["state"] in ("READY", "STOPPED") or v["reason"].startswith("waits") for v in found)

    return await until(versions, are_settled, timeout_s=60)


async def soak(data_dir: Path, num_actions: int, seed: int) -> None:
    rng = random.Random(seed)
    async with serving(data_dir, BUDGET) as caller:
        await caller.load("base", "v1", toy(0))
        base_pid = (await caller.version("base", "v1"))["replicas"][0]["pid"]
        for _ in range(num_actions):
            await act(caller, rng)
            await check_books(caller)
        versions = await settled_versions(caller)
        assert not [v for v in versions if v["state"] == "FAILED"]
        held = {h["replica"]: h["bytes"] for h in (await ram(caller))["held"]}
        ready = {r["id"]: r["pid"] for v in versions if v["state"] == "READY" for r in v["replicas"]}
        assert held.keys() == ready.keys()
        assert held, "another seed: none is loaded to compare"  # how many are depends on how fast they load
        for replica, num_bytes in held.items():  # what the system says, beyond what any toy's Python takes
            assert abs(own_bytes(ready[replica]) - own_bytes(base_pid) - num_bytes) < 4 * MB, replica
        for version in versions:
            await caller.post(f"/api/deployments/{version['deployment']}/versions/v1/unload")
        memory = await until(lambda: ram(caller), lambda m: not m["held"])
        assert memory["free_bytes"] == BUDGET
        assert (await caller.get("/api/ledger")).json()["waiting"] == []
        await until(lambda: worker_pids(os.getpid()), lambda pids: not pids)


async def test_twenty_random_loads_and_unloads_keep_the_books_right(data_dir: Path) -> None:
    await soak(data_dir, 20, seed=1)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_a_hundred_random_loads_and_unloads_leave_the_gateway_as_it_was(tmp_path: Path) -> None:
    await soak(tmp_path / "warm-up", 20, seed=2)
    gc.collect()
    before = own_bytes(os.getpid())
    await soak(tmp_path / "data", 100, seed=3)
    gc.collect()
    after = own_bytes(os.getpid())
    assert after < 1.05 * before, f"{before / MB:.1f} MB before, {after / MB:.1f} MB after"
