"""What happens to requests when there are too many of them, by the deployment's policy."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest

from jupyter_dsserve import AsyncClient
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import InvalidRequest, NotFound, TooManyRequests
from jupyter_dsserve.protocol.policy import Policy, Rule
from tests.engine.test_loop import toy_text
from tests.support import Caller, held, until

FAST = "toy:step_s=0.001"


async def set_policy(caller: Caller, **fields: Any) -> httpx.Response:
    answer = await caller.put("/api/deployments/demo/policy", json=fields)
    assert answer.status_code == 200, answer.text
    return answer


async def set_route(caller: Caller, **weights: float) -> None:
    answer = await caller.put("/api/deployments/demo/route", json={"weights": weights})
    assert answer.status_code == 200, answer.text


def said_by(answer: httpx.Response) -> str:
    return answer.headers.get("X-DSServe-Version", "")


class TestShares:
    async def test_of_a_hundred_calls_without_a_key_exactly_the_weights_go_to_each_version(
        self, caller: Caller
    ) -> None:
        await caller.load("demo", "v1", FAST)
        await caller.load("demo", "v2", FAST)
        await set_route(caller, v1=95, v2=5)
        answers = [await caller.complete(max_tokens=1) for _ in range(100)]
        assert Counter(map(said_by, answers)) == {"v1": 95, "v2": 5}

    async def test_a_rule_sends_its_callers_to_a_version_without_weight(self, caller: Caller) -> None:
        await caller.load("demo", "v1", FAST)
        await caller.load("demo", "v2", FAST)
        await set_policy(caller, rules=[{"header": "X-User-Group", "value": "beta", "version": "v2"}])
        body = {"model": "demo", "prompt": "hello"}
        for group, version in (("beta", "v2"), ("all", "v1")):
            answer = await caller.post("/v1/completions", json=body, headers={"x-user-group": group})
            assert said_by(answer) == version
        await caller.post("/api/deployments/demo/versions/v2/unload")
        await caller.settled("demo", "v2", "STOPPED")
        answer = await caller.post("/v1/completions", json=body, headers={"X-User-Group": "beta"})
        assert (answer.status_code, said_by(answer)) == (200, "v1")


class TestPolicy:
    async def test_what_is_given_is_set_and_the_rest_stays(self, caller: Caller) -> None:
        await caller.load("demo", "v1", FAST)
        assert (await caller.get("/api/deployments/demo/policy")).json() == Policy().to_json() | {"rules": []}
        await set_policy(caller, rate=10, burst=50)
        assert (await set_policy(caller, max_queue=5)).json()["burst"] == 50
        history = (await caller.get("/api/history")).json()
        assert [e["reason"] for e in history if e["kind"] == "policy"] == ["rate=10.0, burst=50", "max_queue=5"]

    @pytest.mark.parametrize(
        ("fields", "status", "word"),
        [
            ({"max_que": 5}, 400, "max_queue"),
            ({"rate": -1}, 400, "rate"),
            ({"retry_share": 2}, 400, "retry_share"),
            ({"rules": [{"header": "a b", "value": "", "version": "v1"}]}, 400, "rules.0.header"),
            ({"fallback": "v9"}, 404, "v9"),
            ({"rules": [{"header": "A", "value": "b", "version": "v9"}]}, 404, "v9"),
        ],
    )
    async def test_what_is_wrong_is_named_and_changes_nothing(
        self, fields: dict[str, Any], status: int, word: str, caller: Caller
    ) -> None:
        await caller.load("demo", "v1", FAST)
        answer = await caller.put("/api/deployments/demo/policy", json=fields)
        assert (answer.status_code, word in answer.text) == (status, True)
        assert (await caller.get("/api/deployments/demo/policy")).json() == Policy().to_json() | {"rules": []}

    async def test_the_client_sets_and_shows_it(self, caller: Caller, gateway: Gateway) -> None:
        await caller.load("demo", "v1", FAST)
        client = AsyncClient(gateway.url, gateway.admin_key)
        try:
            rule = Rule("X-User-Group", "beta", "v1")
            policy = await client.policy("demo", rate=10, rules=[rule])
            assert (policy.rate, policy.rules) == (10, (rule,))
            assert policy._repr_mimebundle_()["text/plain"] == "rate: 10.0\nrule X-User-Group=beta: v1"
            assert await client.policy("demo") == policy
            assert (await client.policy("demo", rules=[])).rules == ()
            with pytest.raises(InvalidRequest, match="retry_share"):
                await client.policy("demo", retry_share=7)
            with pytest.raises(NotFound):
                await client.policy("nobody")
        finally:
            await client.aclose()

    async def test_it_is_there_after_a_restart(self, tmp_path: Path) -> None:
        for attempt in range(2):
            gateway = Gateway(GatewayConfig(tmp_path / "data", port=0, drain_s=5))
            await gateway.start()
            try:
                async with Caller(gateway.url, gateway.admin_key) as caller:
                    if attempt == 0:
                        await caller.load("demo", "v1", FAST, wait=False)
                        rule = {"header": "A", "value": "b", "version": "v1"}
                        await set_policy(caller, max_queue=5, rules=[rule])
                    else:
                        found = (await caller.get("/api/deployments/demo/policy")).json()
                        assert (found["max_queue"], found["rules"]) == (5, [rule])
            finally:
                await gateway.stop()


class TestLimits:
    async def test_beyond_rate_and_burst_calls_get_429_with_retry_after(self, caller: Caller) -> None:
        await caller.load("demo", "v1", FAST)
        await set_policy(caller, rate=2, burst=5)
        answers = await asyncio.gather(*(caller.complete(max_tokens=1) for _ in range(40)))
        counts = Counter(a.status_code for a in answers)
        assert 5 <= counts[200] < 40  # a slow machine takes its time to ask
        refused = next(a for a in answers if a.status_code == 429)
        assert int(refused.headers["Retry-After"]) == 1
        assert "demo takes 2 calls a second and 5 at once" in refused.json()["error"]["message"]
        await asyncio.sleep(0.6)
        assert (await caller.complete(max_tokens=1)).status_code == 200

    async def test_no_replica_has_more_than_its_permits_and_the_line_is_served_in_order(
        self, caller: Caller, gateway: Gateway
    ) -> None:
        await caller.load("demo", "v1", "toy:step_s=0.01")
        await set_policy(caller, max_in_flight=1)
        replica, order = gateway.fleet.version("demo", "v1").replicas[0], []
        line = gateway.fleet.deployment("demo").road.line

        async def ask(priority: int, max_tokens: int = 5) -> None:
            answer = await caller.complete(max_tokens=max_tokens, priority=priority)
            order.append((answer.status_code, priority))

        with held(replica.pid):
            asking = [asyncio.create_task(ask(0, max_tokens=60))]
            await until(lambda: replica.in_flight == 1)
            for priority in (3, 1, -2, 2):
                asking.append(asyncio.create_task(ask(priority)))
                await until(lambda: line.num_waiting == len(asking) - 1)
            assert replica.in_flight == 1
        await asyncio.gather(*asking)
        assert order == [(200, p) for p in (0, -2, 1, 2, 3)]

    async def test_ten_times_too_much_sheds_the_low_before_the_high_and_nothing_hangs(
        self, caller: Caller, gateway: Gateway
    ) -> None:
        """A replica that takes four at a time, a line of eight, and ten times as many at once."""
        await caller.load("demo", "v1", "toy:step_s=0.005", replicas=1)
        await set_policy(caller, max_in_flight=4, max_queue=8)
        line = gateway.fleet.deployment("demo").road.line

        async def ask(priority: int) -> tuple[int, httpx.Response]:
            body = {"model": "demo", "prompt": "hello", "max_tokens": 20}
            headers = {"X-DSServe-Priority": str(priority)}
            return priority, await caller.post("/v1/completions", json=body, headers=headers)

        # None of the four ends before all the others have asked, however long these take.
        running = [asyncio.create_task(caller.complete(max_tokens=1_000_000)) for _ in range(4)]
        await until(lambda: gateway.fleet.in_flight == 4)
        asking = [asyncio.create_task(ask(priority)) for priority in [5] * 106 + [0] * 10]  # the low ones come first
        await until(lambda: sum(task.done() for task in asking) == 108)
        assert (line.num_waiting, gateway.fleet.in_flight) == (8, 4)
        for task in running:
            task.cancel()
        answers = await asyncio.wait_for(asyncio.gather(*asking), 30)
        counts = Counter((priority, answer.status_code) for priority, answer in answers)
        assert counts == {(0, 200): 8, (0, 429): 2, (5, 429): 106}  # the line holds eight
        served = [a for _, a in answers if a.status_code == 200]
        assert {a.json()["choices"][0]["text"] for a in served} == {toy_text("hello", 20)}
        shed = next(a for _, a in answers if a.status_code == 429)
        assert "max_queue" in shed.json()["error"]["message"]
        assert int(shed.headers["Retry-After"]) >= 1
        assert line.num_waiting == gateway.fleet.in_flight == 0

    async def test_a_wait_that_takes_too_long_ends_by_the_policy_and_is_never_computed(
        self, caller: Caller, gateway: Gateway
    ) -> None:
        await caller.load("demo", "v1", "toy:step_s=0.02")
        replica = gateway.fleet.version("demo", "v1").replicas[0]
        await set_policy(caller, max_in_flight=1, queue_timeout_s=0.2)
        with held(replica.pid):
            long = asyncio.create_task(caller.complete(max_tokens=10))
            await until(lambda: replica.in_flight == 1)
            late = await caller.complete()
            assert (late.status_code, "queue_timeout_s" in late.text) == (504, True)
            await set_policy(caller, queue_timeout_s=0, acquire_timeout_s=0.2)
            late = await caller.complete()
            assert late.status_code == 503
            assert "all 1 replicas of demo@v1 have their max_in_flight of 1" in late.json()["error"]["message"]
            late = await caller.complete(timeout_s=0.1)
            assert (late.status_code, "in line for demo@v1" in late.text) == (504, True)
            assert replica.in_flight == 1
        assert (await long).status_code == 200

    async def test_a_caller_who_leaves_the_line_takes_nothing_along(self, caller: Caller, gateway: Gateway) -> None:
        await caller.load("demo", "v1", "toy:step_s=0.02")
        await set_policy(caller, max_in_flight=1)
        line = gateway.fleet.deployment("demo").road.line
        with held(gateway.fleet.version("demo", "v1").replicas[0].pid):
            long = asyncio.create_task(caller.complete(max_tokens=60))
            await until(lambda: gateway.fleet.in_flight == 1)
            waiting = asyncio.create_task(caller.complete())
            await until(lambda: line.num_waiting == 1)
            waiting.cancel()
            await until(lambda: line.num_waiting == 0)
        assert (await long).status_code == 200
        assert (await caller.complete()).status_code == 200

    async def test_the_first_token_and_the_whole_answer_have_deadlines(self, caller: Caller, gateway: Gateway) -> None:
        await caller.load("demo", "v1", "toy:step_s=0.4")
        replica = gateway.fleet.version("demo", "v1").replicas[0]
        await set_policy(caller, first_token_timeout_s=0.1)
        with held(replica.pid):
            late = await caller.complete()
        assert (late.status_code, "first_token_timeout_s" in late.text) == (504, True)
        await set_policy(caller, first_token_timeout_s=0, timeout_s=0.7)
        late = await caller.complete(max_tokens=50)
        assert (late.status_code, "time limit" in late.text) == (504, True)
        await until(lambda: replica.heartbeat.running == replica.heartbeat.waiting == 0)

    async def test_the_client_raises_what_it_is_told(self, caller: Caller, gateway: Gateway) -> None:
        await caller.load("demo", "v1", FAST)
        await set_policy(caller, rate=0.01, burst=1)
        client = AsyncClient(gateway.url, gateway.admin_key)
        try:
            await client.generate("demo", "hello", max_tokens=1)
            with pytest.raises(TooManyRequests, match=r"0\.01 calls a second") as refused:
                await client.generate("demo", "hello", max_tokens=1)
            assert 50 < refused.value.retry_after_s <= 100
            assert (await caller.complete()).json()["error"]["code"] == "rate_limit_exceeded"
        finally:
            await client.aclose()

    @pytest.mark.parametrize("priority", ["high", "101", ""])
    async def test_a_priority_that_is_none_is_refused(self, priority: str, caller: Caller) -> None:
        await caller.load("demo", "v1", FAST)
        body = {"model": "demo", "input_text": "hello"}
        answer = await caller.post("/predict", json=body, headers={"X-DSServe-Priority": priority})
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, "X-DSServe-Priority")


class TestWaitingForAReplica:
    async def test_requests_wait_for_one_that_is_on_its_way(self, caller: Caller, gateway: Gateway) -> None:
        await caller.load("demo", "v1", "toy:step_s=0.001,load_s=0.5")
        await caller.post("/api/deployments/demo/versions/v1/unload")
        await caller.settled("demo", "v1", "STOPPED")
        assert (await caller.complete("demo@v1")).status_code == 503
        gateway.fleet.version("demo", "v1").is_awaited = True
        await caller.post("/api/deployments/demo/versions/v1/load")
        answers = await asyncio.gather(*(caller.complete("demo@v1") for _ in range(5)))
        assert {a.status_code for a in answers} == {200}

    async def test_a_load_that_fails_ends_their_wait(self, caller: Caller, gateway: Gateway) -> None:
        await caller.load("demo", "v1", "toy:load_s=30", wait=False)
        gateway.fleet.version("demo", "v1").is_awaited = True
        asking = asyncio.create_task(caller.complete("demo@v1"))
        line = gateway.fleet.deployment("demo").road.line
        await until(lambda: line.num_waiting == 1)
        await caller.post("/api/deployments/demo/versions/v1/unload")
        assert (await asking).status_code == 503
