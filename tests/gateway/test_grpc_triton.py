"""The Open Inference Protocol over gRPC, with Triton's client as it is."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc as triton
from tritonclient.grpc import aio as triton_aio
from tritonclient.utils import InferenceServerException

from jupyter_dsserve.protocol import open_inference_pb2 as pb
from jupyter_dsserve.protocol.open_inference_pb2_grpc import GRPCInferenceServiceStub
from tests.engine.tiny_programs import save_onnx
from tests.gateway.grpc_support import Served, serving

pytestmark = pytest.mark.asyncio(loop_scope="module")
X = np.array([[0.5, -1.0, 2.0, 0.25], [1.0, 1.0, 1.0, 1.0]], np.float32)
RELU = np.maximum(X @ (np.arange(12, dtype=np.float32).reshape(4, 3) - 6), 0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    folder = tmp_path_factory.mktemp("triton")
    async with serving(folder) as served:
        await served.caller.load("demo", "v1", "toy:step_s=0.05")
        loaded = await served.caller.load("relu", "v1", str(save_onnx(folder / "relu.onnx")), task="tensor")
        assert loaded["state"] == "READY", loaded["reason"]
        yield served


@pytest_asyncio.fixture(loop_scope="module")
async def client(served: Served) -> AsyncIterator[triton_aio.InferenceServerClient]:
    async with triton_aio.InferenceServerClient(served.address) as client:
        yield client


def headers(served: Served) -> dict[str, str]:
    return dict(served.with_key())


def tensor(name: str, array: Any, datatype: str, shape: list[int] | None = None) -> triton.InferInput:
    found = triton.InferInput(name, shape or list(array.shape), datatype)
    found.set_data_from_numpy(array)
    return found


def text(words: str = "hello") -> triton.InferInput:
    return tensor("text_input", np.array([words.encode()], object), "BYTES")


async def test_it_tells_of_itself_and_of_its_models(served: Served, client: triton_aio.InferenceServerClient) -> None:
    with_key = headers(served)
    assert await client.is_server_live()
    assert await client.is_server_ready()
    assert (await client.get_server_metadata(with_key)).name == "jupyter_dsserve"
    assert await client.is_model_ready("relu", headers=with_key)
    assert await client.is_model_ready("relu", "v1", headers=with_key)
    told = await client.get_model_metadata("relu", headers=with_key)
    assert [(t.name, t.datatype, list(t.shape)) for t in told.inputs] == [("x", "FP32", [-1, 4])]
    config = (await client.get_model_config("demo", headers=with_key)).config
    assert config.model_transaction_policy.decoupled
    assert config.input[0].name == "text_input"
    index = await client.get_model_repository_index(with_key)
    assert [(m.name, m.version, m.state) for m in index.models] == [("demo", "v1", "READY"), ("relu", "v1", "READY")]
    with pytest.raises(InferenceServerException, match="UNAUTHENTICATED"):
        await client.get_model_metadata("relu")


async def test_a_program_takes_raw_tensors_and_gives_them(
    served: Served, client: triton_aio.InferenceServerClient
) -> None:
    asked = {"outputs": [triton.InferRequestedOutput("y")], "request_id": "7", "headers": headers(served)}
    answer = await client.infer("relu", [tensor("x", X, "FP32")], **asked)
    np.testing.assert_allclose(answer.as_numpy("y"), RELU, rtol=1e-5)
    assert (answer.get_response().id, answer.get_response().model_version) == ("7", "v1")
    pinned = await client.infer("relu", [tensor("x", X, "FP32")], model_version="v1", headers=headers(served))
    np.testing.assert_allclose(pinned.as_numpy("y"), RELU, rtol=1e-5)


async def test_a_text_model_goes_on_with_a_text(served: Served, client: triton_aio.InferenceServerClient) -> None:
    parameters = {"max_tokens": 6, "temperature": 0, "exclude_input_in_output": True}
    answer = await client.infer("demo", [text()], parameters=parameters, headers=headers(served))
    body = {"model": "demo", "input_text": "hello", "max_length": 6}
    assert (
        answer.as_numpy("text_output")[0].decode() == (await served.caller.post("/predict", json=body)).json()["result"]
    )


def streamed(served: Served, **parameters: Any) -> list[Any]:
    """What the blocking client's stream brings, until the final answer."""
    came: queue.Queue[Any] = queue.Queue()
    with triton.InferenceServerClient(served.address) as client:
        client.start_stream(lambda result, error: came.put((result, error)), headers=headers(served))
        client.async_stream_infer(
            "demo", [text()], request_id="7", enable_empty_final_response=True, parameters=parameters
        )
        found = []
        while True:
            result, error = came.get(timeout=20)
            found.append(error or result)
            if error or result.get_response().parameters["triton_final_response"].bool_param:
                break
        client.stop_stream()
    return found


async def test_a_stream_brings_pieces_and_an_empty_end(served: Served) -> None:
    pieces = await asyncio.to_thread(streamed, served, stream=True, max_tokens=6, temperature=0)
    told = [piece.as_numpy("text_output") for piece in pieces]
    assert told[-1] is None
    assert len(told) > 3
    body = {"model": "demo", "input_text": "hello", "max_length": 6}
    said = (await served.caller.post("/predict", json=body)).json()["result"]
    assert "".join(each[0].decode() for each in told[:-1]) == said
    assert {piece.get_response().id for piece in pieces} == {"7"}
    (error,) = await asyncio.to_thread(streamed, served, max_tokens=0)
    assert "max_tokens" in str(error)


async def test_typed_contents_are_taken_and_what_does_not_fit_is_refused(served: Served) -> None:
    async with served.channel() as channel:
        stub = GRPCInferenceServiceStub(channel)

        async def infer(**given: Any) -> Any:
            request = pb.ModelInferRequest(model_name="relu", inputs=[given])
            return await stub.ModelInfer(request, metadata=served.with_key())

        good = {"name": "x", "datatype": "FP32", "shape": [2, 4], "contents": {"fp32_contents": X.ravel().tolist()}}
        answer = await infer(**good)
        found = np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(list(answer.outputs[0].shape))
        np.testing.assert_allclose(found, RELU, rtol=1e-5)
        for change in (
            {"datatype": "FP64"},
            {"shape": [3, 4]},
            {"shape": [-1, 4]},
            {"datatype": "FP8"},
            {"parameters": {"shared_memory_region": {"string_param": "r"}}},
        ):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await infer(**(good | change))
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
