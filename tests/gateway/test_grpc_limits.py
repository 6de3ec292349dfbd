"""What a caller of gRPC may cost: without a key, with too much metadata, with a message that is larger than it looks,
and one who reads nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import pytest
import pytest_asyncio

from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol import inference_pb2 as pb
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.inference_pb2_grpc import InferenceStub
from jupyter_dsserve.protocol.records import ApiKey
from jupyter_dsserve.protocol.spec import WorkerSpec

pytestmark = pytest.mark.asyncio(loop_scope="module")
MAX_BODY = 1_000_000
STALL_S = 1.0
PREDICT = "/dsserve.v1.Inference/Predict"


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    """With ``demo``, a toy of a hundredth of a second a token."""
    folder = tmp_path_factory.mktemp("limits")
    gateway = Gateway(
        GatewayConfig(folder / "data", port=0, grpc_port=0, drain_s=1, stall_s=STALL_S, max_body_bytes=MAX_BODY)
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
