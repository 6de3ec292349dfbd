"""The Open Inference Protocol with Triton's own client, unmodified, on the whole road."""

from __future__ import annotations

import asyncio
import gzip
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import numpy as np
import pytest
import pytest_asyncio
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException, shared_memory

from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.gateway.v2.regions import DIRECTORY
from jupyter_dsserve.protocol.config import GatewayConfig
from tests.engine.test_loop import toy_text
from tests.engine.tiny_programs import save_onnx
from tests.support import Caller, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

X = np.array([[0.5, -1.0, 2.0, 0.25], [1.0, 1.0, 1.0, 1.0]], np.float32)
RELU = np.maximum(X @ (np.arange(12, dtype=np.float32).reshape(4, 3) - 6), 0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    """``demo`` generates, ``vectors`` embeds, ``relu`` is a program; all READY."""
    folder = tmp_path_factory.mktemp("oip")
    gateway = Gateway(GatewayConfig(folder / "data", port=0, drain_s=5, max_body_bytes=1_000_000))
    await gateway.start()
    async with Caller(gateway.url, gateway.admin_key) as caller:
        relu = str(save_onnx(folder / "relu.onnx"))
        await caller.load("relu", "v1", relu, task="tensor", num_threads=1, wait=False)
        await caller.load("demo", "v1", "toy:step_s=0.001")
        await caller.load("vectors", "v1", "toy:step_s=0", task="embed")
        assert (await caller.settled("relu", "v1"))["state"] == "READY"
    yield gateway
    await gateway.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def caller(gateway: Gateway) -> AsyncIterator[Caller]:
    async with Caller(gateway.url, gateway.admin_key) as caller:
        yield caller


@pytest_asyncio.fixture(loop_scope="module")
async def client(gateway: Gateway) -> AsyncIterator[Any]:
    """Triton's asynchronous one. Its headers are given call by call."""
    async with triton_aio.InferenceServerClient(gateway.url.removeprefix("http://")) as client:
        yield client


@pytest.fixture
def headers(gateway: Gateway) -> dict[str, str]:
    return {"Authorization": f"Bearer {gateway.admin_key}"}


def text(*texts: str, name: str = "text_input") -> Any:
    found = triton.InferInput(name, [len(texts)], "BYTES")
    return found.set_data_from_numpy(np.array([each.encode() for each in texts], object))


def numbers(name: str, values: Any, datatype: str, **more: Any) -> Any:
    return triton.InferInput(name, list(values.shape), datatype).set_data_from_numpy(values, **more)


@pytest.fixture
def in_thread(gateway: Gateway) -> Callable[[Callable[[Any], Any]], Any]:
    """Runs a function of Triton's synchronous client, which is gevent's, in a thread of its own."""

    def run(work: Callable[[Any], Any]) -> Any:
        client = triton.InferenceServerClient(gateway.url.removeprefix("http://"))
        client.register_plugin(_Key(gateway.admin_key))
        try:
            return work(client)
        finally:
            client.close()

    return lambda work: asyncio.to_thread(run, work)


class _Key(triton.InferenceServerClientPlugin):  # type: ignore[misc]
    def __init__(self, key: str) -> None:
        self._key = key

    def __call__(self, request: Any) -> None:
        request.headers["Authorization"] = f"Bearer {self._key}"


async def test_the_synchronous_client_does_all_of_it(in_thread: Any) -> None:
    def work(client: Any) -> None:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("demo", "v1")
        assert "binary_tensor_data" in client.get_server_metadata()["extensions"]
        told = client.get_model_metadata("demo")
        assert (told["name"], told["versions"], told["platform"]) == ("demo", ["v1"], "dsserve_toy")
        assert told["inputs"][0] == {"name": "text_input", "datatype": "BYTES", "shape": [-1]}
        config = client.get_model_config("demo", "v1")
        assert (config["max_batch_size"], config["model_transaction_policy"]) == (0, {"decoupled": True})
        assert config["input"][0] == {"name": "text_input", "data_type": "TYPE_STRING", "dims": [-1]}
        assert all(each["optional"] for each in config["input"][1:])
        assert client.get_model_config("relu")["input"] == [{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 4]}]
        for coding in (None, "gzip", "deflate"):
            found = client.infer(
                "demo",
                [text("hello")],
                request_id="7",
                parameters={"max_tokens": 5, "temperature": 0.0, "exclude_input_in_output": True},
                request_compression_algorithm=coding,
                response_compression_algorithm=coding,
            )
            assert found.as_numpy("text_output").tolist() == [toy_text("hello", 5).encode()]
            said = found.get_response()
            assert (said["model_name"], said["model_version"], said["id"]) == ("demo", "v1", "7")
        waiting = [client.async_infer("relu", [numbers("x", X, "FP32")]) for _ in range(3)]
        assert all(np.allclose(each.get_result().as_numpy("y"), RELU) for each in waiting)
        with pytest.raises(InferenceServerException, match="send FP32"):
            client.infer("relu", [numbers("x", X.astype(np.float64), "FP64")])

    await in_thread(work)


