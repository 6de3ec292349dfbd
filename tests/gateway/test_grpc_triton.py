"""The Open Inference Protocol over gRPC with what Triton adds to it, with Triton's client as it is."""

from __future__ import annotations

import asyncio
import queue
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import grpc.aio
import numpy as np
import pytest
import pytest_asyncio
import tritonclient.grpc as triton
from tritonclient.grpc import aio as triton_aio
from tritonclient.utils import InferenceServerException, shared_memory

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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def app(served: Served) -> dict[str, str]:
    """Metadata with a key that only asks models."""
    key = (await served.caller.post("/api/keys", json={"name": "app", "scope": "infer"})).json()["key"]
    return dict(served.with_key(key))


@pytest.fixture
def region() -> Iterator[tuple[str, Any]]:
    """4 KB of shared memory, and its key."""
    key = f"dsserve-test-{uuid.uuid4().hex}"
    held = shared_memory.create_shared_memory_region("mine", key, 4096)
    yield key, held
    shared_memory.destroy_shared_memory_region(held)


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
            result, error = came.get(timeout=60)
            found.append(error or result)
            if error or result.get_response().parameters["triton_final_response"].bool_param:
                break
        client.stop_stream()
    return found


async def test_a_stream_brings_pieces_and_an_empty_end(served: Served) -> None:
    pieces = await asyncio.to_thread(streamed, served, stream=True, max_tokens=60, temperature=0)
    told = [piece.as_numpy("text_output") for piece in pieces]
    assert told[-1] is None
    assert len(told) > 3
    body = {"model": "demo", "input_text": "hello", "max_length": 60}
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


async def test_statistics_count_what_was_asked(
    served: Served, client: triton_aio.InferenceServerClient, app: dict[str, str]
) -> None:
    async def stats() -> Any:
        (found,) = (await client.get_inference_statistics("relu", "v1", headers=app)).model_stats
        return found

    before = await stats()
    await client.infer("relu", [tensor("x", X, "FP32")], headers=app)
    after = await stats()
    assert after.inference_count == before.inference_count + 1
    assert after.inference_stats.success.count == before.inference_stats.success.count + 1
    assert after.inference_stats.success.ns > before.inference_stats.success.ns
    assert after.last_inference > 1e12
    every = (await client.get_inference_statistics(headers=app)).model_stats
    assert {"demo", "relu"} == {each.name for each in every}
    rest = (await served.caller.get("/v2/models/relu/stats")).json()["model_stats"][0]
    assert rest["inference_stats"]["success"]["count"] == after.inference_stats.success.count


async def test_tensors_lie_in_shared_memory_both_ways(
    served: Served, app: dict[str, str], region: tuple[str, Any]
) -> None:
    key, held = region

    def work() -> None:
        with triton.InferenceServerClient(served.address) as client:
            shared_memory.set_shared_memory_region(held, [X])
            client.register_system_shared_memory("mine", f"/{key}", 4096, headers=app)
            told = client.get_system_shared_memory_status(headers=app).regions["mine"]
            assert (told.key, told.offset, told.byte_size) == (f"/{key}", 0, 4096)
            given = triton.InferInput("x", [2, 4], "FP32")
            given.set_shared_memory("mine", X.nbytes)
            wanted = triton.InferRequestedOutput("y")
            wanted.set_shared_memory("mine", RELU.nbytes, offset=1024)
            answer = client.infer("relu", [given], outputs=[wanted], headers=app)
            assert answer.get_output("y").parameters["shared_memory_region"].string_param == "mine"
            assert list(answer.get_response().raw_output_contents) == [b""]
            there = shared_memory.get_contents_as_numpy(held, np.float32, [2, 3], offset=1024)
            assert np.allclose(there, RELU)
            half = client.infer("relu", [given], headers=app)  # only the input lies there
            assert np.allclose(half.as_numpy("y"), RELU)
            for said, change in (
                ("output 'y' has 24 bytes", lambda: wanted.set_shared_memory("mine", RELU.nbytes - 1)),
                ("region 'mine' has 4096 bytes", lambda: given.set_shared_memory("mine", X.nbytes, offset=4090)),
                ("'other' is not registered", lambda: given.set_shared_memory("other", X.nbytes)),
            ):
                change()
                with pytest.raises(InferenceServerException, match=said):
                    client.infer("relu", [given], outputs=[wanted], headers=app)
            client.unregister_system_shared_memory("mine", headers=app)
            assert not client.get_system_shared_memory_status(headers=app).regions

    await asyncio.to_thread(work)


