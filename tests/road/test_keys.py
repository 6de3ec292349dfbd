"""API keys on the whole road: what one opens, and above all what it does not."""

from __future__ import annotations

import asyncio
import json
import re
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from openai import AsyncOpenAI, NotFoundError, RateLimitError

from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import GatewayConfig
from tests.bench.bench_limits import measure
from tests.support import Caller, Command, held, until

METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS")
# What a key of scope infer is for; /, /health and what tells of the routes are open to all.
INFERENCE = re.compile(r"/$|/(v1|v2(?!/repository/models/)|predict|health|openapi\.json|docs)(/|$)")

OPEN = re.compile(r"/$|/(health|openapi\.json|docs|v2/health)(/|$)")


async def made(caller: Caller, **fields: Any) -> Any:
    answer = await caller.post("/api/keys", json={"name": "app", **fields})
    assert answer.status_code == 201, answer.text
    return answer.json()


async def with_key(gateway: Gateway, caller: Caller, **fields: Any) -> Caller:
    return Caller(gateway.url, (await made(caller, **fields))["key"])


def all_routes(gateway: Gateway) -> list[tuple[str, str]]:
    """(method, path) of everything that the application has, from its own table."""
    [rules] = [rule.target for rule in gateway.app.default_router.rules if rule.target is not gateway.app]
    patterns = [rule.matcher.regex.pattern for rule in rules.rules if hasattr(rule.matcher, "regex")]
    paths = [re.sub(r"\(\[\^/\]\+\)|\.\*", "x", pattern).rstrip("$").replace("\\.", ".") for pattern in patterns]
    assert not [path for path in paths if re.search(r"[][()*+?\\]", path)], paths
    return [(method, path) for path in [*paths, "/no/such/path"] for method in METHODS]


async def test_a_key_that_only_asks_models_reaches_no_other_route(gateway: Gateway, caller: Caller) -> None:
    app = await with_key(gateway, caller)
    routes = all_routes(gateway)
    assert {"/api/keys", "/api/deployments/x", "/api/events", "/v1/completions", "/predict"} <= {p for _, p in routes}
    before = (await caller.get("/api/status")).json()
    async with app:
        for method, path in routes:
            answer = await app.request(method, path)
            if path == "/no/such/path":
                assert answer.status_code == 404, (method, path, answer.text)
            elif INFERENCE.match(path):
                assert answer.status_code not in (401, 403), (method, path, answer.text)
            elif answer.status_code != 405 or method in ("GET", "POST", "PUT", "DELETE"):
                assert answer.status_code == 403, (method, path, answer.status_code, answer.text)
    assert (await caller.get("/api/status")).json() == before


async def test_a_key_of_scope_admin_makes_keys_and_loads(gateway: Gateway, caller: Caller) -> None:
    async with await with_key(gateway, caller, scope="admin") as admin:
        await admin.load("demo", "v1", "toy:step_s=0")
        assert (await admin.complete()).status_code == 200
        assert (await made(admin))["key"].startswith("dsk_")


async def test_a_key_is_told_once_and_listed_without_itself(gateway: Gateway, caller: Caller) -> None:
    new = await made(caller, deployments=["demo"], rate=2, tokens_per_min=1000, ttl_s=60)
    listed = await caller.get("/api/keys")
    assert listed.json() == [new["record"]]
    assert new["record"]["deployments"] == ["demo"]
    assert new["record"]["expires_at"] == pytest.approx(time.time() + 60, abs=5)
    assert new["key"] not in listed.text
    history = (await caller.get("/api/history")).text
    assert "key_created" in history
    assert new["key"] not in history


async def test_a_revoked_key_is_refused_at_once_and_what_it_is_being_answered_ends(
    gateway: Gateway, caller: Caller
) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.05")
    new = await made(caller)
    async with Caller(gateway.url, new["key"]) as app:
        stream = app.stream_complete(max_tokens=20)
        await anext(stream)
        assert (await caller.delete(f"/api/keys/{new['id']}")).json() == new["record"]
        refused = await app.complete()
        assert refused.status_code == 401
        assert refused.json()["error"]["code"] == "invalid_api_key"
        assert [piece async for piece in stream][-1] == "[DONE]"
    assert (await caller.delete(f"/api/keys/{new['id']}")).status_code == 404


