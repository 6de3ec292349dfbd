"""Bad input gets a 4xx that names the thing, the value and the remedy; nothing changes because of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from jupyter_dsserve.gateway import control, generate, openai
from jupyter_dsserve.gateway.handlers import Handler
from jupyter_dsserve.gateway.server import Gateway
from tests.support import Caller

DEMO = {"name": "demo", "version": "v2", "model": "toy:"}
COMPLETION = {"model": "demo", "prompt": "hello"}
CHAT = {"model": "demo", "messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
async def served(caller: Caller) -> Caller:
    """demo@v1 is READY, demo@v2 registered and stopped."""
    await caller.load("demo", "v1", "toy:step_s=0,")
    return caller


async def error(caller: Caller, method: str, path: str, body: Any, status: int) -> dict[str, Any]:
    answer = await caller.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    assert answer.headers["Content-Type"].startswith("application/json")
    found: dict[str, Any] = answer.json()["error"]
    return found


async def test_two_lengths_of_one_body_are_a_bad_request_that_ends_its_connection(gateway: Gateway) -> None:
    host, port = gateway.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nabcdef")
    answer = await reader.read()
    writer.close()
    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({**DEMO, "model": "/no/such/model"}, "'/no/such/model' does not exist"),
        ({**DEMO, "model": "builtin:demo-v7"}, "demo-v1, demo-v2"),
        ({**DEMO, "model": "toy:speed=1"}, "speed"),
        ({**DEMO, "name": "a/b"}, "'a/b'"),
        ({**DEMO, "version": ""}, "''"),
        ({**DEMO, "replica": 2}, "did you mean 'replicas'"),
        ({**DEMO, "replicas": 0}, "0"),
        ({**DEMO, "replicas": "2"}, '"2"'),
        ({**DEMO, "replicas": True}, "true"),
        ({**DEMO, "dtype": "fp64"}, "fp64"),
        ({**DEMO, "device": "tpu"}, "tpu"),
        ({**DEMO, "runner": "ragged"}, "toy"),
        ({**DEMO, "model": None}, "null"),
        ({**DEMO, "model": "x" * 300}, "does not exist"),
        ({**DEMO, "model": "~nosuchuser/x"}, "does not exist"),
        ({**DEMO, "max_context": 2**31}, "2147483648"),
        ({"name": "demo", "version": "v2"}, "'model' is missing"),
        ([], "list"),
    ],
)
async def test_a_load_that_cannot_be_is_refused(served: Caller, body: Any, named: str) -> None:
    assert named in (await error(served, "POST", "/api/deployments", body, 400))["message"]
    assert [v["version"] for v in (await served.get("/api/deployments/demo")).json()["versions"]] == ["v1"]


async def test_directories_that_are_no_model_are_refused(served: Caller, tmp_path: Path) -> None:
    async def refusal() -> str:
        return str((await error(served, "POST", "/api/deployments", {**DEMO, "model": str(tmp_path)}, 400))["message"])

    assert "config.json" in await refusal()
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["BertModel"]}))
    assert "BertModel" in await refusal()
    (tmp_path / "config.json").write_text(json.dumps({"architectures": ["LlamaForCausalLM"]}))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    assert "pickle" in await refusal()


async def test_a_version_name_that_is_taken_is_refused_with_what_has_it(served: Caller) -> None:
    found = await error(served, "POST", "/api/deployments", {**DEMO, "version": "v1"}, 409)
    assert "demo@v1 exists already, and its model is 'toy:step_s=0,', not 'toy:'" in found["message"]
    assert found["type"] == "Conflict"


@pytest.mark.parametrize(
    ("weights", "status", "named"),
    [
        ({"v1": 90}, 400, "90"),
        ({"v1": 150, "v9": -50}, 404, "'v9'"),
        ({"v1": "100"}, 400, '"100"'),
        ({}, 400, "sum to 0"),
    ],
)
async def test_a_route_that_cannot_be_is_refused(served: Caller, weights: Any, status: int, named: str) -> None:
    found = await error(served, "PUT", "/api/deployments/demo/route", {"weights": weights}, status)
    assert named in found["message"]
    assert (await served.get("/api/deployments/demo/route")).json()["weights"] == {"v1": 100}


async def test_a_route_to_a_version_that_is_not_ready_is_refused(served: Caller) -> None:
    await served.load("demo", "v2", "toy:load_s=60", wait=False)
    weights = {"weights": {"v1": 50, "v2": 50}}
    assert "demo@v2 is" in (await error(served, "PUT", "/api/deployments/demo/route", weights, 409))["message"]


@pytest.mark.parametrize(
    ("path", "body", "param", "named"),
    [
        ("/v1/completions", {**COMPLETION, "max_tokens": 0}, "max_tokens", "0"),
        ("/v1/completions", {**COMPLETION, "max_tokens": -4}, "max_tokens", "-4"),
        ("/v1/completions", {**COMPLETION, "max_tokens": "5"}, "max_tokens", '"5"'),
        ("/v1/completions", {**COMPLETION, "prompt": 5}, "prompt", "5"),
        ("/v1/completions", {**COMPLETION, "prompt": ""}, "prompt", "empty"),
        ("/v1/completions", {**COMPLETION, "prompt": [300]}, "prompt", "0 to 255"),
        ("/v1/completions", {**COMPLETION, "prompt": ["a", 5]}, "prompt", "5"),
        ("/v1/completions", {**COMPLETION, "prompt": "x" * 50_000, "max_tokens": 1_048_570}, "max_tokens", "at most"),
        ("/v1/completions", {**COMPLETION, "max_tokens": 2**31}, "max_tokens", "2147483648"),
        ("/v1/completions", {**COMPLETION, "top_k": 2**31}, "top_k", "2147483648"),
        ("/v1/completions", {**COMPLETION, "temperature": 3}, "temperature", "3"),
        ("/v1/completions", {**COMPLETION, "top_p": 0}, "top_p", "0"),
        ("/v1/completions", {**COMPLETION, "stop": [""]}, "stop", '""'),
        ("/v1/completions", {**COMPLETION, "n": 129}, "n", "129"),
        ("/v1/completions", {**COMPLETION, "n": 0}, "n", "0"),
        ("/v1/completions", {**COMPLETION, "n": 128, "prompt": ["a"] * 17}, "n", "2176 choices"),
        ("/v1/completions", {**COMPLETION, "structured_outputs": {}}, "structured_outputs", "has none"),
        (
            "/v1/completions",
            {**COMPLETION, "structured_outputs": {"regex": "a", "choice": ["b"]}},
            "structured_outputs",
            "has regex, choice",
        ),
        ("/v1/completions", {**COMPLETION, "structured_outputs": {"choice": []}}, "structured_outputs.choice", "[]"),
        ("/v1/completions", {**COMPLETION, "structured_outputs": {"regex": "a"}}, "structured_outputs", "toy"),
        ("/v1/chat/completions", {**CHAT, "response_format": {"type": "xml"}}, "response_format.type", "xml"),
        (
            "/v1/chat/completions",
            {**CHAT, "response_format": {"type": "json_schema"}},
            "response_format",
            "no json_sch",
        ),
        (
            "/v1/chat/completions",
            {**CHAT, "response_format": {"type": "json_object"}, "structured_outputs": {"regex": "a"}},
            "structured_outputs",
            "one of them",
        ),
        ("/v1/completions", {**COMPLETION, "best_of": 2}, "best_of", "2"),
        ("/v1/completions", {**COMPLETION, "logprobs": 21}, "logprobs", "21"),
        ("/v1/completions", {**COMPLETION, "logprobs": True}, "logprobs", "true"),
        ("/v1/chat/completions", {**CHAT, "logprobs": True, "top_logprobs": 21}, "top_logprobs", "21"),
        ("/v1/chat/completions", {**CHAT, "top_logprobs": 2}, "top_logprobs", "logprobs is not true"),
        ("/v1/completions", {**COMPLETION, "presence_penalty": 3}, "presence_penalty", "3"),
        ("/v1/completions", {**COMPLETION, "repetition_penalty": 0}, "repetition_penalty", "0"),
        ("/v1/completions", {**COMPLETION, "min_p": 2}, "min_p", "2"),
        ("/v1/completions", {**COMPLETION, "logit_bias": {"x": 1}}, "logit_bias.x", "x"),
        ("/v1/completions", {**COMPLETION, "logit_bias": {"300": 1}}, "logit_bias", "token 300"),
        ("/v1/completions", {**COMPLETION, "logit_bias": {"3": 101}}, "logit_bias.3", "101"),
        ("/v1/completions", {**COMPLETION, "stop_token_ids": [300]}, "stop_token_ids", "token 300"),
        ("/v1/completions", {**COMPLETION, "min_tokens": 6, "max_tokens": 5}, "min_tokens", "only 5"),
        ("/v1/completions", {**COMPLETION, "max_token": 2}, "max_token", "did you mean 'max_tokens'"),
        ("/v1/completions", {"prompt": "hello"}, "model", "missing"),
        ("/v1/chat/completions", {**CHAT, "messages": []}, "messages", "[]"),
        ("/v1/chat/completions", {**CHAT, "messages": "hi"}, "messages", "hi"),
        ("/v1/chat/completions", {**CHAT, "messages": [{"role": "robot", "content": "x"}]}, "messages.0.role", "robot"),
        ("/v1/chat/completions", {**CHAT, "max_completion_tokens": 0}, "max_completion_tokens", "0"),
        ("/v1/chat/completions", {**CHAT, "tools": [{}]}, "tools", "tools"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_openai_routes_refuse_in_openais_shape(
    served: Caller, path: str, body: Any, param: str, named: str, stream: bool
) -> None:
    found = await error(served, "POST", path, {**body, "stream": stream}, 400)
    assert found.keys() == {"message", "type", "param", "code"}
    assert (found["type"], found["code"]) == ("invalid_request_error", None)
    assert found["param"] is not None
    assert found["param"].startswith(param)
    assert named in found["message"]


async def test_refusals_by_the_engine_are_not_counted_as_errors_of_the_version(
    served: Caller, gateway: Gateway
) -> None:
    await error(served, "POST", "/v1/completions", {**COMPLETION, "prompt": ""}, 400)
    assert gateway.fleet.version("demo", "v1").window.errors == 0


async def test_predict_refuses_in_the_same_way(served: Caller) -> None:
    body = {"model": "demo", "input_text": "x", "max_length": 0}
    assert "max_length" in (await error(served, "POST", "/predict", body, 400))["message"]


@pytest.mark.parametrize("raw", [b"", b"{", b"null", b'"x"', b"\xff", b"[" * 100_000, b'{"max_tokens": NaN}'])
async def test_a_body_that_is_no_json_object_is_refused(served: Caller, raw: bytes) -> None:
    for path in ("/v1/completions", "/api/deployments", "/predict"):
        answer = await served.post(path, content=raw)
        assert answer.status_code == 400, answer.text
        assert answer.json()["error"]["message"]


async def test_a_body_over_the_limit_is_answered_413_with_the_limit(served: Caller) -> None:
    answer = await served.complete(prompt="x" * 200_000)
    assert answer.status_code == 413
    assert answer.headers["Connection"] == "close"
    assert "100000" in answer.json()["error"]["message"]


async def test_a_chunked_body_over_the_limit_is_answered_413_too(served: Caller) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(20):
            yield b"x" * 10_000

    answer = await served.post("/v1/completions", content=chunks())
    assert answer.status_code == 413
    assert "100000" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("path", "status"), [("/v1/completions", 401), ("/v1/nothing", 401), ("/nothing", 404)])
async def test_of_a_refused_request_no_body_is_kept(
    gateway: Gateway, monkeypatch: pytest.MonkeyPatch, path: str, status: int
) -> None:
    kept: list[int] = []
    monkeypatch.setattr(Handler, "on_finish", lambda handler: kept.append(len(handler._body)))
    async with Caller(gateway.url, "dsk_wrong") as stranger:
        assert (await stranger.post(path, content=b"x" * 50_000)).status_code == status
    assert kept == [0]


def every_route() -> list[str]:
    routes = [(path, handler) for path, handler in (*openai.ROUTES, *generate.ROUTES, *control.ROUTES)]
    return [path.replace("([^/]+)", "demo").replace(".*", "other") for path, handler in routes if not handler.is_open]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer dsk_wrong"}, {"Authorization": "Basic eDp5"}])
async def test_every_route_but_health_wants_the_key(gateway: Gateway, headers: dict[str, str]) -> None:
    assert len(every_route()) == 18
    async with Caller(gateway.url, "") as stranger:
        del stranger.headers["Authorization"]
        for path in every_route():
            for method in ("GET", "POST", "PUT", "DELETE"):
                answer = await stranger.request(method, path, headers=headers)
                assert answer.status_code == 401, f"{method} {path}"
                assert answer.headers["WWW-Authenticate"] == "Bearer"
                assert answer.json()["error"]["message"]


async def test_a_wrong_key_on_v1_has_openais_code(gateway: Gateway) -> None:
    async with Caller(gateway.url, "dsk_wrong") as stranger:
        found = await error(stranger, "POST", "/v1/completions", COMPLETION, 401)
    assert found["code"] == "invalid_api_key"


@pytest.mark.parametrize("field", ["prompt", "user", "model"])
async def test_half_a_surrogate_pair_is_refused_and_leaves_nothing_in_flight(
    served: Caller, gateway: Gateway, field: str
) -> None:
    raw = json.dumps({**COMPLETION, field: "\ud800"})
    answer = await served.post("/v1/completions", content=raw)
    assert answer.status_code == 400
    assert gateway.fleet.version("demo", "v1").replicas[0].in_flight == 0


async def test_what_openai_does_not_know_has_openais_shape_too(served: Caller) -> None:
    assert (await error(served, "GET", "/v1/nothing", None, 404))["code"] == "unknown_url"
    for path in ("/v1/models/nobody", "/v1/models/demo@v9"):
        found = await error(served, "GET", path, None, 404)
        assert (found["param"], found["code"]) == ("model", "model_not_found")
    assert (await served.get("/v1/models/demo@v1")).json()["id"] == "demo@v1"


async def test_an_error_answer_names_its_version_too(served: Caller) -> None:
    answer = await served.complete(prompt="")
    assert (answer.status_code, answer.headers["X-DSServe-Version"]) == (400, "v1")


@pytest.mark.parametrize(
    "path", ["/api/deployments/%ff", "/api/deployments/demo/versions/v1/logs?lines=%ff", "/v1/models/%ff"]
)
async def test_a_path_that_is_no_utf8_is_a_400(served: Caller, path: str) -> None:
    assert (await served.get(path)).status_code == 400


async def test_unknown_paths_and_methods_say_so(served: Caller) -> None:
    assert "/api/nothing" in (await error(served, "GET", "/api/nothing", None, 404))["message"]
    assert "DELETE" in (await error(served, "DELETE", "/v1/models", None, 405))["message"]


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/api/deployments/nobody"),
        ("GET", "/api/deployments/demo/versions/v9"),
        ("POST", "/api/deployments/demo/versions/v9/load"),
        ("POST", "/api/deployments/nobody/versions/v1/unload"),
        ("DELETE", "/api/deployments/nobody"),
        ("GET", "/api/deployments/nobody/route"),
    ],
)
async def test_what_does_not_exist_is_named_with_what_does(served: Caller, method: str, path: str) -> None:
    message = (await error(served, method, path, None, 404))["message"]
    assert "there are" in message
