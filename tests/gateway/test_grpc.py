"""The gRPC front through the whole road, with generated stubs, as any client has them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from jupyter_dsserve.gateway.grpc.model_service import tensor_of
from jupyter_dsserve.protocol import inference_pb2 as pb
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.inference_pb2_grpc import InferenceStub, ModelServiceStub
from jupyter_dsserve.protocol.tensors import TensorInfo
from tests.engine.tiny_programs import save_onnx
from tests.gateway.grpc_support import Served, serving
from tests.support import until

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Served]:
    """``demo``, a quick toy; ``slow``, of a tenth of a second a token; ``relu``, a program."""
    folder = tmp_path_factory.mktemp("grpc")
    async with serving(folder, "--DSServeApp.max_body_bytes=100000") as served:
        await served.caller.load("demo", "v1", "toy:step_s=0.005")
        await served.caller.load("slow", "v1", "toy:step_s=0.1")
        loaded = await served.caller.load("relu", "v1", str(save_onnx(folder / "relu.onnx")), task="tensor")
        assert loaded["state"] == "READY", loaded["reason"]
        yield served


@pytest_asyncio.fixture(loop_scope="module")
async def channel(served: Served) -> AsyncIterator[grpc.aio.Channel]:
    async with served.channel() as channel:
        yield channel


@pytest_asyncio.fixture(loop_scope="module")
async def inference(channel: grpc.aio.Channel) -> InferenceStub:
    return InferenceStub(channel)


async def in_flight(served: Served, name: str) -> int:
    version = await served.caller.version(name, "v1")
    return sum(replica["in_flight"] for replica in version["replicas"])


def asking(model: str = "demo", text: str = "hello", num: int = 5) -> pb.InferenceRequest:
    return pb.InferenceRequest(model=model, input_text=text, max_length=num)


async def test_predict_answers_what_http_answers(served: Served, inference: InferenceStub) -> None:
    call = inference.Predict(asking(), metadata=served.with_key())
    answer = await call
    body = {"model": "demo", "input_text": "hello", "max_length": 5}
    said = (await served.caller.post("/predict", json=body)).json()
    assert answer.result == said["result"]
    assert answer.version == "v1"
    assert 0 < answer.latency_ms < 5000
    assert answer.timestamp.endswith("+00:00")
    told = dict(await call.trailing_metadata())
    assert told["x-dsserve-version"] == "v1"
    trace = (await served.caller.get(f"/api/traces/{told['x-request-id']}")).json()
    assert "Inference/Predict" in str(trace)


async def test_a_blocking_stub_is_answered_too(served: Served) -> None:
    def ask() -> pb.InferenceResponse:
        with grpc.insecure_channel(served.address) as channel:
            return InferenceStub(channel).Predict(asking(), metadata=served.with_key())

    assert (await asyncio.to_thread(ask)).version == "v1"


async def test_a_server_stream_gives_the_same_answer_in_pieces(served: Served, inference: InferenceStub) -> None:
    whole = await inference.Predict(asking(num=30), metadata=served.with_key())
    # So many that a gateway that was held up for a second or two, and told what it missed in one piece, has more.
    pieces = [p async for p in inference.PredictServerStream(asking("slow", num=30), metadata=served.with_key())]
    assert len(pieces) > 2
    assert "".join(p.text for p in pieces) == whole.result
    assert [p.finish_reason for p in pieces[:-1]] == [""] * (len(pieces) - 1)
    assert pieces[-1].finish_reason == "length"


async def test_requests_on_one_stream_are_answered_as_they_are_ready(served: Served, inference: InferenceStub) -> None:
    stream = inference.PredictStream(metadata=served.with_key())
    sent = {"late": asking("slow", num=40), "soon": asking(), "nowhere": asking("nobody"), "wrong": asking(num=0)}
    for id, request in sent.items():
        await stream.write(pb.StreamRequest(id=id, request=request))
    await stream.write(pb.StreamRequest(id="late", request=asking()))
    await stream.write(pb.StreamRequest(request=asking()))
    await stream.done_writing()
    answers = [answer async for answer in stream]
    assert await stream.code() is grpc.StatusCode.OK
    errors = {(a.id, a.error.code) for a in answers if a.HasField("error")}
    assert errors == {("nowhere", 5), ("wrong", 3), ("late", 9), ("", 3)}
    assert "nobody" in next(a.error.message for a in answers if a.id == "nowhere")
    results = [a for a in answers if a.HasField("response")]
    assert [a.id for a in results] == ["soon", "late"]
    whole = await inference.Predict(asking(num=40), metadata=served.with_key())
    assert results[1].response.result == whole.result


@pytest.mark.parametrize(
    ("key", "request_", "code", "words"),
    [
        (None, asking(), grpc.StatusCode.UNAUTHENTICATED, "no key"),
        ("dsk_wrong", asking(), grpc.StatusCode.UNAUTHENTICATED, "not valid"),
        ("", asking("nobody"), grpc.StatusCode.NOT_FOUND, "there are demo, relu, slow"),
        ("", asking(""), grpc.StatusCode.INVALID_ARGUMENT, "no model is named, and there are demo, relu, slow"),
        ("", asking(num=0), grpc.StatusCode.INVALID_ARGUMENT, "max_length"),
        ("", asking("relu"), grpc.StatusCode.INVALID_ARGUMENT, "task 'tensor'"),
    ],
)
async def test_what_cannot_be_answered_has_a_status_and_says_why(
    served: Served, inference: InferenceStub, key: str | None, request_: Any, code: grpc.StatusCode, words: str
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await inference.Predict(request_, metadata=None if key is None else served.with_key(key))
    assert refused.value.code() is code
    assert words in (refused.value.details() or "")


async def test_a_key_asks_what_it_may_and_as_often_as_it_may(served: Served, inference: InferenceStub) -> None:
    body = {"name": "app", "scope": "infer", "deployments": ["demo"], "rate": 0.01, "burst": 1}
    key = (await served.caller.post("/api/keys", json=body)).json()["key"]
    with pytest.raises(grpc.aio.AioRpcError) as other:
        await inference.Predict(asking("slow"), metadata=served.with_key(key))
    assert other.value.code() is grpc.StatusCode.NOT_FOUND
    assert (await inference.Predict(asking(""), metadata=served.with_key(key))).version == "v1"  # its only one
    with pytest.raises(grpc.aio.AioRpcError) as often:
        await inference.Predict(asking(), metadata=served.with_key(key))
    assert often.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert int(dict(often.value.trailing_metadata())["retry-after"]) > 50
    assert key not in str(often.value)
    key = (await served.caller.post("/api/keys", json={"name": "prometheus", "scope": "metrics"})).json()["key"]
    with pytest.raises(grpc.aio.AioRpcError) as other:
        await inference.Predict(asking(), metadata=served.with_key(key))
    assert other.value.code() is grpc.StatusCode.PERMISSION_DENIED
    assert "'prometheus' only reads /metrics" in (other.value.details() or "")


async def test_a_deadline_ends_the_work(served: Served, inference: InferenceStub) -> None:
    stream = inference.PredictServerStream(asking("slow", num=1000), metadata=served.with_key(), timeout=4)
    assert await stream.read()  # it runs, and would for 100 s
    assert await stream.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await until(lambda: in_flight(served, "slow"), lambda n: n == 0)

    async def is_counted() -> bool:
        calls = (await served.caller.get("/metrics")).text.replace('version="v1",', "")
        return 'deployment="slow",le="+Inf",outcome="timeout"' in calls

    await until(is_counted)


async def test_who_cancels_in_midst_of_a_stream_frees_the_place(served: Served, inference: InferenceStub) -> None:
    stream = inference.PredictServerStream(asking("slow", num=1000), metadata=served.with_key())
    await stream.read()

    async def running() -> float:  # the worker's own count, at its last heartbeat
        lines = (await served.caller.get("/metrics")).text.splitlines()
        found = [x for x in lines if x.startswith("dsserve_batch_sequences{") and "slow" in x]
        return float(found[0].split()[-1])

    await until(running, lambda n: n == 1)
    assert await in_flight(served, "slow") == 1
    stream.cancel()
    await until(lambda: in_flight(served, "slow"), lambda n: n == 0)
    await until(running, lambda n: n == 0)


async def test_a_cancelled_stream_of_many_frees_them_all(served: Served, inference: InferenceStub) -> None:
    stream = inference.PredictStream(metadata=served.with_key())
    for id in "abc":
        await stream.write(pb.StreamRequest(id=id, request=asking("slow", num=1000)))
    await until(lambda: in_flight(served, "slow"), lambda n: n == 3)
    stream.cancel()
    await until(lambda: in_flight(served, "slow"), lambda n: n == 0)


async def test_too_large_a_message_is_refused(served: Served, inference: InferenceStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await inference.Predict(asking(text="x" * 100_001), metadata=served.with_key())
    assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "100000" in (refused.value.details() or "")


async def test_priority_comes_as_metadata(served: Served, inference: InferenceStub) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await inference.Predict(asking(), metadata=(*served.with_key(), ("x-dsserve-priority", "1000")))
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert await inference.Predict(asking(), metadata=(*served.with_key(), ("x-dsserve-priority", "5")))


async def test_a_program_predicts_from_features(served: Served, channel: grpc.aio.Channel) -> None:
    model = ModelServiceStub(channel)
    features = [0.5, -1.0, 2.0, 0.25]
    answer = await model.Predict(pb.PredictRequest(features=features, model="relu"), metadata=served.with_key())
    body = {"inputs": [{"name": "x", "shape": [1, 4], "datatype": "FP32", "data": features}]}
    said = (await served.caller.post("/v2/models/relu/infer", json=body)).json()["outputs"][0]
    assert list(answer.predictions) == pytest.approx(said["data"])
    assert answer.prediction == answer.predictions[0]
    assert list(answer.shape) == said["shape"]
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await model.Predict(pb.PredictRequest(features=features[:3], model="relu"), metadata=served.with_key())
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "3 features" in (refused.value.details() or "")


async def test_a_call_wakes_what_rests(served: Served, channel: grpc.aio.Channel) -> None:
    for name in ("demo", "relu"):
        autoscale = {"min": 0, "max": 1, "idle_s": 0.2}
        await served.caller.put(f"/api/deployments/{name}/versions/v1/autoscale", json=autoscale)
    for name in ("demo", "relu"):
        await served.caller.settled(name, "v1", "STOPPED")
    inference, model, with_key = InferenceStub(channel), ModelServiceStub(channel), served.with_key()
    stream = inference.PredictServerStream(asking(), metadata=with_key)
    features = pb.PredictRequest(features=[0.5, -1.0, 2.0, 0.25], model="relu")
    answer, first = await asyncio.gather(model.Predict(features, metadata=with_key), stream.read())
    assert (answer.version, first.version) == ("v1", "v1")
    for name in ("demo", "relu"):
        await served.caller.delete(f"/api/deployments/{name}/versions/v1/autoscale")


async def test_features_wait_for_a_program_that_is_on_its_way(served: Served, channel: grpc.aio.Channel) -> None:
    await served.caller.post("/api/deployments/relu/versions/v1/unload")
    await served.caller.settled("relu", "v1", "STOPPED")  # while it drains it is not loaded again
    await served.caller.put("/api/deployments/relu/policy", json={"queue_timeout_s": 30})
    assert (await served.caller.post("/api/deployments/relu/versions/v1/load")).is_success
    features = pb.PredictRequest(features=[0.5, -1.0, 2.0, 0.25], model="relu@v1")
    assert (await ModelServiceStub(channel).Predict(features, metadata=served.with_key())).version == "v1"


async def test_health_follows_readiness_and_needs_no_key(served: Served, channel: grpc.aio.Channel) -> None:
    health = HealthStub(channel)
    serving_, not_ = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
    assert (await health.Check(health_pb2.HealthCheckRequest())).status == serving_
    watch = health.Watch(health_pb2.HealthCheckRequest(service="dsserve.v1.ModelService"))
    assert (await watch.read()).status == serving_
    await served.caller.post("/api/deployments/relu/versions/v1/unload")
    assert (await watch.read()).status == not_
    assert (await health.Check(health_pb2.HealthCheckRequest(service="dsserve.v1.Inference"))).status == serving_
    watch.cancel()
    with pytest.raises(grpc.aio.AioRpcError) as unknown:
        await health.Check(health_pb2.HealthCheckRequest(service="nobody"))
    assert unknown.value.code() is grpc.StatusCode.NOT_FOUND


async def test_reflection_tells_of_every_service(served: Served) -> None:
    def look() -> Iterator[str]:
        with grpc.insecure_channel(served.address) as channel:
            database = ProtoReflectionDescriptorDatabase(channel)
            pool = DescriptorPool(database)
            for name in database.get_services():
                yield from (f"{name}/{m.name}" for m in pool.FindServiceByName(name).methods)

    found = await asyncio.to_thread(lambda: set(look()))
    ours = {"dsserve.v1.Inference/PredictStream", "dsserve.v1.ModelService/Predict"}
    ours |= {f"inference.GRPCInferenceService/{name}" for name in ("ModelInfer", "RepositoryModelLoad")}
    assert ours | {"grpc.health.v1.Health/Check"} <= found


async def test_the_status_says_where_it_is(served: Served) -> None:
    assert (await served.caller.get("/api/status")).json()["grpc"] == served.address


@pytest.mark.parametrize(
    ("shape", "num", "filled"),
    [((4,), 4, (4,)), ((-1, 4), 8, (2, 4)), ((-1,), 3, (3,)), ((-1, -1), 3, (3, 1)), ((2, 2), 4, (2, 2)), ((), 1, ())],
)
async def test_features_fill_the_input(shape: tuple[int, ...], num: int, filled: tuple[int, ...]) -> None:
    tensor = tensor_of([1.0] * num, [TensorInfo("x", "FP64", shape)])
    assert tensor.shape == filled
    assert tensor.array().sum() == num


@pytest.mark.parametrize(
    ("features", "inputs"),
    [
        ([1.0] * 5, [TensorInfo("x", "FP32", (-1, 4))]),
        ([], [TensorInfo("x", "FP32", (-1, 4))]),
        ([0.5], [TensorInfo("x", "INT64", (-1,))]),
        ([float("nan")], [TensorInfo("x", "INT32", (-1,))]),
        ([1.0], [TensorInfo("x", "BYTES", (-1,))]),
        ([1.0], [TensorInfo("x", "FP32", (1,)), TensorInfo("y", "FP32", (1,))]),
    ],
)
async def test_features_that_do_not_fit_are_refused(features: list[float], inputs: list[TensorInfo]) -> None:
    with pytest.raises(InvalidRequest):
        tensor_of(features, inputs)