@pytest.mark.parametrize("is_binary", [True, False])
async def test_tensors_go_raw_or_as_json_each_way(client: Any, headers: dict[str, str], is_binary: bool) -> None:
    for asks_binary in (True, False):
        given = numbers("x", X, "FP32", binary_data=is_binary)
        wanted = [triton.InferRequestedOutput("y", binary_data=asks_binary)]
        found = await client.infer("relu", [given], outputs=wanted, headers=headers)
        assert np.allclose(found.as_numpy("y"), RELU)
        assert ("data" in found.get_output("y")) != asks_binary


async def test_prompts_are_answered_together_with_what_else_is_asked_for(client: Any, headers: dict[str, str]) -> None:
    asked = [
        text("a", "bc"),
        numbers("max_tokens", np.array([[3], [4]], np.int32), "INT32"),
        text(json.dumps({"temperature": "0"}), name="sampling_parameters"),
        numbers("return_num_output_tokens", np.array([True]), "BOOL"),
        numbers("return_finish_reason", np.array([True]), "BOOL"),
    ]
    found = await client.infer("demo", asked, model_version="v1", headers=headers)
    assert found.as_numpy("text_output").tolist() == [f"{p}{toy_text(p, n)}".encode() for p, n in (("a", 3), ("bc", 4))]
    assert found.as_numpy("num_output_tokens").tolist() == [3, 4]
    assert found.as_numpy("finish_reason").tolist() == [b"length", b"length"]
    wanted = [triton.InferRequestedOutput("num_input_tokens")]
    only = await client.infer("demo", [text("abc")], outputs=wanted, headers=headers)
    assert [each["name"] for each in only.get_response()["outputs"]] == ["num_input_tokens"]


async def test_vectors_of_texts(client: Any, caller: Caller, headers: dict[str, str]) -> None:
    told = await client.get_model_metadata("vectors", headers=headers)
    assert [each["name"] for each in told["outputs"]] == ["embedding"]
    found = await client.infer("vectors", [text(*map(str, range(40)))], headers=headers)
    texts = {"model": "vectors", "input": [str(number) for number in range(40)]}
    same = [each["embedding"] for each in (await caller.post("/v1/embeddings", json=texts)).json()["data"]]
    assert np.allclose(found.as_numpy("embedding"), same)


async def test_generate_answers_with_the_text(caller: Caller) -> None:
    body = {"text_input": "hello", "parameters": {"max_tokens": 5, "exclude_input_in_output": True}}
    whole = {"model_name": "demo", "model_version": "v1", "text_output": toy_text("hello", 5)}
    for path in ("demo", "demo@v1", "demo/versions/v1"):
        answer = await caller.post(f"/v2/models/{path}/generate", json=body)
        assert answer.json() == whole | {"model_name": path.partition("/")[0]}
    beside = {"text_input": "hello", "max_tokens": 5, "return_num_output_tokens": True}
    answer = await caller.post("/v2/models/demo/generate", json=beside)
    assert answer.json() == whole | {"text_output": "hello" + toy_text("hello", 5), "num_output_tokens": 5}
    assert answer.headers["X-DSServe-Version"] == "v1"


