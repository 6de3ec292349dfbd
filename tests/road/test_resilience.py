"""Replicas that fail, stop or die under load: who is asked instead, and what the caller sees."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from jupyter_dsserve.fleet import health, watch
from jupyter_dsserve.gateway.server import Gateway
from tests.engine.test_loop import toy_text
from tests.support import Caller, held, is_running, until


async def set_policy(caller: Caller, **fields: Any) -> None:
    answer = await caller.put("/api/deployments/demo/policy", json=fields)
    assert answer.status_code == 200, answer.text


async def load_two_replicas(caller: Caller, model: str) -> list[dict[str, Any]]:
    await caller.load("demo", "v1", model, replicas=2)
    both = await until(
        lambda: caller.version("demo", "v1"), lambda v: [r["state"] for r in v["replicas"]] == ["READY", "READY"]
    )
    replicas: list[dict[str, Any]] = both["replicas"]
    return replicas


async def kinds(caller: Caller) -> list[str]:
    return [e["kind"] for e in (await caller.get("/api/history")).json()]


@contextlib.asynccontextmanager
async def load_of(caller: Caller, concurrency: int, **fields: Any) -> AsyncIterator[list[httpx.Response]]:
    """So many callers who each ask again when answered, while the block runs; what they were answered."""
    answers: list[httpx.Response] = []
    is_over = False

    async def ask() -> None:
        while not is_over:
            answers.append(await caller.complete(**fields))

    asking = [asyncio.create_task(ask()) for _ in range(concurrency)]
    try:
        yield answers
    finally:
        is_over = True
        await asyncio.wait_for(asyncio.gather(*asking), 30)


class TestStopped:
    async def test_one_of_two_replicas_that_is_stopped_under_load_is_seen_within_5_s_and_loses_nothing(
        self, caller: Caller, gateway: Gateway, looks: Counter[str]
    ) -> None:
        first, _ = await load_two_replicas(caller, "toy:step_s=0.005")
        await set_policy(caller, retry_share=1)
        version = gateway.fleet.version("demo", "v1")
        stopped_one = next(r for r in version.replicas if r.id == first["id"])
        async with load_of(caller, 16, max_tokens=10) as answers:
            await until(lambda: len(answers) > 50)
            stopped = time.monotonic()
            os.kill(first["pid"], signal.SIGSTOP)
            num_looks, num_on_it = looks[first["id"]], stopped_one.in_flight
            await until(lambda: stopped_one.trouble or stopped_one not in version.replicas)
            seen_s = time.monotonic() - stopped
            num_looks = looks[first["id"]] - num_looks
            num_then = len(answers)
            await until(lambda: not is_running(first["pid"]))
            await until(lambda: stopped_one.in_flight == 0)
            await until(lambda: len(answers) > num_then + 200)
        assert num_looks * health.TICK_S <= 5
        # Each got an answer or, where some of it was computed already, an error that says what happened.
        counts = Counter(a.status_code for a in answers)
        assert counts.keys() <= {200, 503}
        assert counts[503] <= num_on_it
        assert all("demo@v1#" in a.json()["error"]["message"] for a in answers if a.status_code == 503)
        assert {a.json()["choices"][0]["text"] for a in answers if a.status_code == 200} == {toy_text("hello", 10)}
        assert max(a.elapsed.total_seconds() for a in answers) < seen_s + 3
        again = await until(
            lambda: caller.version("demo", "v1"), lambda v: [r["state"] for r in v["replicas"]] == ["READY", "READY"]
        )
        assert first["pid"] not in {r["pid"] for r in again["replicas"]}

    async def test_requests_that_were_not_begun_are_answered_by_the_other_replica_and_once(
        self, caller: Caller, gateway: Gateway
    ) -> None:
        first, second = await load_two_replicas(caller, "toy:step_s=0.001")
        await set_policy(caller, retry_share=1)
        version = gateway.fleet.version("demo", "v1")
        os.kill(first["pid"], signal.SIGSTOP)  # before they are asked: none of them can have begun
        with held(second["pid"]):  # else it would be done with some before the others ask
            asking = asyncio.gather(*(caller.complete(max_tokens=10) for _ in range(20)))
            await until(lambda: [r.in_flight for r in version.replicas] == [10, 10])
        answers = await asking
        assert Counter(a.status_code for a in answers) == {200: 20}
        assert {a.json()["choices"][0]["text"] for a in answers} == {toy_text("hello", 10)}
        waited = sorted(a.elapsed.total_seconds() for a in answers)
        assert waited[5] < waited[-5] - 1  # those that were on the other one
        assert waited[-5] < 20
        assert (version.window.requests, version.window.errors, version.road.num_retrying) == (20, 0, 0)

    async def test_one_that_goes_on_within_its_time_takes_requests_again(
        self, caller: Caller, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watch, "is_stopped", lambda _pid: False)  # as where the system does not say
        first, _ = await load_two_replicas(caller, "toy:step_s=0.001")
        replica = gateway.fleet.version("demo", "v1").replicas[0]
        os.kill(first["pid"], signal.SIGSTOP)
        await until(lambda: replica.trouble)
        shown = (await caller.version("demo", "v1"))["replicas"][0]
        assert (shown["state"], shown["trouble"].startswith("silent for 3")) == ("READY", True)
        os.kill(first["pid"], signal.SIGCONT)
        await until(lambda: not replica.trouble)
        await asyncio.gather(*(caller.complete() for _ in range(4)))
        assert is_running(first["pid"])
        assert [k for k in await kinds(caller) if k.startswith("replica")] == ["replica_suspect", "replica_fine"]

    async def test_one_that_is_stopped_while_it_drains_holds_nobody_up(self, caller: Caller, gateway: Gateway) -> None:
        gateway.fleet._drain_s = 60.0
        await caller.load("demo", "v1", "toy:step_s=0.05")
        replica = gateway.fleet.version("demo", "v1").replicas[0]
        asking = asyncio.create_task(caller.complete(max_tokens=1000))
        await until(lambda: replica.heartbeat.running == 1)
        await caller.post("/api/deployments/demo/versions/v1/unload")
        os.kill(replica.pid, signal.SIGSTOP)
        begun = time.monotonic()
        assert (await asking).status_code == 503
        assert time.monotonic() - begun < 30  # and not only when drain_s is over
        await caller.settled("demo", "v1", "STOPPED")

    async def test_what_nobody_else_can_answer_waits_for_it_and_new_ones_are_told_to_come_again(
        self, caller: Caller, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watch, "is_stopped", lambda _pid: False)  # as one that something holds up for seconds
        await caller.load("demo", "v1", "toy:step_s=0.001")
        replica = gateway.fleet.version("demo", "v1").replicas[0]
        os.kill(replica.pid, signal.SIGSTOP)
        asking = asyncio.gather(*(caller.complete() for _ in range(4)))
        await until(lambda: replica.trouble)
        shut = await caller.complete()
        assert (shut.status_code, "silent for 3" in shut.text) == (503, True)
        await set_policy(caller, queue_timeout_s=20)
        patient = asyncio.create_task(caller.complete())
        await until(lambda: gateway.fleet.deployment("demo").road.line.num_waiting == 1)
        os.kill(replica.pid, signal.SIGCONT)
        assert {a.status_code for a in (*(await asking), await patient)} == {200}


HANGING = """
import time
from jupyter_dsserve.engine.toy import ToyRunner
from jupyter_dsserve.worker.__main__ import main

