"""A gray release with toy workers: it decides by itself, and by hand; its check, its mirror, its restart."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from jupyter_dsserve import AsyncClient
from jupyter_dsserve.fleet.rollout import Rollout, RolloutSpec
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.errors import Conflict
from tests.engine.test_loop import toy_text
from tests.support import Caller, Command, until

STABLE = "toy:step_s=0.02"  # long enough to be told from what a busy machine adds
ROLLOUT = "/api/deployments/demo/rollout"
QUICK = {
    "candidate": "v2",
    "steps": [20, 50, 100],
    "interval_s": 2,
    "min_requests": 20,
    "max_latency_ratio": 5,
    "block_s": 0.1,
}


@asynccontextmanager
async def traffic(caller: Caller, num: int = 12, max_tokens: int = 5) -> AsyncIterator[Counter[str]]:
    """So many callers that each ask again when answered; how many answers each version gave, and ``failed`` ones."""
    counts: Counter[str] = Counter()

    async def ask() -> None:
        while True:
            with contextlib.suppress(httpx.TransportError):
                answer = await caller.complete(max_tokens=max_tokens, temperature=0)
                counts[answer.headers["X-DSServe-Version"] if answer.status_code == 200 else "failed"] += 1
            await asyncio.sleep(0)

    asking = [asyncio.create_task(ask()) for _ in range(num)]
    try:
        yield counts
    finally:
        for task in asking:
            task.cancel()
        await asyncio.gather(*asking, return_exceptions=True)


async def two(caller: Caller, candidate: str = STABLE) -> None:
    await caller.load("demo", "v1", STABLE)
    await caller.load("demo", "v2", candidate)


async def begin(caller: Caller, **more: Any) -> Any:
    answer = await caller.post(ROLLOUT, json=QUICK | more)
    assert answer.status_code == 202, answer.text
    return answer.json()


async def rollout(caller: Caller) -> Any:
    return (await caller.get(ROLLOUT)).json()


async def over(caller: Caller, timeout_s: float = 90) -> Any:
    found = await until(lambda: rollout(caller), lambda r: r["state"] in ("PROMOTED", "ROLLED_BACK"), timeout_s)
    sys.stdout.write(f"{found['state']}: {found['reason']}\n")  # pytest -s shows them
    return found


async def kinds(caller: Caller) -> list[str]:
    return [e["kind"] for e in (await caller.get("/api/history")).json() if e["kind"].startswith("roll")]


async def weights(caller: Caller) -> dict[str, float]:
    return (await caller.get("/api/deployments/demo/route")).json()["weights"]


async def test_a_candidate_that_is_slower_by_30_percent_a_token_is_rolled_back(caller: Caller) -> None:
    await two(caller, "toy:step_s=0.026")
    async with traffic(caller) as counts:
        await begin(caller, steps=[50, 100], interval_s=60)  # over as soon as it is sure
        found = await over(caller)
        assert found["state"] == "ROLLED_BACK"
        assert "latency" in found["reason"]
        assert await weights(caller) == {"v1": 100}
        assert (await caller.complete()).headers["X-DSServe-Version"] == "v1"
        again = await caller.post("/api/deployments/demo/rollback")
        assert again.status_code == 409  # it is back already
    assert counts["failed"] == 0
    assert counts["v2"] > 0
    assert (await kinds(caller))[-1] == "rollout_rolled_back"


async def test_a_candidate_that_is_no_slower_is_loaded_promoted_and_the_old_one_stops(caller: Caller) -> None:
    await caller.load("demo", "v1", STABLE)
    await caller.load("demo", "v2", STABLE)
    await caller.post("/api/deployments/demo/versions/v2/unload")
    await caller.settled("demo", "v2", "STOPPED")
    async with traffic(caller) as counts:
        assert (await begin(caller))["state"] == "PROGRESSING"
        found = await over(caller)
        assert (found["state"], found["weight"]) == ("PROMOTED", 100)
        await caller.settled("demo", "v1", "STOPPED")
    assert await weights(caller) == {"v2": 100}
    assert counts["failed"] == 0
    assert await kinds(caller) == ["rollout_started", *["rollout_step"] * 3, "rollout_promoted"]
    status = (await caller.get("/api/deployments/demo")).json()["rollout"]
    assert {m["name"] for m in status["measures"]} == {"error rate", "first-token latency", "per-token latency"}


async def test_a_candidate_that_is_taken_back_before_its_first_step_gets_no_traffic(
    caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two(caller)
    monkeypatch.setattr("jupyter_dsserve.fleet.conductor._MAX_TICK_S", 3.0)
    await begin(caller, block_s=3)
    assert (await rollout(caller))["ended_at"] is None
    ended = (await caller.post(f"{ROLLOUT}/rollback")).json()
    assert ended["state"] == "ROLLED_BACK"
    assert ended["started_at"] <= ended["ended_at"] <= time.time()
    await asyncio.sleep(3.5)  # the look that was due comes, and finds that it is over
    assert await weights(caller) == {"v1": 100}
    assert await kinds(caller) == ["rollout_started", "rollout_rolled_back"]


async def test_a_candidate_that_fails_more_often_is_rolled_back(caller: Caller) -> None:
    await two(caller, f"{STABLE},fail_rate=0.3")
    async with traffic(caller):
        await begin(caller, max_error_rate=1)
        found = await over(caller)
    assert found["state"] == "ROLLED_BACK"
    assert "errors" in found["reason"]


async def test_a_candidate_that_does_not_load_is_rolled_back_with_its_reason(caller: Caller) -> None:
    await caller.load("demo", "v1", STABLE)
    await caller.load("demo", "v2", STABLE, python="/bin/false", wait=False)
    await caller.settled("demo", "v2", "FAILED")
    await begin(caller)
    found = await over(caller)
    assert found["state"] == "ROLLED_BACK"
    assert "/bin/false" in found["reason"]
    assert await weights(caller) == {"v1": 100}


async def test_while_the_candidates_worker_is_away_nothing_is_decided_and_then_it_goes_on(
    caller: Caller, gateway: Gateway
) -> None:
    await two(caller, f"{STABLE},load_s=4")
    await begin(caller, interval_s=600)
    slow = asyncio.create_task(caller.complete("demo@v2", max_tokens=2000))
    await until(lambda: gateway.fleet.version("demo", "v2").replicas[0].in_flight > 0)
    async with traffic(caller):
        before = await until(lambda: rollout(caller), lambda r: r["requests"] > 3)
        os.kill((await caller.version("demo", "v2"))["replicas"][0]["pid"], signal.SIGKILL)
        away = await until(lambda: rollout(caller), lambda r: "waits for demo@v2" in r["reason"])
        assert (await slow).status_code == 503
        await caller.settled("demo", "v2", "LOADING")
        assert (await rollout(caller))["at_step_s"] == away["at_step_s"]
        assert len(gateway.fleet._conductor._performances["demo"].seen[0]) < 100  # it does not pile up
        back = await until(lambda: rollout(caller), lambda r: r["at_step_s"] > away["at_step_s"])
        assert back["errors"] > 0  # what the worker left unanswered
    assert (back["state"], back["step"], back["weight"]) == ("PROGRESSING", before["step"], 20)


async def test_what_does_not_go_with_a_rollout_is_refused_until_it_is_over(caller: Caller) -> None:
    await two(caller)
    await caller.load("demo", "v3", STABLE)
    for shares in ({"v1": 90, "v3": 10}, {"v1": 100}):
        assert (await caller.put("/api/deployments/demo/route", json={"weights": shares})).status_code == 200
    await begin(caller)
    refused = [
        await caller.post(ROLLOUT, json=QUICK | {"candidate": "v3"}),
        await caller.post("/api/deployments/demo/activate", json={"version": "v3"}),
        await caller.put("/api/deployments/demo/route", json={"weights": {"v1": 100}}),
        await caller.post("/api/deployments/demo/versions/v1/unload"),
        await caller.post("/api/deployments/demo/versions/v2/unload"),
        await caller.delete("/api/deployments/demo/versions/v2"),
        await caller.delete("/api/deployments/demo"),
    ]
    assert [r.status_code for r in refused] == [409] * len(refused)
    assert all("a rollout of demo@v2 is PROGRESSING beside v1" in r.json()["error"]["message"] for r in refused)
    assert (await caller.post("/api/deployments/demo/versions/v3/unload")).status_code == 202
    assert (await caller.post(f"{ROLLOUT}/rollback")).status_code == 200
    assert (await caller.post("/api/deployments/demo/rollback")).status_code == 409  # nobody means the change before it
    assert (await caller.post("/api/deployments/demo/versions/v2/unload")).status_code == 202
    assert (await caller.post(f"{ROLLOUT}/rollback")).status_code == 409


async def test_of_two_rollouts_at_once_one_is_refused_and_one_that_cannot_load_leaves_nothing(caller: Caller) -> None:
    await two(caller)
    await caller.load("demo", "v3", STABLE)
    both = await asyncio.gather(*(caller.post(ROLLOUT, json=QUICK | {"candidate": v}) for v in ("v2", "v3")))
    assert sorted(answer.status_code for answer in both) == [202, 409]
    await caller.post(f"{ROLLOUT}/rollback")
    last = await rollout(caller)
    asking = asyncio.create_task(caller.complete("demo@v3", max_tokens=300))  # longer than we take to ask again
    await until(lambda: caller.version("demo", "v3"), lambda v: v["replicas"][0]["in_flight"] == 1)
    await caller.post("/api/deployments/demo/versions/v3/unload")
    assert (await caller.post(ROLLOUT, json=QUICK | {"candidate": "v3"})).status_code == 409  # it drains
    assert (await rollout(caller))["candidate"] == last["candidate"]
    await asking


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"candidate": "v2", "steps": [50, 25]}, "rising"),
        ({"candidate": "v2", "steps": []}, "steps"),
        ({"candidate": "v2", "interval": 3}, "interval_s"),
        ({"candidate": "v2", "max_error_rate": 1.5}, "max_error_rate"),
        ({}, "candidate"),
    ],
)
async def test_a_rollout_that_cannot_be_is_refused(caller: Caller, body: dict[str, Any], words: str) -> None:
    await two(caller)
    answer = await caller.post(ROLLOUT, json=body)
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]
    assert (await caller.get(ROLLOUT)).status_code == 404


async def test_a_rollout_needs_a_version_with_traffic_to_compare_with(caller: Caller) -> None:
    await two(caller)
    assert (await caller.post(ROLLOUT, json={"candidate": "v9"})).status_code == 404
    alone = await caller.post(ROLLOUT, json={"candidate": "v1"})
    assert alone.status_code == 409
    assert "v1=100" in alone.json()["error"]["message"]


async def test_a_paused_rollout_keeps_its_weights_and_goes_on_when_it_is_resumed(caller: Caller) -> None:
    await two(caller)
    async with traffic(caller):
        await begin(caller, interval_s=6)  # time enough to pause it
        await until(lambda: weights(caller), lambda w: w == {"v1": 80, "v2": 20})
        paused = (await caller.post(f"{ROLLOUT}/pause")).json()
        assert (paused["state"], paused["weight"]) == ("PAUSED", 20)
        assert (await caller.post(f"{ROLLOUT}/pause")).status_code == 409
        await asyncio.sleep(2)
        assert (await rollout(caller))["at_step_s"] == paused["at_step_s"]
        assert await weights(caller) == {"v1": 80, "v2": 20}
        assert (await caller.post(f"{ROLLOUT}/resume")).json()["state"] == "PROGRESSING"
        await until(lambda: weights(caller), lambda w: w == {"v1": 50, "v2": 50}, 60)


async def test_promote_and_rollback_by_hand(caller: Caller) -> None:
    await two(caller)
    await begin(caller, interval_s=600)
    await until(lambda: weights(caller), lambda w: w == {"v1": 80, "v2": 20})
    assert (await caller.post(f"{ROLLOUT}/promote")).json()["state"] == "PROMOTED"
    assert await weights(caller) == {"v2": 100}
    await caller.settled("demo", "v1", "STOPPED")
    back = await caller.post("/api/deployments/demo/rollback")
    assert (back.status_code, back.json()["activating"]) == (202, "v1")
    await caller.settled("demo", "v2", "STOPPED")
    assert await weights(caller) == {"v1": 100}
    assert (await caller.complete()).headers["X-DSServe-Version"] == "v1"


async def test_rollback_without_a_rollout_undoes_the_last_change_of_the_route(caller: Caller) -> None:
    await two(caller)
    assert (await caller.post("/api/deployments/demo/rollback")).status_code == 409
    for _ in range(2):  # a cell that sets the route is run again
        await caller.put("/api/deployments/demo/route", json={"weights": {"v1": 90, "v2": 10}})
    assert (await caller.post("/api/deployments/demo/rollback")).status_code == 200
    assert await weights(caller) == {"v1": 100}
    await caller.post("/api/deployments/demo/activate", json={"version": "v2"})
    await caller.settled("demo", "v1", "STOPPED")
    assert (await caller.post("/api/deployments/demo/rollback")).status_code == 202
    await caller.settled("demo", "v1", "READY")
    await until(lambda: weights(caller), lambda w: w == {"v1": 100})


async def test_a_check_in_the_notebook_rolls_worse_answers_back(caller: Caller, gateway: Gateway) -> None:
    await two(caller)
    client = AsyncClient(gateway.url, gateway.admin_key)
    turn = iter(range(1000))
    # Both answer alike: a judge who sees them in turn, stable's first, and likes only that one.
    async with traffic(caller):
        await client.rollout("demo", "v2", check=lambda prompt, answer: 1.0 - next(turn) % 2, **_without(QUICK))
        found = await over(caller)
    assert found["state"] == "ROLLED_BACK"
    assert "score 0.00 against 1.00" in found["reason"]
    assert (await caller.get(f"{ROLLOUT}/samples")).status_code == 409
    await client.aclose()


async def test_a_silent_check_holds_the_rollout_and_a_broken_one_says_so(caller: Caller, gateway: Gateway) -> None:
    await two(caller)
    async with traffic(caller):
        await begin(caller, check=True, interval_s=0.5, min_requests=5)
        await until(
            lambda: rollout(caller), lambda r: "the check has scored 0 answers" in r["reason"] and r["requests"] > 5
        )
        given = (await caller.get(f"{ROLLOUT}/samples?wait_s=5")).json()["samples"]
        assert Counter(s["version"] for s in given)["v1"] == len(given) / 2 > 0
        assert {(s["prompt"], s["answer"]) for s in given} == {("hello", toy_text("hello", 5))}
        told = {"scores": [{"id": s["id"], "score": 1} for s in given], "failure": "ZeroDivisionError: oh"}
        await caller.post(f"{ROLLOUT}/scores", json=told)
        await until(lambda: rollout(caller), lambda r: "the check failed: ZeroDivisionError" in r["reason"])
        assert await weights(caller) == {"v1": 80, "v2": 20}


async def test_a_check_of_an_earlier_rollout_is_sent_away(caller: Caller) -> None:
    await two(caller)
    await begin(caller, check=True)
    own = (await rollout(caller))["started_at"]
    for started_at, status in ((own, 200), (own - 1, 409)):
        given = {"wait_s": 0, "started_at": started_at}
        assert (await caller.get(f"{ROLLOUT}/samples", params=given)).status_code == status
        told = {"scores": [], "started_at": started_at}
        assert (await caller.post(f"{ROLLOUT}/scores", json=told)).status_code == status


def _without(body: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in body.items() if key != "candidate"}


async def test_the_mirror_compares_answers_and_gives_them_to_nobody(caller: Caller) -> None:
    await two(caller)
    async with traffic(caller) as counts:
        await begin(caller, mirror=100, steps=[100], interval_s=6)
        mirrored = await until(
            lambda: rollout(caller), lambda r: r["step"] == -1 and r["mirror"] and r["mirror"]["compared"] > 20
        )
        assert mirrored["weight"] == 0
        assert mirrored["mirror"]["agreed"] == mirrored["mirror"]["compared"]
        assert counts["v2"] == 0
        assert (await over(caller))["state"] == "PROMOTED"
    assert counts["failed"] == 0


async def test_a_mirrored_candidate_that_is_slower_never_answers_anybody(caller: Caller) -> None:
    await two(caller, "toy:step_s=0.05")
    async with traffic(caller) as counts:
        await begin(caller, mirror=50, interval_s=60)  # over as soon as it is sure
        found = await over(caller)
    assert (found["state"], counts["v2"], counts["failed"]) == ("ROLLED_BACK", 0, 0)


async def test_a_rollout_goes_on_where_it_was_after_the_gateway_was_killed(data_dir: Path) -> None:
    with Command(data_dir) as command:
        async with await command.caller() as caller:
            await two(caller)
            async with traffic(caller):
                await begin(caller, interval_s=12, steps=[20, 50, 100])
                at = await until(lambda: rollout(caller), lambda r: r["at_step_s"] > 5.5)
                command.process.kill()
    with Command(data_dir) as command:
        async with await command.caller() as caller:
            found = await rollout(caller)
            assert (found["state"], found["step"]) == ("PROGRESSING", at["step"])
            assert found["requests"] > 0
            assert 4 < found["at_step_s"] <= at["at_step_s"] + 4
            async with traffic(caller):
                await until(lambda: rollout(caller), lambda r: r["step"] == 1 and r["weight"] == 50, 60)


async def test_of_a_rollback_and_an_activate_at_once_one_is_refused(caller: Caller, gateway: Gateway) -> None:
    await two(caller)
    await caller.load("demo", "v3", STABLE)
    await caller.post("/api/deployments/demo/activate", json={"version": "v2"})
    await caller.settled("demo", "v1", "STOPPED")
    fleet = gateway.fleet
    both = await asyncio.gather(fleet.rollback("demo"), fleet.activate("demo", "v3"), return_exceptions=True)
    assert both[0] is None
    assert "already activating v1" in str(both[1])
    await until(lambda: weights(caller), lambda w: w == {"v1": 100})
    assert (await caller.version("demo", "v3"))["state"] == "READY"


async def test_a_rollback_leaves_the_route_if_a_version_is_deleted_while_another_loads(
    caller: Caller, gateway: Gateway
) -> None:
    fleet, demo = gateway.fleet, "/api/deployments/demo"
    await caller.load("demo", "v1", "toy:")
    await caller.load("demo", "v2", "toy:load_s=3")
    await caller.load("demo", "v3", "toy:")
    await caller.put(f"{demo}/route", json={"weights": {"v1": 50, "v2": 50}})
    await caller.post(f"{demo}/activate", json={"version": "v3"})
    for name in ("v1", "v2"):
        await caller.settled("demo", name, "STOPPED")
    assert (await caller.post(f"{demo}/rollback")).status_code == 202
    await caller.settled("demo", "v1", "READY")
    await caller.delete(f"{demo}/versions/v1")
    await until(lambda: not fleet.deployment("demo").activating)
    assert await weights(caller) == {"v3": 100}
    [failed] = [e.reason for e in await fleet.history() if e.kind == "rollback_failed"]
    assert "demo@v1 is " in failed


async def test_a_failure_of_an_earlier_load_ends_no_rollout_whose_load_has_not_begun(
    caller: Caller, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two(caller)
    fleet = gateway.fleet
    load, may_load = fleet.load, asyncio.Event()

    async def slow(deployment: str, version: str) -> Version:
        await may_load.wait()
        return await load(deployment, version)

    fleet.version("demo", "v2").failure = "out of memory, yesterday"
    monkeypatch.setattr(fleet, "load", slow)
    beginning = asyncio.create_task(begin(caller))
    await asyncio.sleep(0.3)  # several ticks
    assert (await rollout(caller))["state"] == "PROGRESSING"
    may_load.set()
    await beginning
    assert (await rollout(caller))["state"] == "PROGRESSING"


async def test_a_load_that_is_refused_ends_no_rollout_that_began_meanwhile(
    caller: Caller, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two(caller)
    fleet = gateway.fleet
    load, may_load = fleet.load, asyncio.Event()

    async def refused(deployment: str, version: str) -> Version:
        await may_load.wait()
        raise Conflict("it never fits")

    monkeypatch.setattr(fleet, "load", refused)
    first = asyncio.create_task(caller.post(ROLLOUT, json=QUICK))
    await until(lambda: rollout(caller), lambda r: r.get("state") == "PROGRESSING")
    await caller.post(f"{ROLLOUT}/rollback")
    monkeypatch.setattr(fleet, "load", load)
    await begin(caller)
    may_load.set()
    assert (await first).status_code == 409
    assert (await rollout(caller))["state"] == "PROGRESSING"


async def test_a_stored_rollout_of_a_version_that_is_gone_is_lost_and_holds_nothing_up(
    caller: Caller, gateway: Gateway
) -> None:
    await caller.load("demo", "v1", "toy:")
    spec = RolloutSpec("v9")
    stored = Rollout.begun(spec, "v1", {"v1": 100.0}, 0.0).to_json()
    gateway.fleet._conductor.bring_back({"demo": {"before": {}, "rollout": stored}})
    assert (await kinds(caller))[-1] == "rollout_lost"
    assert (await caller.get(ROLLOUT)).status_code == 404
    assert (await caller.post("/api/deployments/demo/versions/v1/unload")).status_code == 202