async def events(caller: Caller, body: Any, model: str = "demo") -> list[Any]:
    async with caller.stream("POST", f"/v2/models/{model}/generate_stream", json=body) as answer:
        assert answer.status_code == 200, await answer.aread()
        assert answer.headers["Content-Type"] == "text/event-stream; charset=utf-8"
        assert answer.headers["X-Accel-Buffering"] == "no"
        return [json.loads(line[len("data: ") :]) async for line in answer.aiter_lines() if line]


async def test_generate_stream_tells_it_as_it_comes(caller: Caller) -> None:
    # What comes while nobody reads goes together: its steps are long, and those of "demo" are not.
    await caller.load("steps", "v1", "toy:step_s=0.2")
    body = {"text_input": "hello", "parameters": {"max_tokens": 6, "return_finish_reason": True}}
    said = await events(caller, body, "steps")
    await caller.delete("/api/deployments/steps")
    assert len(said) > 2
    assert "".join(each["text_output"] for each in said) == toy_text("hello", 6)
    assert [each["finish_reason"] for each in said][-2:] == ["", "length"]
    (whole,) = await events(caller, {"text_input": "hello", "max_tokens": 6, "stream": False})
    assert whole["text_output"] == "hello" + toy_text("hello", 6)


async def test_an_error_while_it_streams_is_the_last_event(caller: Caller, gateway: Gateway) -> None:
    await caller.load("slow", "v1", "toy:step_s=0.05")
    said = await events(caller, {"text_input": "hello", "max_tokens": 100, "timeout_s": 0.4}, "slow")
    assert said[0]["text_output"]
    assert "time limit" in said[-1]["error"]
    async with caller.stream("POST", "/v2/models/slow/generate_stream", json={"text_input": "x", "max_tokens": 9999}):
        await until(lambda: gateway.fleet.in_flight)
    await until(lambda: gateway.fleet.in_flight == 0)


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("demo/generate", {"text_input": 3}, "'text_input' is 3"),
        ("demo/generate", {"parameters": {}}, "'text_input' is missing"),
        ("demo/generate", {"text_input": "x", "max_toks": 3}, "did you mean 'max_tokens'"),
        ("demo/generate", {"text_input": "x", "top_k": 1, "parameters": {"top_k": 1}}, "'top_k' stands in parameters"),
        ("demo/generate", {"text_input": "x", "stream": True}, "ask generate_stream"),
        ("demo/generate_stream", {"text_input": "x", "n": 2}, "'n' is 2"),
        ("vectors/generate", {"text_input": "x"}, "has the task 'embed'"),
        ("demo/infer", {"inputs": [{"name": "x", "shape": [1], "datatype": "BOOL", "data": [True]}]}, "'text_input'"),
    ],
)
async def test_what_is_wrong_is_named(caller: Caller, path: str, body: Any, words: str) -> None:
    answer = await caller.post(f"/v2/models/{path}", json=body)
    assert answer.status_code == 400, answer.text
    assert words in answer.json()["error"]


async def test_a_body_inflates_to_the_limit_and_no_further(caller: Caller) -> None:
    bomb = gzip.compress(b" " * 1_000_001)
    answer = await caller.post("/v2/models/relu/infer", content=bomb, headers={"Content-Encoding": "gzip"})
    assert answer.status_code == 413
    assert "inflates to more than 1000000 bytes" in answer.json()["error"]