async def test_a_stream_takes_shared_memory_but_gives_no_pieces_in_it(
    served: Served, app: dict[str, str], region: tuple[str, Any], client: triton_aio.InferenceServerClient
) -> None:
    key, held = region
    shared_memory.set_shared_memory_region(held, [X])
    await client.register_system_shared_memory("mine", key, 4096, headers=app)
    given = triton.InferInput("x", [2, 4], "FP32")
    wanted, spoken = map(triton.InferRequestedOutput, ("y", "text_output"))
    given.set_shared_memory("mine", X.nbytes)
    wanted.set_shared_memory("mine", RELU.nbytes, offset=1024)
    spoken.set_shared_memory("mine", 64)

    async def requests() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": "relu", "inputs": [given], "outputs": [wanted]}
        yield {"model_name": "demo", "inputs": [text()], "outputs": [spoken], "parameters": {"stream": True}}

    found = [each async for each in client.stream_infer(requests(), headers=app)]
    ((_, fault),) = [each for each in found if each[1]]
    assert "in a stream each piece would lie where the one before lay" in str(fault)
    there = shared_memory.get_contents_as_numpy(held, np.float32, [2, 3], offset=1024)
    assert np.allclose(there, RELU)
    await client.unregister_system_shared_memory(headers=app)


async def test_a_region_is_its_keys_own_and_for_callers_here(
    served: Served, app: dict[str, str], region: tuple[str, Any], client: triton_aio.InferenceServerClient
) -> None:
    key, _ = region
    admin = headers(served)
    await client.register_system_shared_memory("mine", key, 4096, headers=app)
    given = triton.InferInput("x", [2, 4], "FP32")
    given.set_shared_memory("mine", X.nbytes)
    assert not (await client.get_system_shared_memory_status(headers=admin)).regions
    with pytest.raises(InferenceServerException, match=r"NOT_FOUND.*'mine' is not registered with this key"):
        await client.infer("relu", [given], headers=admin)
    for header in ("via", "x-forwarded-for", "forwarded"):
        proxied = app | {header: "1.1 elsewhere"}
        with pytest.raises(InferenceServerException, match=r"PERMISSION_DENIED.*own user on its machine"):
            await client.register_system_shared_memory("more", key, 64, headers=proxied)
        with pytest.raises(InferenceServerException, match=r"PERMISSION_DENIED.*callers on this machine"):
            await client.infer("relu", [given], headers=proxied)
    for name, path, size, code in (
        ("more", "../x", 64, "INVALID_ARGUMENT"),
        ("more", key, 0, "INVALID_ARGUMENT"),
        ("more", key, 99_999, "INVALID_ARGUMENT"),
        ("", key, 64, "INVALID_ARGUMENT"),
        ("more", "no-such", 64, "NOT_FOUND"),
        ("mine", key, 64, "FAILED_PRECONDITION"),
    ):
        with pytest.raises(InferenceServerException, match=code):
            await client.register_system_shared_memory(name, path, size, headers=app)
    mine = (await served.caller.get("/v2/systemsharedmemory/status", headers=rest(app))).json()
    assert [each["name"] for each in mine] == ["mine"]  # one key has the same regions over REST
    await client.unregister_system_shared_memory(headers=app)


def rest(metadata: dict[str, str]) -> dict[str, str]:
    return {"Authorization": metadata["authorization"]}


@pytest.mark.parametrize(
    ("ask", "name"),
    [
        (lambda c, h: c.get_trace_settings(headers=h), "TraceSetting"),
        (lambda c, h: c.get_log_settings(headers=h), "LogSettings"),
        (lambda c, h: c.get_cuda_shared_memory_status(headers=h), "CudaSharedMemoryStatus"),
    ],
)
async def test_what_is_not_served_is_refused_by_name(
    client: triton_aio.InferenceServerClient, app: dict[str, str], ask: Callable[[Any, Any], Any], name: str
) -> None:
    with pytest.raises(InferenceServerException, match=rf"UNIMPLEMENTED.*GRPCInferenceService/{name} is not served"):
        await ask(client, app)


async def test_the_repository_lists_loads_and_unloads(
    served: Served, client: triton_aio.InferenceServerClient, app: dict[str, str]
) -> None:
    admin = headers(served)
    await client.unload_model("demo", headers=admin)
    await served.caller.settled("demo", "v1", "STOPPED")
    found = (await client.get_model_repository_index(admin)).models
    assert [(m.name, m.state) for m in found] == [("demo", "UNAVAILABLE"), ("relu", "READY")]
    with pytest.raises(InferenceServerException, match=r"PERMISSION_DENIED.*'app' only asks models"):
        await client.load_model("demo", headers=app)
    with pytest.raises(InferenceServerException, match=r"INVALID_ARGUMENT.*config"):
        await client.load_model("demo", headers=admin, config="{}")
    with pytest.raises(InferenceServerException, match=r"NOT_FOUND.*nobody"):
        await client.load_model("nobody", headers=admin)
    await client.load_model("demo@v1", headers=admin)  # which answers once it is READY
    assert await client.is_model_ready("demo", headers=app)
    await served.caller.load("demo", "v2", "toy:step_s=0")
    with pytest.raises(InferenceServerException, match="several versions: name one of demo@v1, demo@v2"):
        await client.unload_model("demo", headers=admin)
