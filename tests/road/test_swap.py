"""Swaps where memory does not hold both versions, and swaps at once."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from jupyter_dsserve.fleet.goal import DeploymentGoal, VersionGoal
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import GatewayConfig
from tests.support import Caller, until

MB = 1_000_000
LARGE = f"toy:step_s=0.001,bytes={60 * MB}"


@pytest.fixture
async def gateway(data_dir: Path) -> AsyncIterator[Gateway]:
    """It may hold 100 MB: one large version and not two."""
    gateway = Gateway(GatewayConfig(data_dir, port=0, drain_s=5, memory_budget_bytes=100 * MB))
    await gateway.start()
    yield gateway
    await gateway.stop()


async def activate(caller: Caller, version: str, **more: str) -> httpx.Response:
    return await caller.post("/api/deployments/demo/activate", json={"version": version, **more})


async def two(caller: Caller, second: str, **more: str) -> None:
    """v1 serves, v2 is registered only."""
    await caller.load("demo", "v1", LARGE)
    await caller.load("demo", "v2", second, wait=False, **more)
    await caller.post("/api/deployments/demo/versions/v2/unload")
    await caller.settled("demo", "v2", "STOPPED")


async def state(caller: Caller) -> tuple[dict[str, float], str]:
    demo = (await caller.get("/api/deployments/demo")).json()
    return demo["weights"], demo["activating"]


async def test_a_swap_that_memory_does_not_hold_is_refused_with_the_figures_and_the_remedy(caller: Caller) -> None:
    await two(caller, LARGE)
    refused = await activate(caller, "v2")
    assert refused.status_code == 409
    message = refused.json()["error"]["message"]
    assert "demo@v1 holds 57.2 MiB" in message
    assert "recreate" in message
    assert (await caller.version("demo", "v2"))["state"] == "STOPPED"
    assert (await caller.complete()).headers["X-DSServe-Version"] == "v1"
    assert (await caller.get("/api/deployments/demo")).json()["activating"] == ""


async def test_recreate_ends_the_old_one_first_and_requests_wait_for_the_new_one(caller: Caller) -> None:
    await two(caller, LARGE + ",load_s=0.7")
    answers: list[httpx.Response] = []
    is_over = asyncio.Event()

    async def ask() -> None:
        while not is_over.is_set():
            answers.append(await caller.complete(max_tokens=20))

    asking = asyncio.gather(*(ask() for _ in range(8)))
    await until(lambda: len(answers) > 20)
    answer = await activate(caller, "v2", strategy="recreate")
    assert (answer.status_code, answer.json()["weights"]) == (202, {"v2": 100})
    assert (await activate(caller, "v1")).status_code == 409
    await caller.settled("demo", "v2", "READY")
    await until(lambda: answers[-1].headers.get("X-DSServe-Version") == "v2")
    is_over.set()
    await asking
    assert Counter(a.status_code for a in answers) == {200: len(answers)}
    assert {a.headers["X-DSServe-Version"] for a in answers} == {"v1", "v2"}
    await caller.settled("demo", "v1", "STOPPED")
    await until(lambda: state(caller), lambda found: found == ({"v2": 100}, ""))


async def test_the_old_version_comes_back_if_the_new_one_fails(caller: Caller) -> None:
    await two(caller, LARGE, python="/bin/false")
    assert (await activate(caller, "v2", strategy="recreate")).status_code == 202
    await caller.settled("demo", "v2", "FAILED")
    await until(lambda: state(caller), lambda found: found == ({"v1": 100}, ""))
    assert (await caller.complete()).headers["X-DSServe-Version"] == "v1"
    events = (await caller.get("/api/history")).json()
    [failed] = [e["reason"] for e in events if e["kind"] == "activate_failed"]
    assert "/bin/false" in failed
    assert failed.endswith("v1 come back")


async def test_what_never_fits_ends_nobody(caller: Caller) -> None:
    await two(caller, LARGE)
    await caller.load("demo", "v3", f"toy:bytes={MB}", priority="low")
    refused = await caller.post(
        "/api/deployments", json={"name": "demo", "version": "v4", "model": f"toy:bytes={500 * MB}"}
    )
    assert refused.status_code == 409
    assert (await caller.version("demo", "v1"))["state"] == "READY"


async def test_of_two_swaps_at_once_one_is_refused(caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:bytes=1000")
    for name in ("v2", "v3"):
        await caller.load("demo", name, f"toy:bytes=1000,load_s=30.{name[1]}", wait=False)
        await caller.post(f"/api/deployments/demo/versions/{name}/unload")
        await caller.settled("demo", name, "STOPPED")
    answers = await asyncio.gather(activate(caller, "v2"), activate(caller, "v3"))
    assert sorted(a.status_code for a in answers) == [202, 409]
    assert "already activating" in next(a for a in answers if a.status_code == 409).text


async def test_weights_by_hand_are_refused_while_a_version_is_activated_and_taken_once_that_was_ended(
    caller: Caller,
) -> None:
    await two(caller, "toy:bytes=1000,load_s=30")
    await activate(caller, "v2")
    weights = {"weights": {"v1": 100}}
    refused = await caller.put("/api/deployments/demo/route", json=weights)
    assert refused.status_code == 409
    assert "activating v2: wait until that has ended, or unload v2" in refused.json()["error"]["message"]
    await caller.post("/api/deployments/demo/versions/v2/unload")
    await until(lambda: state(caller), lambda found: found == ({"v1": 100}, ""))
    assert (await caller.put("/api/deployments/demo/route", json=weights)).status_code == 200


async def test_a_strategy_that_is_none_is_refused_by_name(caller: Caller) -> None:
    await two(caller, "toy:")
    refused = await activate(caller, "v2", strategy="blue-green")
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "strategy")


async def test_a_rollback_that_memory_does_not_hold_is_refused_with_the_figures_and_the_remedy(caller: Caller) -> None:
    await two(caller, LARGE)
    await activate(caller, "v2", strategy="recreate")
    await caller.settled("demo", "v2", "READY")
    await until(lambda: state(caller), lambda found: found == ({"v2": 100}, ""))
    refused = await caller.post("/api/deployments/demo/rollback")
    assert refused.status_code == 409
    message = refused.json()["error"]["message"]
    assert "demo@v2 holds 57.2 MiB" in message
    assert "activate it with the strategy recreate" in message
    assert await state(caller) == ({"v2": 100}, "")
    assert (await caller.version("demo", "v1"))["state"] == "STOPPED"


async def test_a_file_that_memory_does_not_hold_fails_with_the_figures_and_the_next_one_is_taken(
    gateway: Gateway, caller: Caller
) -> None:
    await two(caller, LARGE)
    spec = gateway.fleet.version("demo", "v1").spec
    goal = {"demo": DeploymentGoal({"v1": VersionGoal(spec, is_loaded=False), "v2": VersionGoal(spec)})}
    for _ in range(2):
        await gateway.fleet.apply(goal)
        done = await until(lambda: gateway.fleet.applier.status, lambda s: s.state != "APPLYING")
        assert done.state == "FAILED"
        assert "demo@v1 holds 57.2 MiB" in done.reason
        assert "strategy recreate" in done.reason
    assert await state(caller) == ({"v1": 100}, "")


async def test_a_file_whose_load_nothing_waits_for_gets_the_memory_of_what_is_pruned(
    gateway: Gateway, caller: Caller
) -> None:
    await caller.load("demo", "v1", LARGE)
    spec = gateway.fleet.version("demo", "v1").spec
    await gateway.fleet.apply({"other": DeploymentGoal({"v1": VersionGoal(spec)})}, prune=True)
    done = await until(lambda: gateway.fleet.applier.status, lambda s: s.state != "APPLYING")
    assert done.state == "APPLIED", done.reason


async def test_a_route_never_goes_back_to_a_version_that_was_deleted_meanwhile(
    gateway: Gateway, caller: Caller
) -> None:
    fleet = gateway.fleet
    await caller.load("demo", "v1", "toy:")
    await caller.load("demo", "v2", "toy:")
    await fleet.route("demo", {"v1": 50, "v2": 50})
    deployment = fleet.deployment("demo")
    await fleet.delete("demo", "v2")
    await until(lambda: "v2" not in deployment.versions)
    await fleet._moves._bring_back(deployment, {"v1": 50, "v2": 50})
    assert dict(deployment.route.weights) == {"v1": 100}
    assert "demo@v2 is deleted" in [e for e in await fleet.history() if e.kind == "rollback_failed"][-1].reason