async def test_statistics_count_what_was_asked(client: Any, caller: Caller, headers: dict[str, str]) -> None:
    async def stats() -> Any:
        (found,) = (await client.get_inference_statistics("relu", "v1", headers=headers))["model_stats"]
        return found

    before = await stats()
    await client.infer("relu", [numbers("x", X, "FP32")], headers=headers)
    after = await stats()
    assert after["inference_count"] == before["inference_count"] + 1
    for name in ("success", "queue", "compute_infer"):
        assert after["inference_stats"][name]["count"] == before["inference_stats"][name]["count"] + 1
    assert after["inference_stats"]["success"]["ns"] > before["inference_stats"]["success"]["ns"]
    assert after["last_inference"] > before["last_inference"] > 1e12 or before["inference_count"] == 0
    every = (await caller.get("/v2/models/stats")).json()["model_stats"]
    assert {"demo", "relu", "vectors"} <= {each["name"] for each in every}


async def test_the_repository_lists_loads_and_unloads(client: Any, caller: Caller, headers: dict[str, str]) -> None:
    await caller.load("shelf", "v1", "toy:step_s=0")
    await client.unload_model("shelf", headers=headers)
    await caller.settled("shelf", "v1", "STOPPED")

    def of(found: Any) -> Any:
        return [each for each in found if each["name"] == "shelf"]

    stopped = {"name": "shelf", "version": "v1", "state": "UNAVAILABLE", "reason": "STOPPED"}
    assert of(await client.get_model_repository_index(headers=headers)) == [stopped]
    assert of((await caller.post("/v2/repository/index", json={"ready": True})).json()) == []
    await client.load_model("shelf", headers=headers)
    ready = {"name": "shelf", "version": "v1", "state": "READY", "reason": ""}
    assert of(await client.get_model_repository_index(headers=headers)) == [ready]
    with pytest.raises(InferenceServerException, match="parameters"):
        await client.load_model("shelf", headers=headers, config="{}")
    await caller.load("shelf", "v2", "toy:load_s=0,fail_rate=0", wait=False)
    with pytest.raises(InferenceServerException, match="'shelf' has several versions: name one of shelf@v1, shelf@v2"):
        await client.unload_model("shelf", headers=headers)
    await caller.settled("shelf", "v2")


@pytest.fixture
def region() -> Iterator[SharedMemory]:
    """4 KB of shared memory that nobody has registered."""
    made = SharedMemory(f"dsserve-test-{uuid.uuid4().hex}", create=True, size=4096)
    yield made
    made.close()
    made.unlink()


@pytest.mark.parametrize("room", [RELU.nbytes, 2**21])  # much is copied in a thread
async def test_tensors_lie_in_shared_memory_both_ways(in_thread: Any, room: int) -> None:
    size = 4096 + room
    key = f"dsserve-test-{uuid.uuid4().hex}"
    held = shared_memory.create_shared_memory_region("mine", key, size)

    def work(client: Any) -> None:
        shared_memory.set_shared_memory_region(held, [X])
        client.register_system_shared_memory("mine", f"/{key}", size)
        assert client.get_system_shared_memory_status() == [
            {"name": "mine", "key": f"/{key}", "offset": 0, "byte_size": size}
        ]
        given = triton.InferInput("x", [2, 4], "FP32")
        given.set_shared_memory("mine", X.nbytes)
        wanted = triton.InferRequestedOutput("y")
        wanted.set_shared_memory("mine", room, offset=1024)
        found = client.infer("relu", [given], outputs=[wanted])
        assert "data" not in found.get_output("y")
        there = shared_memory.get_contents_as_numpy(held, np.float32, [2, 3], offset=1024)
        assert np.allclose(there, RELU)
        wanted.set_shared_memory("mine", RELU.nbytes - 1, offset=1024)
        with pytest.raises(InferenceServerException, match="output 'y' has 24 bytes, and its shared"):
            client.infer("relu", [given], outputs=[wanted])
        given.set_shared_memory("mine", X.nbytes, offset=size - 6)
        with pytest.raises(InferenceServerException, match=f"region 'mine' has {size} bytes"):
            client.infer("relu", [given])
        client.unregister_system_shared_memory("mine")
        with pytest.raises(InferenceServerException, match="'mine' is not registered"):
            client.infer("relu", [given])

    try:
        await in_thread(work)
    finally:
        shared_memory.destroy_shared_memory_region(held)