forward = ToyRunner.forward
def hang(self, step):
    if any(bytes(span.sequence.tokens).startswith(b"hang") for span in step.spans):
        time.sleep(1000)
    return forward(self, step)
ToyRunner.forward = hang
main()
"""


async def test_a_worker_whose_engine_hangs_although_its_heart_beats_is_replaced(
    caller: Caller, gateway: Gateway, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(health, "_MIN_STANDING_S", 1.5)
    monkeypatch.setattr(health, "_STANDING_RATIO", 1.0)
    monkeypatch.setattr(health, "_ENOUGH_STEPS", 2)
    (tmp_path / "hanging.py").write_text(HANGING)
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path / 'hanging.py'}\n")
    python.chmod(0o755)
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent.parent.parent))
    await caller.load("demo", "v1", "toy:step_s=0.001", python=str(python))
    replica = gateway.fleet.version("demo", "v1").replicas[0]
    assert (await caller.complete(max_tokens=100)).status_code == 200
    await until(lambda: replica.heartbeat.num_steps >= 100)
    lost = await caller.complete(prompt="hang")
    assert lost.status_code == 503
    assert "demo@v1#0 was lost while it was answering (the worker took no step" in lost.text
    told = [(e["kind"], e["reason"]) for e in (await caller.get("/api/history")).json()]
    assert any(kind == "replica_suspect" and "no step for" in why for kind, why in told)
    assert any(kind == "replica_lost" and "took no step" in why for kind, why in told)
    await caller.settled("demo", "v1", "READY")
    assert (await caller.complete()).status_code == 200


class TestDeath:
    async def test_a_killed_replicas_requests_are_asked_again_within_the_budget_only(
        self, caller: Caller, gateway: Gateway
    ) -> None:
        """Nobody has a first token when it dies: it was stopped before they asked."""
        first, second = await load_two_replicas(caller, "toy:step_s=0.1")
        await set_policy(caller, retry_share=0, min_retries=3)
        version = gateway.fleet.version("demo", "v1")
        with held(first["pid"], second["pid"]):
            asking = asyncio.gather(*(caller.complete(max_tokens=2) for _ in range(16)))
            await until(lambda: [r.in_flight for r in version.replicas] == [8, 8])
            os.kill(first["pid"], signal.SIGKILL)
        counts = Counter(a.status_code for a in await asking)
        assert counts == {200: 11, 503: 5}

    async def test_a_stream_that_has_begun_is_never_begun_again(self, caller: Caller) -> None:
        first, second = await load_two_replicas(caller, "toy:step_s=0.05")
        events: list[Any] = []
        async for event in caller.stream_complete(max_tokens=200):
            events.append(event)
            if len(events) == 3:
                for pid in (first["pid"], second["pid"]):
                    os.kill(pid, signal.SIGKILL)
        assert events[-2]["error"]["type"] == "server_error"
        text = "".join(e["choices"][0]["text"] for e in events[:-2])
        assert toy_text("hello", 200).startswith(text)

    async def test_an_idle_worker_is_probed_and_a_busy_one_is_not(
        self, caller: Caller, gateway: Gateway, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(watch, "PROBE_S", 0.5)
        await caller.load("demo", "v1", "toy:step_s=0.001")
        replica = gateway.fleet.version("demo", "v1").replicas[0]
        await until(lambda: replica.heartbeat.num_steps >= 2)
        assert gateway.fleet.version("demo", "v1").window.requests == 0


class TestBreaker:
    async def test_failures_in_a_row_close_the_door_and_a_success_later_opens_it(
        self, caller: Caller, gateway: Gateway
    ) -> None:
        await caller.load("demo", "v1", "toy:step_s=0,fail_rate=1")
        await set_policy(caller, breaker_open_s=60)
        assert [(await caller.complete()).status_code for _ in range(5)] == [500] * 5
        shut = await caller.complete()
        assert shut.status_code == 503
        assert 50 < int(shut.headers["Retry-After"]) <= 60
        assert "demo@v1#0: its breaker is open" in (await caller.complete("demo@v1")).json()["error"]["message"]
        assert (await caller.version("demo", "v1"))["replicas"][0]["breaker"] == "open"
        assert (await kinds(caller))[-1] == "breaker_open"

    async def test_the_other_version_takes_its_share_meanwhile(self, caller: Caller) -> None:
        await caller.load("demo", "v1", "toy:step_s=0,fail_rate=1")
        await caller.load("demo", "v2", "toy:step_s=0")
        await caller.put("/api/deployments/demo/route", json={"weights": {"v1": 50, "v2": 50}})
        answers = [await caller.complete() for _ in range(30)]
        assert Counter((a.status_code, a.headers["X-DSServe-Version"]) for a in answers) == {
            (500, "v1"): 5,
            (200, "v2"): 25,
        }

    async def test_callers_who_leave_and_bad_requests_say_nothing_of_the_replica(
        self, caller: Caller, gateway: Gateway
    ) -> None:
        await caller.load("demo", "v1", "toy:step_s=0.05", max_context=64)
        replica = gateway.fleet.version("demo", "v1").replicas[0]
        for _ in range(6):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(caller.complete(max_tokens=50), 0.08)
            assert (await caller.complete(max_tokens=1000)).status_code == 400
            assert (await caller.complete(max_tokens=50, timeout_s=0.06)).status_code == 504
        assert replica.breaker.door.value == "closed"
        assert (await caller.complete()).status_code == 200


class TestDegradation:
    async def test_another_version_answers_and_says_so_then_the_configured_text(self, caller: Caller) -> None:
        await caller.load("demo", "v1", "toy:step_s=0")
        await caller.load("demo", "v2", "toy:step_s=0,fail_rate=1")
        await caller.post("/api/deployments/demo/activate", json={"version": "v2"})
        await caller.settled("demo", "v1", "STOPPED")
        assert (await caller.complete()).status_code == 500
        await set_policy(caller, fallback="v1", fallback_answer="Come back later.")
        answer = await caller.complete()
        assert (answer.status_code, answer.headers["X-DSServe-Degraded"]) == (200, "answer")
        assert "X-DSServe-Version" not in answer.headers
        assert answer.json()["choices"][0]["text"] == "Come back later."
        await caller.post("/api/deployments/demo/versions/v1/load")
        await caller.settled("demo", "v1", "READY")
        answers = [await caller.complete() for _ in range(10)]  # the breaker of v2 opens on the way
        assert {(a.status_code, a.headers["X-DSServe-Degraded"], a.headers["X-DSServe-Version"]) for a in answers} == {
            (200, "version v1", "v1")
        }
        assert {a.json()["choices"][0]["text"] for a in answers} == {toy_text("hello", 5)}
        assert (await caller.complete("demo@v2")).status_code in (500, 503)  # who names a version means it

    @pytest.mark.parametrize("fields", [{}, {"n": 3}])
    async def test_a_stream_is_degraded_before_its_first_byte(self, fields: dict[str, Any], caller: Caller) -> None:
        await caller.load("demo", "v1", "toy:step_s=0,fail_rate=1")
        await caller.load("demo", "v2", "toy:step_s=0")
        await set_policy(caller, fallback="v2")
        text: dict[int, str] = {}
        body = {"model": "demo", "prompt": "hello", "max_tokens": 5, "stream": True, **fields}
        async with caller.stream("POST", "/v1/completions", json=body) as answer:
            assert (answer.headers["X-DSServe-Degraded"], answer.headers["X-DSServe-Version"]) == ("version v2", "v2")
        async for event in caller.stream_complete(**fields):
            if event != "[DONE]":
                choice = event["choices"][0]
                text[choice["index"]] = text.get(choice["index"], "") + choice["text"]
        assert text == dict.fromkeys(range(fields.get("n", 1)), toy_text("hello", 5))

    async def test_what_the_caller_did_wrong_is_not_answered_by_another(self, caller: Caller) -> None:
        await caller.load("demo", "v1", "toy:step_s=0", max_context=16)
        await set_policy(caller, fallback_answer="Come back later.")
        assert (await caller.complete(max_tokens=1000)).status_code == 400


async def swaps(caller: Caller, num_requests: int, num_swaps: int) -> list[httpx.Response]:
    """``num_requests`` at 64 at once while v1 and v2 are activated in turn; each says who answered."""
    for version in ("v1", "v2"):
        await caller.load("demo", version, "toy:step_s=0.002")
    limit, answers = asyncio.Semaphore(64), []

    async def ask(number: int) -> None:
        async with limit:
            answers.append(await caller.complete(prompt=f"prompt {number}", max_tokens=20))

    asking = asyncio.gather(*(ask(number) for number in range(num_requests)))
    for swap in range(num_swaps):
        await until(lambda after=(swap + 1) * num_requests // (num_swaps + 1): len(answers) >= after)
        old, new = ("v1", "v2") if swap % 2 == 0 else ("v2", "v1")
        await caller.post(f"/api/deployments/demo/versions/{new}/load")
        await caller.settled("demo", new, "READY")
        assert (await caller.post("/api/deployments/demo/activate", json={"version": new})).status_code == 200
        await caller.settled("demo", old, "STOPPED")
    await asking
    return answers


def check_swapped(answers: list[httpx.Response], num_requests: int) -> None:
    assert Counter(a.status_code for a in answers) == {200: num_requests}
    assert len({a.json()["id"] for a in answers}) == num_requests
    texts = Counter(a.json()["choices"][0]["text"] for a in answers)
    assert texts == Counter(toy_text(f"prompt {number}", 20) for number in range(num_requests))
    assert Counter(a.headers["X-DSServe-Version"] for a in answers).keys() == {"v1", "v2"}


async def test_300_requests_at_64_at_once_survive_three_swaps(caller: Caller) -> None:
    check_swapped(await swaps(caller, 300, 3), 300)


@pytest.mark.long
async def test_2000_requests_at_64_at_once_survive_five_swaps(caller: Caller) -> None:
    check_swapped(await swaps(caller, 2000, 5), 2000)
