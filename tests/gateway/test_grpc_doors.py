"""The gRPC front's port: TLS, what is refused, and how it stops."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import grpc.aio
import pytest

from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol import inference_pb2 as pb
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import Conflict
from jupyter_dsserve.protocol.inference_pb2_grpc import InferenceStub
from jupyter_dsserve.protocol.spec import WorkerSpec
from tests.gateway.certificates import certificate
from tests.gateway.grpc_support import serving
from tests.support import Command, until


async def test_a_call_goes_through_tls_and_no_other_way(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    async with serving(tmp_path, f"--grpc-certfile={cert}", f"--grpc-keyfile={key}") as served:
        await served.caller.load("demo", "v1", "toy:")
        request = pb.InferenceRequest(input_text="hello")
        trusted = grpc.ssl_channel_credentials(cert.read_bytes())
        async with served.inference(trusted) as inference:
            assert (await inference.Predict(request, metadata=served.with_key())).version == "v1"
        for credentials in (None, grpc.ssl_channel_credentials()):
            async with served.inference(credentials) as inference:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    await inference.Predict(request, metadata=served.with_key())
                assert refused.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--grpc-port", "0", "--grpc-ip", "0.0.0.0"), "give --grpc-certfile"),
        (("--grpc-port", "0", "--grpc-certfile", "nowhere.pem"), "takes both"),
        (("--grpc-port", "0", "--grpc-certfile", "nowhere.pem", "--grpc-keyfile", "no.key"), "cannot be used"),
    ],
)
def test_a_door_that_cannot_be_is_refused(tmp_path: Path, options: tuple[str, ...], words: str) -> None:
    with Command(tmp_path / "data", *options) as command:
        assert words in command.output()
        assert command.process.returncode == 1


async def test_a_port_that_is_taken_is_named_and_frees_all_else(tmp_path: Path) -> None:
    first = Gateway(GatewayConfig(tmp_path / "a", port=0, grpc_port=0))
    port = int(first.context.grpc_address.rpartition(":")[2])
    await first.start()
    try:
        for _ in range(2):  # the directory is free again
            with pytest.raises(Conflict, match=f"127.0.0.1:{port}"):
                Gateway(GatewayConfig(tmp_path / "b", port=0, grpc_port=port))
    finally:
        await first.stop()


async def test_a_connection_that_asks_nothing_is_closed_and_its_client_opens_another(tmp_path: Path) -> None:
    gateway = Gateway(GatewayConfig(tmp_path / "data", port=0, grpc_port=0, idle_s=0.3))
    await gateway.start()
    try:
        async with grpc.aio.insecure_channel(gateway.context.grpc_address) as channel:
            await channel.channel_ready()
            await until(lambda: channel.get_state() is grpc.ChannelConnectivity.IDLE)
            metadata = (("authorization", f"Bearer {gateway.admin_key}"),)
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await InferenceStub(channel).Predict(pb.InferenceRequest(), metadata=metadata, timeout=30)
            assert refused.value.code() is grpc.StatusCode.NOT_FOUND
    finally:
        await gateway.stop()


async def test_what_runs_at_the_stop_ends_and_an_idle_stream_holds_nothing_up(tmp_path: Path) -> None:
    gateway = Gateway(GatewayConfig(tmp_path / "data", port=0, grpc_port=0, drain_s=20))
    await gateway.start()
    metadata = (("authorization", f"Bearer {gateway.admin_key}"),)
    await gateway.fleet.register("demo", "v1", _toy(), 1)
    await (await gateway.fleet.load("demo", "v1")).settled()
    async with grpc.aio.insecure_channel(gateway.context.grpc_address) as channel:
        inference = InferenceStub(channel)
        idle = inference.PredictStream(metadata=metadata)
        await idle.wait_for_connection()
        running = inference.Predict(pb.InferenceRequest(input_text="hello", max_length=50), metadata=metadata)
        await until(lambda: gateway.fleet.in_flight == 1)
        began = asyncio.get_running_loop().time()
        await gateway.stop()
        assert asyncio.get_running_loop().time() - began < 10
        assert (await running).version == "v1"
        assert await idle.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def _toy() -> WorkerSpec:
    return WorkerSpec("toy:step_s=0.05", runner="toy")
