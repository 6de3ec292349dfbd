"""The control API with toy workers: load, route, activate, unload, look."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
import sqlalchemy as sa

from jupyter_dsserve.fleet.events import Asked
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import Unavailable
from tests.engine.test_loop import toy_text
from tests.support import Caller, Command, held, is_running, until

FAST = "toy:step_s=0.001"


async def route(caller: Caller) -> dict[str, float]:
    return (await caller.get("/api/deployments/demo/route")).json()["weights"]


async def put_route(caller: Caller, weights: dict[str, float], **more: int) -> httpx.Response:
    return await caller.put("/api/deployments/demo/route", json={"weights": weights, **more})


async def test_a_load_is_answered_202_and_becomes_ready_with_progress(caller: Caller) -> None:
    answer = await caller.post("/api/deployments", json={"name": "demo", "version": "v1", "model": "toy:load_s=2"})
    assert answer.status_code == 202
    assert answer.json()["state"] in ("QUEUED", "LOADING")
    seen = []

    async def look() -> dict[str, object]:
        seen.append(await caller.version("demo", "v1"))
        return seen[-1]

    await until(look, lambda v: v["state"] == "READY")
    progress = [v["progress"] for v in seen]
    assert progress == sorted(progress)
    assert any(0 < p < 1 for p in progress)
    assert seen[-1]["progress"] == 1


async def test_the_first_ready_version_gets_all_traffic_and_a_second_one_none(caller: Caller) -> None:
    await caller.load("demo", "v1", FAST)
    assert await route(caller) == {"v1": 100}
    await caller.load("demo", "v2", FAST)
    assert await route(caller) == {"v1": 100}


async def test_predict_answers_as_documented(caller: Caller) -> None:
    await caller.load("demo", "v1", FAST)
    answer = await caller.post("/predict", json={"model": "demo", "input_text": "hello", "max_length": 9})
    found = answer.json()
    assert set(found) == {"result", "latency_ms", "timestamp", "version"}
    assert (found["result"], found["version"]) == (toy_text("hello", 9), "v1")
    assert found["latency_ms"] > 0
    assert found["timestamp"].endswith("+00:00")


async def test_weights_split_the_traffic(caller: Caller) -> None:
    await caller.load("demo", "v1", FAST)
    await caller.load("demo", "v2", FAST)
    assert (await put_route(caller, {"v1": 50, "v2": 50})).json() == {"weights": {"v1": 50, "v2": 50}, "revision": 2}
    answers = await asyncio.gather(*(caller.complete(max_tokens=1) for _ in range(100)))
    counts = Counter(a.headers["X-DSServe-Version"] for a in answers)
    assert counts.keys() == {"v1", "v2"}
    assert min(counts.values()) > 25  # five standard deviations


async def test_a_stale_revision_is_refused_and_changes_nothing(caller: Caller) -> None:
    await caller.load("demo", "v1", FAST)
    await caller.load("demo", "v2", FAST)
    assert (await put_route(caller, {"v1": 90, "v2": 10}, revision=1)).status_code == 200
    stale = await put_route(caller, {"v1": 10, "v2": 90}, revision=1)
    assert stale.status_code == 409
    assert "revision 2" in stale.json()["error"]["message"]
    assert await route(caller) == {"v1": 90, "v2": 10}


async def test_200_requests_at_32_concurrency_survive_a_swap(caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.005")
    await caller.load("demo", "v2", "toy:step_s=0.005")
    limit = asyncio.Semaphore(32)
    answers: list[httpx.Response] = []

    async def ask() -> None:
        async with limit:
            answers.append(await caller.complete(max_tokens=20))

    asking = asyncio.gather(*(ask() for _ in range(200)))
    await until(lambda: len(answers) > 40)
    swapped = await caller.post("/api/deployments/demo/activate", json={"version": "v2"})
    assert swapped.status_code == 200
    await asking
    assert Counter(a.status_code for a in answers) == {200: 200}
    assert {a.json()["choices"][0]["text"] for a in answers} == {toy_text("hello", 20)}
    assert Counter(a.headers["X-DSServe-Version"] for a in answers).keys() == {"v1", "v2"}
    await caller.settled("demo", "v1", "STOPPED")
    assert await route(caller) == {"v2": 100}


async def test_activate_loads_what_is_not_loaded_and_the_old_version_serves_meanwhile(caller: Caller) -> None:
    await caller.load("demo", "v1", FAST)
    await caller.load("demo", "v2", "toy:step_s=0.001,load_s=3")
    await caller.post("/api/deployments/demo/versions/v2/unload")
    await caller.settled("demo", "v2", "STOPPED")
    answer = await caller.post("/api/deployments/demo/activate", json={"version": "v2"})
    assert (answer.status_code, answer.json()["activating"]) == (202, "v2")
    assert (await caller.complete()).headers["X-DSServe-Version"] == "v1"
    again = await caller.post("/api/deployments/demo/activate", json={"version": "v1"})
    assert again.status_code == 409
    await caller.settled("demo", "v1", "STOPPED")
    assert (await caller.complete()).headers["X-DSServe-Version"] == "v2"


async def test_a_candidate_that_fails_to_load_leaves_the_old_version_serving(caller: Caller) -> None:
    await caller.load("demo", "v1", FAST)
    await caller.load("demo", "v2", FAST, python="/bin/false", wait=False)
    failed = await caller.settled("demo", "v2")
    assert failed["state"] == "FAILED"
    assert "/bin/false" in failed["reason"]
    await caller.post("/api/deployments/demo/activate", json={"version": "v2"})
    history = await until(
        lambda: caller.get("/api/history"), lambda a: any(e["kind"] == "activate_failed" for e in a.json())
    )
    assert any("/bin/false" in e["reason"] for e in history.json())
    assert (await caller.complete()).headers["X-DSServe-Version"] == "v1"


async def test_unload_ends_the_process_keeps_the_version_and_moves_its_traffic(
    caller: Caller, gateway: Gateway
) -> None:
    await caller.load("demo", "v1", FAST)
    await caller.load("demo", "v2", FAST)
    await put_route(caller, {"v1": 90, "v2": 10})
    pid = (await caller.version("demo", "v1"))["replicas"][0]["pid"]
    await caller.post("/api/deployments/demo/versions/v1/unload")
    stopped = await caller.settled("demo", "v1", "STOPPED")
    assert stopped["replicas"] == []
    assert not is_running(pid)
    assert await route(caller) == {"v2": 100}
    await caller.post("/api/deployments/demo/versions/v1/load")
    assert (await caller.settled("demo", "v1", "READY"))["weight"] == 0


async def test_unloading_the_only_version_empties_the_route_and_calls_get_503(caller: Caller) -> None:
    await caller.load("demo", "v1", FAST)
    await caller.post("/api/deployments/demo/versions/v1/unload")
    await caller.settled("demo", "v1", "STOPPED")
    answer = await caller.complete()
    assert answer.status_code == 503
    assert int(answer.headers["Retry-After"]) > 0
    assert "STOPPED" in answer.json()["error"]["message"]
    await caller.post("/api/deployments/demo/versions/v1/load")
    await caller.settled("demo", "v1", "READY")
    assert (await caller.complete()).status_code == 200


async def test_requests_that_run_when_their_version_is_unloaded_end_in_full(caller: Caller, gateway: Gateway) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.05")
    asking = asyncio.create_task(caller.complete(max_tokens=20))
    await until(lambda: gateway.fleet.in_flight == 1)
    await caller.post("/api/deployments/demo/versions/v1/unload")
    assert (await asking).json()["choices"][0]["text"] == toy_text("hello", 20)


async def test_a_deleted_version_frees_its_name_and_the_last_one_its_deployment(caller: Caller) -> None:
    await caller.load("demo", "v1", FAST)
    assert (await caller.delete("/api/deployments/demo/versions/v1")).status_code == 202
    await until(lambda: caller.get("/api/deployments"), lambda a: a.json() == [])
    await caller.load("demo", "v1", FAST)


async def test_a_deleted_deployment_is_gone_with_its_workers(caller: Caller, gateway: Gateway) -> None:
    await caller.load("demo", "v1", FAST)
    await caller.load("demo", "v2", FAST)
    assert (await caller.delete("/api/deployments/demo")).status_code == 202
    await until(lambda: caller.get("/api/deployments"), lambda a: a.json() == [])
    assert (await caller.complete()).status_code == 404


async def test_a_second_delete_changes_nothing(caller: Caller, gateway: Gateway) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.02")
    replica = gateway.fleet.version("demo", "v1").replicas[0]
    with held(replica.pid):
        asking = asyncio.create_task(caller.complete(max_tokens=60))
        await until(lambda: replica.in_flight == 1)
        for _ in range(2):
            assert (await caller.delete("/api/deployments/demo/versions/v1")).status_code == 202
            assert (await caller.version("demo", "v1"))["state"] == "DRAINING"
        assert (await caller.post("/api/deployments/demo/versions/v1/load")).status_code == 409
    assert (await asking).json()["choices"][0]["text"] == toy_text("hello", 60)


async def test_a_stop_waits_for_a_version_that_is_being_unloaded(caller: Caller, data_dir: Path) -> None:
    async with _second_gateway(data_dir) as (gateway, other):
        await other.load("demo", "v1", "toy:step_s=0.02")
        asking = asyncio.create_task(other.complete(max_tokens=60))
        await until(lambda: gateway.fleet.version("demo", "v1").replicas[0].in_flight == 1)
        await other.post("/api/deployments/demo/versions/v1/unload")
        await gateway.stop()
        assert (await asking).json()["choices"][0]["text"] == toy_text("hello", 60)


async def test_a_deleted_version_does_not_come_back_although_the_gateway_was_killed(
    caller: Caller, data_dir: Path
) -> None:
    with Command(data_dir.parent / "other", "--load", f"demo={FAST}") as command:
        async with await command.caller() as other:
            await other.settled("demo", "v1", "READY")
            await other.load("demo", "v2", "toy:step_s=0.02")
            asking = asyncio.create_task(other.complete("demo@v2", max_tokens=100_000))
            await until(lambda: other.version("demo", "v2"), lambda v: v["replicas"][0]["in_flight"] == 1)
            assert (await other.delete("/api/deployments/demo/versions/v2")).status_code == 202
            command.process.kill()
            with contextlib.suppress(httpx.HTTPError):
                await asking
    with Command(data_dir.parent / "other") as command:
        async with await command.caller() as other:
            versions = (await other.get("/api/deployments/demo")).json()["versions"]
            assert [v["version"] for v in versions] == ["v1"]


@contextlib.asynccontextmanager
async def _second_gateway(data_dir: Path) -> AsyncIterator[tuple[Gateway, Caller]]:
    """One that the test itself stops."""
    gateway = Gateway(GatewayConfig(data_dir.parent / "second", port=0, drain_s=10))
    await gateway.start()
    async with Caller(gateway.url, gateway.admin_key) as caller:
        yield gateway, caller


async def test_a_ready_version_is_routed_once_the_activation_beside_it_has_failed(caller: Caller) -> None:
    await caller.load("demo", "v2", "toy:load_s=30", wait=False)
    assert (await caller.post("/api/deployments/demo/activate", json={"version": "v2"})).status_code == 202
    assert (await caller.load("demo", "v1", "toy:"))["state"] == "READY"
    assert await route(caller) == {}
    await caller.post("/api/deployments/demo/versions/v2/unload")
    await caller.settled("demo", "v2", "STOPPED")
    assert await route(caller) == {"v1": 100}


async def test_a_directory_is_registered_by_its_absolute_path(
    caller: Caller, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (model / "model.safetensors").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    loading = await caller.load("demo", "v1", "./model", wait=False)
    assert loading["spec"]["model"] == str(model)


async def test_a_registry_that_cannot_be_written_fails_a_registration_and_no_traffic_verb(
    caller: Caller, gateway: Gateway
) -> None:
    await caller.load("demo", "v1", FAST)
    await caller.load("demo", "v2", FAST)

    engine = gateway.fleet._registry._engine
    sa.event.listen(engine, "begin", lambda db: db.exec_driver_sql("PRAGMA query_only = 1"))
    body = {"name": "demo", "version": "v3", "model": FAST}
    for _ in range(2):
        refused = await caller.post("/api/deployments", json=body)
        assert refused.status_code == 503
        assert "disk" in refused.json()["error"]["message"]
    assert (await caller.post("/api/deployments/demo/activate", json={"version": "v2"})).status_code == 200
    await caller.settled("demo", "v1", "STOPPED")
    assert await route(caller) == {"v2": 100}
    history = (await caller.get("/api/history")).json()
    assert any("the route of demo" in e["reason"] for e in history if e["kind"] == "registry_failed")
    sa.event.listen(engine, "begin", lambda db: db.exec_driver_sql("PRAGMA query_only = 0"))
    await until(lambda: caller.get("/api/history"), lambda a: any(e["kind"] == "registry_written" for e in a.json()))
    await gateway.fleet._registry.history(Asked())
    with sqlite3.connect(gateway.config.data_dir / "fleet.db") as db:
        assert db.execute("SELECT weights FROM deployments").fetchall() == [('{"v2": 100.0}',)]
    db.close()


async def test_replicas_of_one_version_share_its_requests(caller: Caller, gateway: Gateway) -> None:
    loaded = await caller.load("demo", "v1", "toy:step_s=0.05", replicas=2)
    await until(
        lambda: caller.version("demo", "v1"), lambda v: [r["state"] for r in v["replicas"]] == ["READY", "READY"]
    )
    assert loaded["state"] == "READY"
    asking = asyncio.gather(*(caller.complete(max_tokens=60) for _ in range(10)))
    replicas = gateway.fleet.version("demo", "v1").replicas
    await until(lambda: sorted(r.in_flight for r in replicas) == [5, 5])
    await asking


async def test_events_and_stats_come_as_they_happen(caller: Caller) -> None:
    seen: dict[str, list[dict[str, object]]] = {"event": [], "stats": []}
    async with caller.stream("GET", "/api/events") as answer:
        assert answer.headers["Content-Type"] == "text/event-stream"
        assert answer.headers["X-Accel-Buffering"] == "no"
        await caller.load("demo", "v1", FAST)
        await caller.complete()
        kind = ""
        async for line in answer.aiter_lines():
            if line.startswith("event: "):
                kind = line.removeprefix("event: ")
            elif line.startswith("data: "):
                seen[kind].append(json.loads(line.removeprefix("data: ")))
            if any(s["requests"] for s in seen["stats"]):
                break
    assert [e["kind"] for e in seen["event"]] == ["registered", "loading", "ready", "route"]
    stats = seen["stats"][-1]
    assert (stats["deployment"], stats["version"], stats["state"], stats["weight"]) == ("demo", "v1", "READY", 100)
    assert 0 < stats["first_token_p95_s"] <= stats["p50_s"] <= stats["p99_s"] < 60  # type: ignore[operator]


async def test_an_event_stream_resumes_after_the_last_event_seen(caller: Caller) -> None:
    await caller.load("demo", "v1", FAST)
    ids = [e["id"] for e in (await caller.get("/api/history")).json()]
    async with caller.stream("GET", "/api/events", headers={"Last-Event-ID": str(ids[2])}) as answer:
        lines = answer.aiter_lines()
        resumed = [line async for line in _take(lines, 2 * 4)]
    assert [line for line in resumed if line.startswith("id: ")] == [f"id: {i}" for i in ids[3:]]


async def _take(lines, count):  # type: ignore[no-untyped-def]
    async for line in lines:
        yield line
        count -= 1
        if count == 0:
            return


async def test_logs_are_the_workers_own_words(caller: Caller) -> None:
    await caller.load("demo", "v1", FAST)
    logs = (await caller.get("/api/deployments/demo/versions/v1/logs?lines=50")).json()
    assert logs.keys() == {"demo@v1#0"}
    assert any("ready" in line for line in logs["demo@v1#0"])


async def test_health_needs_no_key_and_ready_means_that_somebody_can_answer(caller: Caller, gateway: Gateway) -> None:
    async with httpx.AsyncClient(base_url=gateway.url, trust_env=False) as stranger:
        assert (await stranger.get("/health/live")).status_code == 200
        assert (await stranger.get("/health/ready")).status_code == 503
        await caller.load("demo", "v1", FAST)
        assert (await stranger.get("/health/ready")).status_code == 200
        assert (await stranger.get("/health/ready?all=true")).status_code == 200
        await caller.load("other", "v1", "toy:load_s=60", wait=False)
        assert (await stranger.get("/health")).status_code == 200  # vLLM's name for it
        wanting = await stranger.get("/health/ready?all=true")
        assert wanting.status_code == 503
        assert "other" not in wanting.text  # a name is for those with a key
        assert (await stranger.get("/health/ready?all=yes")).status_code == 400
        await caller.post("/api/deployments/other/versions/v1/unload")
        await caller.settled("other", "v1", "STOPPED")
        assert (await stranger.get("/health/ready?all=true")).status_code == 200


@pytest.mark.parametrize("concurrency", [64])
async def test_many_streams_at_once_are_all_whole(caller: Caller, concurrency: int) -> None:
    await caller.load("demo", "v1", FAST)

    async def ask(prompt: str) -> str:
        events = [e async for e in caller.stream_complete(prompt=prompt, max_tokens=40)]
        assert events[-1] == "[DONE]"
        return "".join(e["choices"][0]["text"] for e in events[:-1])

    prompts = [f"prompt {i}" for i in range(concurrency)]
    assert await asyncio.gather(*map(ask, prompts)) == [toy_text(p, 40) for p in prompts]


async def test_loading_just_the_same_version_again_only_makes_sure_that_it_is_loaded(caller: Caller) -> None:
    """A notebook that is run again from the top."""
    first = await caller.load("demo", "v1", FAST)
    assert (await caller.load("demo", "v1", FAST, note="again"))["replicas"] == first["replicas"]
    await caller.post("/api/deployments/demo/versions/v1/unload")
    await caller.settled("demo", "v1", "STOPPED")
    assert (await caller.load("demo", "v1", FAST))["state"] == "READY"
    other = await caller.post("/api/deployments", json={"name": "demo", "version": "v1", "model": FAST, "replicas": 2})
    assert other.status_code == 409
    assert "its replicas is 1, not 2" in other.json()["error"]["message"]


async def test_the_status_counts_the_requests_that_were_taken(caller: Caller) -> None:
    await caller.load("demo", "v1", FAST)
    for _ in range(3):
        await caller.complete()
    assert (await caller.get("/api/status")).json()["num_requests"] == 3


async def test_a_version_says_who_registered_it_and_of_which_run_it_is(caller: Caller, gateway: Gateway) -> None:
    facts = {"run": "r7", "loss": 2.5, "is_best": True, "parent": None}
    loaded = await caller.load("demo", "v1", FAST, note="first", created_by="ann", metadata=facts)
    assert (loaded["note"], loaded["created_by"], loaded["metadata"]) == ("first", "ann", facts)
    again = await caller.load("demo", "v1", FAST, created_by="bob")
    assert (again["created_by"], again["metadata"]) == ("ann", facts)
    nested = {"name": "demo", "version": "v2", "model": FAST, "metadata": {"a": {"b": 1}}}
    refused = await caller.post("/api/deployments", json=nested)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "metadata.a")
    for seed in (2**64, -(2**63) - 1, 10**400):
        large = {"name": "demo", "version": "v2", "model": FAST, "metadata": {"seed": seed}}
        refused = await caller.post("/api/deployments", json=large)
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, "metadata.seed")
        assert "at most 64 bits" in refused.text


async def test_a_number_too_large_for_the_encoder_that_was_stored_once_is_told_all_the_same(
    caller: Caller, gateway: Gateway
) -> None:
    await caller.load("demo", "v1", FAST, metadata={"seed": 2**64 - 1})
    version = gateway.fleet.version("demo", "v1")
    facts = {"seed": 2**70}
    version.origin = replace(version.origin, metadata=facts)
    assert (await caller.get("/api/deployments/demo")).json()["versions"][0]["metadata"] == facts
    [shown] = (await caller.get("/api/deployments")).json()
    assert (shown["versions"][0]["metadata"], shown["versions"][0]["state"]) == (facts, "READY")
    assert (await caller.get("/api/status")).status_code == (await caller.get("/api/export")).status_code == 200


async def test_a_directory_that_changed_since_it_was_registered_is_not_loaded_as_that_version(
    caller: Caller, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (model / "model.safetensors").write_bytes(b"")
    options = {"python": "/bin/false"}
    before = await caller.load("demo", "v1", str(model), **options)
    assert "/bin/false" in before["reason"]
    (model / "model.safetensors").write_bytes(b"other")
    await caller.post("/api/deployments/demo/versions/v1/load")
    failed = await caller.settled("demo", "v1")
    assert (failed["state"], failed["content"]) == ("FAILED", before["content"])
    assert "has changed since demo@v1 was registered" in failed["reason"]
    same = {"name": "demo", "version": "v1", "model": str(model), **options}
    assert (await caller.post("/api/deployments", json=same)).status_code == 409
    refused = await caller.post("/api/deployments", json={**same, "model": "builtin:demo-v2"})
    assert "its model is" in refused.json()["error"]["message"], "it has not changed: it is another one"
    other = await caller.load("demo", "v2", str(model), **options)
    assert "/bin/false" in other["reason"]
    (model / "model.safetensors").write_bytes(b"")
    await caller.post("/api/deployments/demo/versions/v1/load")
    assert "/bin/false" in (await caller.settled("demo", "v1"))["reason"]


async def test_history_goes_back_beyond_what_is_in_memory(caller: Caller, gateway: Gateway) -> None:
    await caller.load("demo", "v1", FAST)
    now = time.time()
    for index in range(1500):  # a second each
        gateway.fleet.events.record(now + 1 + index, "noted", deployment="other" if index % 2 else "demo")

    async def ids(query: str) -> list[int]:
        return [e["id"] for e in (await caller.get(f"/api/history?{query}")).json()]

    everything = await ids("limit=5000")
    assert everything == list(range(1, everything[-1] + 1))
    assert everything[-1] > 1500
    assert await ids("since=0&limit=3") == [1, 2, 3]
    assert await ids("since=1000&limit=2") == [1001, 1002]
    assert await ids("limit=2") == everything[-2:]
    assert len(await ids("deployment=other&limit=5000")) == 750
    assert len(await ids("")) == 1000
    before = await ids(f"to={now}")
    assert before == list(range(1, before[-1] + 1))
    assert len(before) == len(everything) - 1500
    first = before[-1] + 1  # of the 1500
    assert await ids(f"from={now + 99}&to={now + 101.5}") == [first + 98, first + 99, first + 100]
    assert await ids(f"to={now + 101.5}&limit=2") == [first + 99, first + 100]
    assert await ids(f"to={now + 101.5}&limit=2&before={first + 99}") == [first + 97, first + 98]
    assert await ids(f"deployment=other&from={now + 99}&since={first + 99}&limit=1") == [first + 101]
    for query, param in (("since=yesterday", "since"), ("to=yesterday", "to"), ("limit=10001", "limit")):
        refused = await caller.get(f"/api/history?{query}")
        assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)


async def test_history_is_what_is_remembered_while_the_registry_cannot_be_read(
    caller: Caller, gateway: Gateway
) -> None:
    await caller.load("demo", "v1", FAST)

    def broken(_db: object) -> None:
        raise sa.exc.OperationalError("BEGIN", {}, Exception("the disk is gone"))

    sa.event.listen(gateway.fleet._registry._engine, "begin", broken)
    assert (await caller.get("/api/history?deployment=demo")).json()[0]["kind"] == "registered"


async def test_what_is_asked_during_the_stop_is_refused_and_the_next_start_finds_what_ran(data_dir: Path) -> None:
    config = GatewayConfig(data_dir, port=0, drain_s=5)
    gateway = Gateway(config)
    await gateway.start()
    async with Caller(gateway.url, gateway.admin_key) as caller:
        for version in ("v1", "v2"):
            await caller.load("demo", version, "toy:step_s=0.02")
        await caller.put("/api/deployments/demo/route", json={"weights": {"v1": 90, "v2": 10}})
        with held(gateway.fleet.version("demo", "v1").replicas[0].pid):
            answering = asyncio.create_task(caller.complete("demo@v1", max_tokens=50))
            await until(lambda: gateway.fleet.in_flight)
            stopping = asyncio.create_task(gateway.stop())
            await until(lambda: gateway.fleet.version("demo", "v1").state == "DRAINING")
            for verb in (gateway.fleet.unload, gateway.fleet.delete):
                with pytest.raises(Unavailable, match="stopping"):
                    await verb("demo", "v2")
        assert (await answering).status_code == 200
        await stopping
    again = Gateway(config)
    await again.start()
    try:
        assert again.fleet.deployment("demo").route.weights == {"v1": 90, "v2": 10}
        await until(lambda: again.fleet.deployment("demo").ready == {"v1", "v2"})
    finally:
        await again.stop()
