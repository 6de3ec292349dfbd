"""Exported programs through the whole road, over the Open Inference Protocol and the kernel's client."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import torch

from jupyter_dsserve import AsyncClient
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import InvalidRequest
from tests.engine.tiny_programs import save_onnx, save_scorer, scorer
from tests.support import Caller

pytestmark = pytest.mark.asyncio(loop_scope="module")

X = [[0.5, -1.0, 2.0, 0.25], [1.0, 1.0, 1.0, 1.0]]
RELU = np.maximum(np.array(X) @ (np.arange(12).reshape(4, 3) - 6), 0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    """``score`` (torch.export) and ``relu`` (ONNX), both READY: loaded once for all tests here."""
    folder = tmp_path_factory.mktemp("programs")
    config = GatewayConfig(folder / "data", port=0, drain_s=5, allow_code=True)
    gateway = Gateway(config)
    await gateway.start()
    models = {"score": save_scorer(folder / "score.pt2"), "relu": save_onnx(folder / "relu.onnx")}
    async with Caller(gateway.url, gateway.admin_key) as caller:
        for name, model in models.items():
            await caller.load(name, "v1", str(model), task="tensor", num_threads=1, wait=False)
        for name in models:
            loaded = await caller.settled(name, "v1", timeout_s=150)
            assert loaded["state"] == "READY", loaded["reason"]
    yield gateway
    await gateway.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def caller(served: Gateway) -> AsyncIterator[Caller]:
    async with Caller(served.url, served.admin_key) as caller:
        yield caller


def an_input(name: str = "x", data: Any = X, shape: Any = (2, 4), datatype: str = "FP32") -> dict[str, Any]:
    return {"name": name, "shape": list(shape), "datatype": datatype, "data": data}


async def test_an_exported_program_answers_by_name(caller: Caller) -> None:
    ids = an_input("ids", [3, 9], [2], "INT64")
    answer = await caller.post("/v2/models/score/infer", json={"id": "7", "inputs": [ids, an_input()]})
    assert answer.headers["X-DSServe-Version"] == "v1"
    said = answer.json()
    assert (said["model_name"], said["model_version"], said["id"]) == ("score", "v1", "7")
    outputs = {each["name"]: each for each in said["outputs"]}
    expected = scorer()(torch.tensor(X), torch.tensor([3, 9]))
    assert (outputs["score"]["datatype"], outputs["score"]["shape"]) == ("FP32", [2, 3])
    assert np.allclose(outputs["score"]["data"], expected["score"].detach().flatten(), atol=1e-6)
    assert outputs["label"] == {"name": "label", "datatype": "INT64", "shape": [2], "data": expected["label"].tolist()}


@pytest.mark.parametrize("path", ["relu", "relu@v1", "relu/versions/v1"])
async def test_data_may_be_nested_or_flat_and_the_version_named(path: str, caller: Caller) -> None:
    for data in (X, [number for row in X for number in row]):
        body = {"inputs": [an_input(data=data)], "outputs": [{"name": "y"}]}
        (output,) = (await caller.post(f"/v2/models/{path}/infer", json=body)).json()["outputs"]
        assert np.allclose(output["data"], RELU.flatten())


async def test_the_client_gives_arrays_and_finds_the_datatypes(served: Gateway) -> None:
    client = AsyncClient(served.url, served.admin_key)
    try:
        assert np.allclose((await client.infer("relu", {"x": X}))["y"], RELU)
        found = await client.infer("score", {"x": np.array(X, np.float32), "ids": np.array([3, 9])})
        assert (found["score"].shape, found["label"].dtype) == ((2, 3), np.int64)
        with pytest.raises(InvalidRequest, match="input 'x' is no array of FP32"):
            await client.infer("relu", {"x": ["a", "b"]})
        with pytest.raises(InvalidRequest, match="input 'x' is FP64: send FP32"):
            await client.infer("relu", {"x": np.array(X)})
    finally:
        await client.aclose()


@pytest.mark.parametrize("path", ["score", "score@v1", "score/versions/v1"])
async def test_metadata_says_what_it_takes_and_gives(path: str, caller: Caller) -> None:
    said = (await caller.get(f"/v2/models/{path}")).json()
    assert (said["versions"], said["platform"]) == (["v1"], "pytorch_export")
    assert said["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 4]},
        {"name": "ids", "datatype": "INT64", "shape": [-1]},
    ]
    assert [each["name"] for each in said["outputs"]] == ["score", "label"]


async def test_health_and_readiness(caller: Caller) -> None:
    assert (await caller.get("/v2")).json()["name"] == "jupyter_dsserve"
    for path, said in (("health/live", {"live": True}), ("health/ready", {"ready": True})):
        assert (await caller.get(f"/v2/{path}", headers={"Authorization": ""})).json() == said
    for path in ("relu", "relu/versions/v1"):
        assert (await caller.get(f"/v2/models/{path}/ready")).json() == {"name": "relu", "ready": True}
    assert (await caller.get("/v2/models/relu/versions/v9/ready")).status_code == 404
    assert (await caller.get("/v2/models/relu/ready", headers={"Authorization": ""})).status_code == 401


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "'inputs' is missing"),
        ({"inputs": []}, "at least 1 item"),
        ({"inputs": [an_input("z")]}, "send each of ['x'] once"),
        ({"inputs": [an_input(), an_input()]}, "send each of ['x'] once"),
        ({"inputs": [an_input(datatype="FP64")]}, "input 'x' is FP64: send FP32"),
        ({"inputs": [an_input(datatype="BYTES")]}, "BYTES"),
        ({"inputs": [an_input(data=[1.0] * 10, shape=[2, 5])]}, "input 'x' has the shape [2, 5]: send [-1, 4]"),
        ({"inputs": [an_input(shape=[3, 4])]}, "input 'x': data has the shape [2, 4], not [3, 4]"),
        ({"inputs": [an_input(shape=[4, 2])]}, "input 'x': data has the shape [2, 4], not [4, 2]"),
        ({"inputs": [an_input(data=[[1.0], [1.0, 2.0]])]}, "input 'x': data is nested unevenly"),
        ({"inputs": [an_input(data=["a"] * 8)]}, "input 'x': data holds other things than FP32"),
        ({"inputs": [an_input(data=[None] * 8)]}, "input 'x': data holds other things than FP32"),
        ({"inputs": [an_input(data=[300] * 8, datatype="UINT8")]}, "numbers outside UINT8, 0 to 255"),
        ({"inputs": [an_input(data=[0.5] * 8, datatype="INT32")]}, "data holds other things than INT32"),
        ({"inputs": [an_input(data=[float("nan")] * 8)]}, "NaN or an infinity"),
        ({"inputs": [an_input(data=[1e300] * 8)]}, "input 'x': data has numbers too large for FP32"),
        ({"inputs": [an_input(data=[70_000] * 8, datatype="FP16")]}, "data has numbers too large for FP16"),
        ({"inputs": [an_input(data=[1.0], shape=[1] * 100)]}, "at most 64 items"),
        ({"inputs": [an_input(data=[], shape=[0, *[2**31 - 1] * 3])]}, "input 'x': an array of the shape [0, 2147"),
        ({"inputs": [an_input()], "outputs": [{"name": "q"}]}, "output 'q' is not known: there are ['y']"),
        ({"inputs": [{**an_input(), "parameters": {"binary_data_size": 8}}]}, "input 'x': send one of data,"),
        ({"inputs": [an_input()], "parameters": {"max_tokens": 8}}, "unknown field 'max_tokens'"),
        ({"inputs": [an_input()], "parameters": {"binary_data_output": 1}}, "binary_data_output is no true or false"),
    ],
)
async def test_what_is_wrong_is_named(body: dict[str, Any], words: str, caller: Caller) -> None:
    answer = await caller.post("/v2/models/relu/infer", content=json.dumps(body))
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]


async def test_each_route_serves_its_task(caller: Caller) -> None:
    refused = await caller.complete("relu")
    assert refused.status_code == 400
    assert "has the task 'tensor'" in refused.text
    answer = await caller.post("/v2/models/relu/generate", json={"text_input": "x"})
    assert answer.status_code == 400
    assert "has the task 'tensor'" in answer.json()["error"]
    assert (await caller.post("/v2/models/nobody/infer", json={"inputs": [an_input()]})).status_code == 404


async def test_a_program_that_can_run_code_needs_a_setting_of_the_server(tmp_path: Path) -> None:
    gateway = Gateway(GatewayConfig(tmp_path / "data", port=0, drain_s=5))
    await gateway.start()
    try:
        async with Caller(gateway.url, gateway.admin_key) as caller:
            body = {"name": "x", "version": "v1", "model": str(save_scorer(tmp_path / "m.pt2")), "task": "tensor"}
            answer = await caller.post("/api/deployments", json=body)
            assert answer.status_code == 400
            assert "start the gateway with --allow-code" in answer.text
            taken = await caller.post("/api/deployments", json={**body, "model": str(save_onnx(tmp_path / "m.onnx"))})
            assert taken.status_code == 202
    finally:
        await gateway.stop()
