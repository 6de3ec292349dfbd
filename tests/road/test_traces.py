"""Each call leaves a trace: where its time went, under the caller's own trace, and without its words."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
import pytest_asyncio

from jupyter_dsserve import AsyncClient
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.notebook.traces import Trace
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import NotFound
from tests.support import Caller, Json, held, until

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = {"traceparent": f"00-{TRACE_ID}-{PARENT_ID}-01"}

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def traced(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Caller]:
    """A gateway of ten traces with a deployment."""
    path: Path = tmp_path_factory.mktemp("traces")
    gateway = Gateway(GatewayConfig(path / "data", port=0, drain_s=1, traces=10))
    await gateway.start()
    async with Caller(gateway.url, gateway.admin_key) as caller:
        await caller.load("demo", "v1", "toy:step_s=0.02")
        await caller.load("texts", "v1", "toy:step_s=0.01", task="embed")
        yield caller
    await gateway.stop()


async def trace_of(caller: Caller, answer: httpx.Response) -> Json:
    found = await caller.get(f"/api/traces/{answer.headers['X-Request-Id']}")
    assert found.status_code == 200, found.text
    return found.json()


def named(trace: Json, name: str) -> Json:
    [found] = [span for span in trace["spans"] if span["name"] == name]
    return found


async def test_a_call_is_a_tree_of_spans_below_the_callers_own(traced: Caller) -> None:
    body = {"model": "demo", "messages": [{"role": "user", "content": "tell me a secret"}], "max_tokens": 60}
    answer = await traced.post("/v1/chat/completions", json=body, headers=TRACEPARENT)
    assert answer.status_code == 200, answer.text
    trace = await trace_of(traced, answer)
    assert trace["trace_id"] == TRACE_ID
    assert (trace["deployment"], trace["version"], trace["outcome"]) == ("demo", "v1", "ok")
    assert trace["output_tokens"] == 60
    call, route, replica = (named(trace, name) for name in ("chat demo", "route", "replica"))
    inner = [named(trace, name) for name in ("tokenize", "schedule", "prefill", "decode")]
    assert call["parent_id"] == PARENT_ID
    assert {route["parent_id"], replica["parent_id"]} == {call["span_id"]}
    assert {span["parent_id"] for span in inner} == {replica["span_id"]}
    assert len({span["span_id"] for span in trace["spans"]}) == len(trace["spans"]) == 7
    # One after the other, without a gap but for the wire, and all of it within the call.
    assert call["start_s"] == 0
    assert route["start_s"] == 0
    assert route["start_s"] <= replica["start_s"] <= inner[0]["start_s"]
    for before, after in pairwise(inner):
        assert before["start_s"] + before["duration_s"] == pytest.approx(after["start_s"], abs=1e-6)
    parts = route["duration_s"] + sum(span["duration_s"] for span in inner)
    assert 1.2 <= parts <= call["duration_s"] == pytest.approx(trace["duration_s"])
    assert call["duration_s"] - parts < 0.05 + 0.3 * call["duration_s"]
    assert named(trace, "decode")["duration_s"] > 2 * named(trace, "prefill")["duration_s"]
    said = call["attributes"]
    assert said["gen_ai.operation.name"] == "chat"
    assert said["gen_ai.request.model"] == "demo"
    assert said["gen_ai.response.model"] == "demo@v1"
    assert said["gen_ai.usage.output_tokens"] == 60
    assert said["http.response.status_code"] == 200
    assert replica["attributes"]["dsserve.replica"] == "demo@v1#0"
    assert replica["attributes"]["dsserve.end"] == "length"
    assert replica["attributes"]["dsserve.batch_sequences"] == 1
    assert named(trace, "decode")["attributes"]["dsserve.num_steps"] == 60
    assert "secret" not in json.dumps(trace)
    assert (await traced.get(f"/api/traces/{TRACE_ID}")).json()["id"] == trace["id"]


async def test_choices_are_spans_of_one_call_and_a_stream_has_its_first_token(traced: Caller) -> None:
    answer = await traced.complete(n=3, stream=True)
    trace = await trace_of(traced, answer)
    assert trace["num_attempts"] == 3
    assert [span["name"] for span in trace["spans"]].count("prefill") == 3
    assert trace["output_tokens"] == 15
    assert 0.02 <= trace["first_token_s"] < trace["duration_s"]


async def test_a_call_without_tokens_has_one_stretch_in_the_worker(traced: Caller) -> None:
    answer = await traced.post("/v1/embeddings", json={"model": "texts", "input": ["a", "b"]})
    trace = await trace_of(traced, answer)
    assert trace["operation"] == "embeddings"
    assert named(trace, "forward")["duration_s"] >= 0.01
    assert [span["name"] for span in trace["spans"]][-3:] == ["tokenize", "schedule", "forward"]


async def test_an_error_has_a_trace_and_its_id(traced: Caller) -> None:
    answer = await traced.complete("nobody")
    assert answer.status_code == 404
    trace = await trace_of(traced, answer)
    assert (trace["outcome"], trace["deployment"], trace["version"]) == ("client_error", "", "")
    assert [span["name"] for span in trace["spans"]] == ["text_completion nobody", "route"]
    assert trace["spans"][0]["attributes"]["error.type"] == "NotFound"
    assert trace["spans"][0]["attributes"]["http.response.status_code"] == 404
    late = await traced.complete(timeout_s=0.05, max_tokens=1000)
    assert late.status_code == 504
    trace = await trace_of(traced, late)
    assert trace["outcome"] == "timeout"
    assert named(trace, "replica")["attributes"]["error.type"] == "DeadlineExceeded"


async def test_what_waits_is_seen_while_it_waits(traced: Caller) -> None:
    await traced.put("/api/deployments/demo/policy", json={"max_in_flight": 1})
    began = time.monotonic()
    with held((await traced.version("demo", "v1"))["replicas"][0]["pid"]):
        asking = [asyncio.create_task(traced.complete(max_tokens=50)) for _ in range(2)]
        running = await until(
            lambda: traced.get("/api/traces?limit=2"), lambda a: [t["outcome"] for t in a.json()] == ["running"] * 2
        )
        waiting = running.json()[0]
        assert 0 < waiting["duration_s"] < time.monotonic() - began
        spans = (await traced.get(f"/api/traces/{waiting['id']}")).json()["spans"]
    assert [span["name"] for span in spans] == ["text_completion demo", "route", "queue"]
    answers = await asyncio.gather(*asking)
    await traced.put("/api/deployments/demo/policy", json={"max_in_flight": 0})
    traces = [await trace_of(traced, answer) for answer in answers]
    queues = [span["duration_s"] for trace in traces for span in trace["spans"] if span["name"] == "queue"]
    assert len(queues) == 1
    assert queues[0] > 0.2


async def test_a_caller_who_leaves_has_a_trace(traced: Caller) -> None:
    with pytest.raises(httpx.ReadTimeout):
        await traced.post("/v1/completions", json={"model": "demo", "prompt": "x", "max_tokens": 500}, timeout=0.5)
    [last] = await until(lambda: _last(traced, 1), lambda t: t[0]["outcome"] == "cancelled")
    trace = (await traced.get(f"/api/traces/{last['id']}")).json()
    assert named(trace, "replica")["attributes"]["dsserve.end"] == "left"


async def _last(caller: Caller, limit: int) -> Json:
    return (await caller.get(f"/api/traces?limit={limit}")).json()


async def test_the_last_ones_are_kept_newest_first(traced: Caller) -> None:
    ids = [(await traced.complete(max_tokens=1)).headers["X-Request-Id"] for _ in range(12)]
    kept = (await traced.get("/api/traces")).json()
    assert [trace["id"] for trace in kept] == ids[::-1][:10]
    assert [trace["id"] for trace in await _last(traced, 3)] == ids[::-1][:3]
    assert (await traced.get("/api/traces?deployment=texts")).json() == []
    gone = await traced.get(f"/api/traces/{ids[0]}")
    assert gone.status_code == 404
    assert "the last 10 are kept" in gone.text
    assert (await traced.get("/api/traces?limit=x")).status_code == 400


@pytest.mark.parametrize("bad", ["00-0-0-01", "nonsense", f"00-{'0' * 32}-{'0' * 16}-01", "ff-" + "x" * 2000])
async def test_a_traceparent_that_is_none_is_as_if_it_was_not_there(traced: Caller, bad: str) -> None:
    answer = await traced.post(
        "/v1/completions", json={"model": "demo", "prompt": "x", "max_tokens": 1}, headers={"traceparent": bad}
    )
    trace = await trace_of(traced, answer)
    assert trace["trace_id"] != "0" * 32
    assert trace["spans"][0]["parent_id"] == ""


async def test_only_a_key_of_scope_admin_reads_them(traced: Caller) -> None:
    made = (await traced.post("/api/keys", json={"name": "app"})).json()
    app = {"Authorization": f"Bearer {made['key']}"}
    body = {"model": "demo", "prompt": "x", "max_tokens": 1}
    answer = await traced.post("/v1/completions", json=body, headers=app)
    assert answer.status_code == 200
    for path in ("/api/traces", f"/api/traces/{answer.headers['X-Request-Id']}"):
        assert (await traced.get(path, headers=app)).status_code == 403
    attributes = (await trace_of(traced, answer))["spans"][0]["attributes"]
    assert attributes["dsserve.key_id"] == made["id"]
    assert made["key"] not in json.dumps(attributes)


async def test_a_client_finds_the_trace_of_its_answer(traced: Caller) -> None:
    client = AsyncClient(str(traced.base_url), traced.headers["Authorization"].removeprefix("Bearer "))
    answer = await client.generate("demo", "hello", max_tokens=3)
    trace = await client.trace(answer.request_id)
    assert isinstance(trace, Trace)
    assert trace.output_tokens == 3
    assert answer.latency_s >= trace.duration_s > 0.06
    assert "demo@v1#0" in str(trace)
    stream = client.stream("demo", "hello", max_tokens=2)
    assert len([piece async for piece in stream]) > 0
    assert stream.answer
    [last] = await client.trace(limit=1)
    assert last.id == stream.answer.request_id
    with pytest.raises(NotFound, match="there is no trace 'x/y'"):
        await client.trace("x/y")
    await client.aclose()