async def test_keys_outlive_the_gateway_and_revoked_ones_do_not_come_back(data_dir: Path) -> None:
    async def ran(work: Any) -> Any:
        gateway = Gateway(GatewayConfig(data_dir, port=0))
        await gateway.start()
        try:
            async with Caller(gateway.url, gateway.admin_key) as caller:
                return await work(caller)
        finally:
            await gateway.stop()

    async def first(caller: Caller) -> Any:
        kept, gone = await made(caller, deployments=["a", "b"], rate=1.5), await made(caller)
        await caller.delete(f"/api/keys/{gone['id']}")
        return kept, gone

    async def second(caller: Caller) -> None:
        assert (await caller.get("/api/keys")).json() == [kept["record"]]
        for key, status in ((kept["key"], 200), (gone["key"], 401)):
            answer = await caller.get("/v1/models", headers={"Authorization": f"Bearer {key}"})
            assert answer.status_code == status

    kept, gone = await ran(first)
    await ran(second)


async def test_an_expired_key_is_refused_and_says_why(
    gateway: Gateway, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time
    async with await with_key(gateway, caller, ttl_s=60) as app:
        assert (await app.get("/v1/models")).status_code == 200
        monkeypatch.setattr(time, "time", lambda: now() + 61)
        answer = await app.get("/v1/models")
        assert answer.status_code == 401
        assert "has expired" in answer.json()["error"]["message"]


async def test_deployments_outside_the_list_do_not_exist_for_a_key(gateway: Gateway, caller: Caller) -> None:
    await caller.load("mine", "v1", "toy:step_s=0")
    await caller.load("yours", "v1", "toy:step_s=0")
    await caller.load("vectors", "v1", "toy:step_s=0", task="embed")
    async with await with_key(gateway, caller, deployments=["mine"]) as app:
        assert [m["id"] for m in (await app.get("/v1/models")).json()["data"]] == ["mine"]
        assert (await app.complete("mine")).status_code == 200
        assert (await app.complete("mine@v1")).status_code == 200
        chat = [{"role": "user", "content": "x"}]
        body = {"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [1.0]}]}
        for model in ("yours", "vectors", "nothing"):
            answers = [
                await app.complete(model),
                await app.complete(f"{model}@v1"),
                await app.post("/v1/chat/completions", json={"model": model, "messages": chat}),
                await app.post("/v1/embeddings", json={"model": model, "input": "x"}),
                await app.post("/v1/classify", json={"model": model, "input": "x"}),
                await app.post("/predict", json={"model": model, "input_text": "x"}),
                await app.get(f"/v1/models/{model}"),
                await app.get(f"/v1/models/{model}@v1"),
                await app.get(f"/v2/models/{model}"),
                await app.get(f"/v2/models/{model}/ready"),
                await app.get(f"/v2/models/{model}/versions/v1"),
                await app.post(f"/v2/models/{model}/infer", json=body),
                await app.post(f"/v2/models/{model}/versions/v1/infer", json=body),
                await app.get(f"/v2/models/{model}/config"),
                await app.get(f"/v2/models/{model}@v1/stats"),
                await app.post(f"/v2/models/{model}/generate", json={"text_input": "x"}),
                await app.post(f"/v2/models/{model}/versions/v1/generate_stream", json={"text_input": "x"}),
            ]
            for answer in answers:
                assert answer.status_code == 404, (answer.request.url, answer.text)
                assert re.search(r"is not one that this key may ask: it may ask mine", answer.text), answer.text


async def test_a_listed_deployment_that_does_not_exist_gives_no_other_names_away(
    gateway: Gateway, caller: Caller
) -> None:
    await caller.load("secret-project", "v1", "toy:step_s=0")
    async with await with_key(gateway, caller, deployments=["gone"]) as app:
        for answer in (
            await app.complete("gone"),
            await app.complete("gone@v1"),
            await app.get("/v1/models/gone"),
            await app.get("/v2/models/gone"),
            await app.get("/v2/models/gone/ready"),
        ):
            assert answer.status_code == 404
            assert "is not a deployment here now: this key may ask gone" in answer.text
            assert "secret" not in answer.text


async def test_who_leaves_before_the_first_token_pays_for_the_prompt(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.2")
    async with await with_key(gateway, caller, tokens_per_min=1000) as app:
        [grant] = gateway.fleet.held_keys.grants()
        asked = asyncio.create_task(app.complete(prompt="x" * 2400, max_tokens=50))
        await until(lambda: gateway.fleet.in_flight)
        asked.cancel()
        await until(lambda: grant.in_flight == 0)
        assert (await app.complete(prompt="x" * 2400, max_tokens=50)).status_code == 429


async def test_limits_of_a_key_are_openais_429_and_no_other_keys(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0")
    new = await made(caller, rate=0.01, burst=2)
    app = AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key=new["key"], max_retries=0, http_client=httpx.AsyncClient(trust_env=False)
    )
    async with app:
        for _ in range(2):
            await app.completions.create(model="demo", prompt="x", max_tokens=1)
        with pytest.raises(RateLimitError) as refused:
            await app.completions.create(model="demo", prompt="x", max_tokens=1)
        assert refused.value.code == "rate_limit_exceeded"
        assert 90 <= int(refused.value.response.headers["Retry-After"]) <= 100
        with pytest.raises(NotFoundError):
            await app.models.retrieve("other")
    async with await with_key(gateway, caller) as other:
        assert (await other.complete()).status_code == 200


async def test_concurrency_is_free_again_when_a_caller_leaves(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.01")
    async with await with_key(gateway, caller, concurrency=1, tokens_per_min=1_000_000) as app:
        stream = app.stream_complete(max_tokens=100_000)
        await anext(stream)
        refused = await app.complete()
        assert refused.status_code == 429
        assert "1 calls with this key run already" in refused.text
        await stream.aclose()
        assert (await until(app.complete, lambda a: a.status_code == 200)).json()["usage"]["completion_tokens"] == 5
        [grant] = gateway.fleet.held_keys.grants()
        assert grant.in_flight == 0


async def test_tokens_a_minute_are_settled_by_the_usage(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0")
    async with await with_key(gateway, caller, tokens_per_min=1000) as app:
        for _ in range(5):  # each may take 902, and takes far less
            assert (await app.complete(max_tokens=900, stop=["a", "e", "i", "o", " "])).status_code == 200
        used = (await app.complete(max_tokens=900)).json()["usage"]
        assert used["completion_tokens"] == 900
        refused = await app.complete(max_tokens=900)
        assert refused.status_code == 429
        assert int(refused.headers["Retry-After"]) > 1
        never = await app.complete(max_tokens=2000)
        assert (never.status_code, never.json()["error"]["param"]) == (400, "max_tokens")


async def test_a_keys_priority_holds_for_its_requests_in_line(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0.02")
    await caller.put("/api/deployments/demo/policy", json={"max_in_flight": 1})
    done: list[str] = []

    async def asked(name: str, by: Caller, **fields: Any) -> None:
        assert (await by.complete(**fields)).status_code == 200
        done.append(name)

    async with await with_key(gateway, caller, priority=50) as slow:
        line = gateway.fleet.deployment("demo").road.line
        with held(gateway.fleet.version("demo", "v1").replicas[0].pid):
            asking = [asyncio.create_task(asked("first", caller, max_tokens=30))]
            await until(lambda: gateway.fleet.in_flight)
            for name, by in (("slow", slow), ("plain", caller)):
                asking.append(asyncio.create_task(asked(name, by, priority=-100 if by is slow else 0)))
                await until(lambda: line.num_waiting == len(asking) - 1)
        await asyncio.gather(*asking)
    assert done == ["first", "plain", "slow"]


async def test_a_keys_label_decides_by_rule_and_nobody_else_can_say_it(gateway: Gateway, caller: Caller) -> None:
    for version in ("v1", "v2"):
        await caller.load("demo", version, "toy:step_s=0.001")
    rule = {"header": "X-DSServe-Key-Label", "value": "gray", "version": "v2"}
    await caller.put("/api/deployments/demo/policy", json={"rules": [rule]})
    async with await with_key(gateway, caller, label="gray") as tester, await with_key(gateway, caller) as other:
        for who, version in ((tester, "v2"), (other, "v1"), (caller, "v1")):
            said = {"X-DSServe-Key-Label": "gray"} if who is not tester else {}
            answer = await who.post("/v1/completions", json={"model": "demo", "prompt": "a"}, headers=said)
            assert answer.headers["X-DSServe-Version"] == version


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"name": ""}, "name"),
        ({"scope": "root"}, "scope"),
        ({"deployments": []}, "deployments"),
        ({"deployments": ["a/b"]}, "deployments"),
        ({"rate": -1}, "rate"),
        ({"burst": 5}, "give rate too"),
        ({"priority": -1}, "priority"),
        ({"label": "two words"}, "label"),
        ({"ttl_s": 0}, "ttl_s"),
        ({"expires_at": 1000.0}, "which is past"),
        ({"ttl_s": 5, "expires_at": 1e11}, "give one of them"),
        ({"scope": "admin", "deployments": ["demo"]}, "may do everything"),
        ({"deployment": ["demo"]}, "did you mean 'deployments'"),
    ],
)
async def test_a_key_that_cannot_be_is_refused_by_name(caller: Caller, fields: dict[str, Any], said: str) -> None:
    answer = await caller.post("/api/keys", json={"name": "app", **fields})
    assert answer.status_code == 400
    assert said in answer.json()["error"]["message"]
    assert (await caller.get("/api/keys")).json() == []


async def test_a_key_stands_nowhere_but_in_the_answer_that_told_it(tmp_path: Path) -> None:
    """Not in a log (at DEBUG), an error, a list of processes, or any file of the gateway's."""
    texts: list[str] = []
    with Command(tmp_path / "data", "--debug") as command:
        caller = await command.caller()
        async with caller:
            await caller.load("demo", "v1", "toy:step_s=0,fail_rate=1")
            new = await made(caller, rate=100, tokens_per_min=1000)
            key, wrong = new["key"], new["key"][:-1] + "~"
            for held in (key, wrong):
                async with Caller(str(caller.base_url), held) as app:
                    for method, path, body in (
                        ("POST", "/v1/completions", b'{"model": "demo", "prompt": "x"}'),
                        ("POST", "/v1/completions", b'{"model": "demo", "prompt": "x", "stream": true}'),
                        ("POST", "/v1/completions", b"{"),
                        ("GET", "/api/status", b""),
                        ("GET", "/no/such", b""),
                    ):
                        texts.append((await app.request(method, path, content=body)).text)
            texts += [(await caller.get(path)).text for path in ("/api/keys", "/api/history", "/api/status")]
            texts += [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
            assert (await caller.delete(f"/api/keys/{new['id']}")).status_code == 200
        command.process.terminate()
        texts.append(command.output())
    files = [path.read_bytes() for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert "POST /v1/completions" in "".join(texts), "the log says nothing: this test would see nothing"
    assert len(files) >= 3
    for secret in (key, wrong):
        assert not [text for text in texts if secret in text]
        assert not [raw for raw in files if secret.encode() in raw]
    assert json.dumps(new["record"]["name"]) in "".join(texts)


async def test_the_command_prints_a_new_key_alone_and_lists_and_revokes(gateway: Gateway, caller: Caller) -> None:
    async def run(*words: str) -> tuple[int, str, str]:
        line = [str(Path(sys.executable).with_name("jupyter-dsserve")), "key", *words, "--data-dir"]
        process = await asyncio.create_subprocess_exec(
            *line, str(gateway.data_dir.path), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await process.communicate()
        return process.returncode or 0, out.decode(), err.decode()

    code, key, said = await run("create", "app", "--deployments", "demo,other", "--rate", "5", "--ttl", "60")
    assert code == 0, said
    async with Caller(gateway.url, key.strip()) as app:
        assert (await app.get("/v1/models")).status_code == 200
    [record] = (await caller.get("/api/keys")).json()
    assert (record["deployments"], record["rate"]) == (["demo", "other"], 5)
    assert said.strip().endswith(f"key revoke {record['id']}")
    assert key.strip() not in said
    head, row = (await run("list"))[1].splitlines()
    assert head.split() == ["id", "name", "scope", "deployments", "limits", "expires"]
    assert row.startswith(f"{record['id']}  app   infer  demo, other  5 calls/s")
    assert (await run("revoke", record["id"]))[:2] == (0, "There are no keys but the admin key.\n")
    code, key, said = await run("create", "prometheus", "--scope", "metrics")
    assert code == 0, said
    async with Caller(gateway.url, key.strip()) as prometheus:
        assert [(await prometheus.get(path)).status_code for path in ("/metrics", "/v1/models")] == [200, 403]
    code, _, said = await run("create")
    assert code == 1
    assert "say what to do" in said


@pytest.mark.parametrize("num_pieces", [0, 10])
@pytest.mark.parametrize(("path", "status"), [("/v1/completions", 401), ("/v1/no", 401), ("/no", 404)])
async def test_a_caller_that_is_refused_hears_so_however_late_its_body_comes(
    gateway: Gateway, path: str, status: int, num_pieces: int
) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    for _ in range(2):  # on one connection, which goes on
        head = f"POST {path} HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer wrong\r\n"
        writer.write(f"{head}Content-Length: {100 * num_pieces}\r\n\r\n".encode())
        await asyncio.sleep(0.05)
        for _ in range(num_pieces):
            writer.write(b"x" * 100)
            await writer.drain()
            await asyncio.sleep(0.001)
        answer = await reader.readuntil(b"\r\n\r\n")
        assert answer.startswith(f"HTTP/1.1 {status} ".encode())
        length = re.search(rb"Content-Length: (\d+)", answer)
        assert length
        await reader.readexactly(int(length[1]))
    writer.close()


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_ten_times_a_keys_load_is_held_to_its_limits_and_another_keys_callers_do_not_feel_it() -> None:
    found = await measure(120)
    assert found.calls == pytest.approx(1, abs=0.05), found
    assert found.tokens == pytest.approx(1, abs=0.05), found
    assert found.failures == 0, found
    assert found.p99_ratio < 1.5, found


async def test_a_key_of_scope_metrics_reads_the_metrics_and_nothing_else(gateway: Gateway, caller: Caller) -> None:
    await caller.load("demo", "v1", "toy:step_s=0")
    async with await with_key(gateway, caller, scope="metrics") as prometheus:
        assert "dsserve_build_info" in (await prometheus.get("/metrics")).text
        for method, path in all_routes(gateway):
            answer = await prometheus.request(method, path)
            is_open = path == "/metrics" or path == "/no/such/path" or OPEN.match(path)
            if not is_open and method in ("GET", "POST", "PUT", "DELETE"):
                assert answer.status_code == 403, (method, path, answer.text)
        refused = await prometheus.complete()
        assert "'app' only reads /metrics: /v1/completions needs the admin key, or a key of scope infer or admin" in (
            refused.text
        )
    async with await with_key(gateway, caller) as app:
        assert "a key of scope metrics or admin" in (await app.get("/metrics")).text
    answer = await caller.post("/api/keys", json={"name": "p", "scope": "metrics", "rate": 1, "deployments": ["demo"]})
    assert (answer.status_code, answer.json()["error"]["param"]) == (400, "deployments")
    assert "leave deployments, rate out" in answer.text