async def test_a_region_is_its_keys_own_and_for_callers_here(
    gateway: Gateway, caller: Caller, region: SharedMemory
) -> None:
    keys = [(await caller.post("/api/keys", json={"name": name})).json() for name in ("one", "other")]
    body = {"key": region.name, "byte_size": 64}
    given = {"name": "x", "shape": [2, 4], "datatype": "FP32"}
    place = {"shared_memory_region": "r", "shared_memory_byte_size": 32}
    inputs = {"inputs": [given | {"parameters": place}]}
    async with Caller(gateway.url, keys[0]["key"]) as one, Caller(gateway.url, keys[1]["key"]) as other:
        path = "/v2/systemsharedmemory/region/r"
        assert (await one.post(f"{path}/register", json=body)).status_code == 200
        for stranger in (other, caller):
            assert (await stranger.get("/v2/systemsharedmemory/status")).json() == []
            assert (await stranger.get(f"{path}/status")).status_code == 404
            refused = await stranger.post("/v2/models/relu/infer", json=inputs)
            assert refused.status_code == 404
            assert "'r' is not registered with this key" in refused.json()["error"]
            written = {
                "inputs": [given | {"data": X.ravel().tolist()}],
                "outputs": [{"name": "y", "parameters": place}],
            }
            assert (await stranger.post("/v2/models/relu/infer", json=written)).status_code == 404
            assert (await stranger.post("/v2/systemsharedmemory/unregister")).status_code == 200
        assert (await one.post("/v2/models/relu/infer", json=inputs)).status_code == 200
        for header in ("Via", "X-Forwarded-For", "Forwarded"):
            for route, sent in ((f"{path}2/register", body), ("/v2/models/relu/infer", inputs)):
                refused = await one.post(route, json=sent, headers={header: "1.1 elsewhere"})
                assert refused.status_code == 403, refused.text
        for wrong, status in (({"key": "../x"}, 400), ({"byte_size": 99_999}, 400), ({"key": "no-such"}, 404)):
            assert (await one.post(f"{path}3/register", json=body | wrong)).status_code == status
        assert bytes(region.buf) == bytes(len(region.buf))
        await caller.delete(f"/api/keys/{keys[0]['id']}")
        assert (await other.post(f"{path}/register", json=body)).status_code == 200  # and what is revoked is closed
        assert gateway.context.regions.of(keys[0]["id"]) == []
    assert (DIRECTORY / region.name).exists()


async def test_a_key_sees_its_own_deployments_only(gateway: Gateway, caller: Caller) -> None:
    key = (await caller.post("/api/keys", json={"name": "app", "deployments": ["demo"]})).json()["key"]
    async with Caller(gateway.url, key) as app:
        assert {each["name"] for each in (await app.post("/v2/repository/index")).json()} == {"demo"}
        assert {e["name"] for e in (await app.get("/v2/models/stats")).json()["model_stats"]} == {"demo"}
        assert (await app.get("/v2/models/demo/config")).status_code == 200
        for method, path in (
            ("GET", "config"),
            ("GET", "stats"),
            ("GET", "versions/v1/stats"),
            ("POST", "generate"),
            ("POST", "versions/v1/generate_stream"),
            ("POST", "infer"),
        ):
            answer = await app.request(method, f"/v2/models/relu/{path}", json={"text_input": "x", "inputs": []})
            assert answer.status_code in (400, 404), answer.text
            assert "relu" not in answer.text or "is not one that this key may ask: it may ask demo" in answer.text
        for verb in ("load", "unload"):
            assert (await app.post(f"/v2/repository/models/demo/{verb}")).status_code == 403
