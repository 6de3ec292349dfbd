"""What a caller of gRPC may cost: without a key, with too much metadata, with a message that is larger than it looks,
and one who reads nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any, cast

import grpc
import grpc.aio
import pytest
import pytest_asyncio
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub

from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol import inference_pb2 as pb
from jupyter_dsserve.protocol import open_inference_pb2 as oip
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.inference_pb2_grpc import InferenceStub
from jupyter_dsserve.protocol.open_inference_pb2_grpc import GRPCInferenceServiceStub
from jupyter_dsserve.protocol.records import ApiKey
from jupyter_dsserve.protocol.spec import WorkerSpec
from tests.support import until

pytestmark = pytest.mark.asyncio(loop_scope="module")
MAX_BODY = 1_000_000
MAX_CONNECTIONS = 6
STALL_S = 1.0
SMALL_WINDOW = (
    ("grpc.http2.lookahead_bytes", 1024),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.max_receive_message_length", -1),
)
PREDICT = "/dsserve.v1.Inference/Predict"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    """With ``demo``, a toy of a hundredth of a second a token."""
    folder = tmp_path_factory.mktemp("limits")
    gateway = Gateway(
        GatewayConfig(
            folder / "data",
            port=0,
            grpc_port=0,
            drain_s=1,
            stall_s=STALL_S,
            max_body_bytes=MAX_BODY,
            max_connections=MAX_CONNECTIONS,
        )
    )
    await gateway.start()
    await gateway.fleet.register("demo", "v1", WorkerSpec("toy:step_s=0.01", runner="toy"), 1)
    await (await gateway.fleet.load("demo", "v1")).settled()
    yield gateway
    await gateway.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def channel(gateway: Gateway) -> AsyncIterator[grpc.aio.Channel]:
    options = (("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1))
    async with grpc.aio.insecure_channel(gateway.context.grpc_address, options=options) as channel:
        yield channel


def with_key(gateway: Gateway, **more: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {gateway.admin_key}"), *more.items())


async def refusal(call: Any) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await asyncio.wait_for(call, 10)
    return refused.value.code(), refused.value.details() or ""


@pytest.mark.parametrize(
    ("method", "key", "code"),
    [
        (PREDICT, "", "UNAUTHENTICATED"),
        (PREDICT, "dsk_wrong", "UNAUTHENTICATED"),
        ("/dsserve.v1.ModelService/Predict", "", "UNAUTHENTICATED"),
        ("/inference.GRPCInferenceService/ModelInfer", "", "UNAUTHENTICATED"),
        ("/inference.GRPCInferenceService/ModelStreamInfer", "", "UNAUTHENTICATED"),
        ("/inference.GRPCInferenceService/RepositoryModelLoad", "infer", "PERMISSION_DENIED"),
        ("/inference.GRPCInferenceService/LogSettings", "", "UNAUTHENTICATED"),
        ("/dsserve.v9.Nothing/Predict", "", "UNIMPLEMENTED"),
    ],
)
async def test_who_may_not_call_is_refused_before_a_message_has_come(
    gateway: Gateway, channel: grpc.aio.Channel, method: str, key: str, code: str
) -> None:
    if key == "infer":
        key = (await gateway.fleet.key(ApiKey(id="", name="app", scope="infer"))).key

    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield b""

    metadata = (("authorization", f"Bearer {key}"),) if key else ()
    found, words = await refusal(channel.stream_unary(method)(never(), metadata=metadata))
    assert found is grpc.StatusCode[code], words
    assert key not in words or not key


async def test_without_a_key_a_message_that_is_too_large_is_not_even_measured(
    gateway: Gateway, channel: grpc.aio.Channel
) -> None:
    send = channel.unary_unary(PREDICT)
    assert (await refusal(send(b"\0" * 50_000_000)))[0] is grpc.StatusCode.UNAUTHENTICATED
    code, words = await refusal(send(b"\0" * 50_000_000, metadata=with_key(gateway)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert str(MAX_BODY) in words


async def test_a_message_is_no_larger_unpacked(gateway: Gateway, channel: grpc.aio.Channel) -> None:
    send, zipped = channel.unary_unary(PREDICT), grpc.Compression.Gzip
    text = pb.InferenceRequest(model="demo", input_text="x" * 50_000, max_length=1).SerializeToString()
    assert await send(text, metadata=with_key(gateway), compression=zipped)
    bomb = b"\0" * (20 * MAX_BODY)  # 20 kB on the wire
    code, words = await refusal(send(bomb, metadata=with_key(gateway), compression=zipped))
    assert (code, "larger than max" in words) == (grpc.StatusCode.RESOURCE_EXHAUSTED, True), words


@pytest.mark.parametrize(
    "metadata", [[("x-much", "x" * 40_000)], [(f"x-{number}", "x") for number in range(200)]], ids=["long", "many"]
)
async def test_metadata_is_bounded(
    gateway: Gateway, channel: grpc.aio.Channel, metadata: list[tuple[str, str]]
) -> None:
    inference = InferenceStub(channel)
    request = pb.InferenceRequest(model="demo", input_text="hello", max_length=1)
    assert await inference.Predict(request, metadata=with_key(gateway, **{"x-some": "x" * 12_000}))
    code, words = await refusal(inference.Predict(request, metadata=(*with_key(gateway), *metadata)))
    assert code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INVALID_ARGUMENT), words


Ask = Callable[[grpc.aio.Channel, Any], Awaitable[Any]]


async def ask_server_stream(channel: grpc.aio.Channel, metadata: Any) -> Any:
    request = pb.InferenceRequest(model="demo", input_text="hello", max_length=2000)
    return InferenceStub(channel).PredictServerStream(request, metadata=metadata)


async def ask_model_stream(channel: grpc.aio.Channel, metadata: Any) -> Any:
    request = oip.ModelInferRequest(model_name="demo", id="x" * 200_000)  # which each piece repeats
    tensor = request.inputs.add(name="text_input", datatype="BYTES", shape=[1])
    tensor.contents.bytes_contents.append(b"hello")
    request.parameters["stream"].bool_param = True
    request.parameters["max_tokens"].int64_param = 2000
    stream = GRPCInferenceServiceStub(channel).ModelStreamInfer(metadata=metadata)
    await stream.write(request)
    return stream


async def ask_predict_stream(channel: grpc.aio.Channel, metadata: Any) -> Any:
    stream = InferenceStub(channel).PredictStream(metadata=metadata)
    for number in range(3):
        asked = pb.InferenceRequest(model="demo", input_text="hello", max_length=1 if number < 2 else 2000)
        await stream.write(pb.StreamRequest(id=str(number) + "x" * 200_000, request=asked))
    return stream


@pytest.mark.parametrize("ask", [ask_server_stream, ask_model_stream, ask_predict_stream])
async def test_who_reads_nothing_of_a_stream_is_cut_and_told_why(gateway: Gateway, ask: Ask) -> None:
    num_cut, began = gateway.context.connections.num_cut, time.monotonic()
    async with grpc.aio.insecure_channel(gateway.context.grpc_address, options=SMALL_WINDOW) as channel:
        stream = await ask(channel, with_key(gateway))
        await until(lambda: gateway.fleet.in_flight > 0)
        await until(lambda: gateway.fleet.in_flight == 0, timeout_s=15)
        assert time.monotonic() - began < 15  # of 20 that it would run
        await until(lambda: gateway.context.connections.num_cut == num_cut + 1)  # its work ends first
        await until(lambda: gateway.context.calls.num_running == 0)
        code = await asyncio.wait_for(_read_to_the_end(stream), 10)
        assert code is grpc.StatusCode.CANCELLED
        assert "stall_s" in await stream.details()


async def _read_to_the_end(stream: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.aio.AioRpcError):
        async for _ in stream:
            pass
    return cast(grpc.StatusCode, await stream.code())


async def test_connections_are_bounded_and_make_room_again(gateway: Gateway) -> None:
    async def answered(channels: AsyncExitStack) -> bool:
        options = (("grpc.use_local_subchannel_pool", 1),)  # a connection of its own
        opened = grpc.aio.insecure_channel(gateway.context.grpc_address, options=options)
        channel = await channels.enter_async_context(opened)
        try:
            await HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        except grpc.aio.AioRpcError as fault:
            return fault.code() is not grpc.StatusCode.UNAVAILABLE
        return True

    async def opened() -> list[bool]:
        async with AsyncExitStack() as channels:
            found = [await answered(channels) for _ in range(MAX_CONNECTIONS + 2)]
        assert found.count(True) <= MAX_CONNECTIONS
        assert not found[-1]
        return found

    # Those of other tests, or of the look before, may not have closed yet.
    await until(opened, lambda found: found.count(True) >= MAX_CONNECTIONS - 1)

    async def has_room() -> bool:
        async with AsyncExitStack() as channels:
            return await answered(channels)

    await until(has_room)
