"""`GrpcFront`: the port, TLS, the services on it, and how it stops."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import grpc
import grpc.aio
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import add_HealthServicer_to_server
from grpc_reflection.v1alpha import reflection, reflection_pb2

from jupyter_dsserve.gateway.connections import MAX_HEADER_BYTES, most_connections
from jupyter_dsserve.gateway.context import Context
from jupyter_dsserve.gateway.grpc.door import Door
from jupyter_dsserve.gateway.grpc.health import Health
from jupyter_dsserve.gateway.grpc.inference import Inference
from jupyter_dsserve.gateway.grpc.model_service import ModelService
from jupyter_dsserve.gateway.grpc.open_inference import OpenInference
from jupyter_dsserve.gateway.tls import ShownCertificate
from jupyter_dsserve.protocol import inference_pb2, open_inference_pb2
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import Conflict
from jupyter_dsserve.protocol.inference_pb2_grpc import (
    add_InferenceServicer_to_server,
    add_ModelServiceServicer_to_server,
)
from jupyter_dsserve.protocol.open_inference_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from jupyter_dsserve.protocol.pings import pings
from jupyter_dsserve.protocol.spec import Task

SERVICES: dict[str, Task | None] = {
    "dsserve.v1.Inference": "generate",
    "dsserve.v1.ModelService": "tensor",
    "inference.GRPCInferenceService": None,
}
_FILES: tuple[Any, ...] = (inference_pb2, open_inference_pb2, health_pb2, reflection_pb2)

_MAX_STREAMS = 1000  # calls at once on one connection; more wait in their client
_HANDSHAKE_S = 20  # for TLS and the beginning of HTTP/2
_PING_S = 60  # a connection is asked so often whether somebody is there, while calls run or not
_PING_WAIT_S = 60  # and is closed without an answer, which waits for what a slow caller sends before it
_MIN_PING_S = 10  # clients may ask as often
_NEVER = (1 << 31) - 1
# What is left at the stop once all requests have ended: last answers, and streams on which nothing runs.
_LAST_S = 0.5


class GrpcFront:
    """Listens from construction, so that `address` is known; answers from `start`. Raises `Conflict` if it cannot."""

    def __init__(self, config: GatewayConfig) -> None:
        assert config.grpc_port is not None
        self._drain_s = config.drain_s
        self._draining: asyncio.Task[None] | None = None
        self._health: Health | None = None
        credentials = _credentials(config)
        self._door = Door()
        self._server = grpc.aio.server(
            interceptors=[self._door],
            options=[
                ("grpc.so_reuseport", 0),  # else a second gateway would get half of the calls
                ("grpc.max_receive_message_length", config.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_concurrent_streams", _MAX_STREAMS),
                ("grpc.max_allowed_incoming_connections", most_connections(config.max_connections)),
                ("grpc.max_metadata_size", MAX_HEADER_BYTES),
                ("grpc.absolute_max_metadata_size", MAX_HEADER_BYTES),  # in between it refuses some by chance
                ("grpc.server_handshake_timeout_ms", 1000 * _HANDSHAKE_S),
                ("grpc.max_connection_idle_ms", min(_NEVER, math.ceil(1000 * config.idle_s)) or _NEVER),
                *pings(_PING_S, _PING_WAIT_S),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 1000 * _MIN_PING_S),
            ],
        )
        ip = config.grpc_ip or config.ip
        host = f"[{ip}]" if ":" in ip else ip
        try:
            wanted = f"{host}:{config.grpc_port}"
            listen = self._server.add_secure_port if credentials else self._server.add_insecure_port
            port = listen(wanted, credentials) if credentials else listen(wanted)  # type: ignore[call-arg]
        except RuntimeError as fault:
            raise Conflict(f"gRPC cannot listen on {wanted} ({fault}): give another --grpc-port or --grpc-ip") from None
        self.address = f"{host}:{port}"

    async def start(self, context: Context) -> None:
        self._door.context = context
        self._health = Health(context.fleet, SERVICES)
        add_HealthServicer_to_server(self._health, self._server)
        add_InferenceServicer_to_server(Inference(context), self._server)
        add_ModelServiceServicer_to_server(ModelService(context), self._server)
        add_GRPCInferenceServiceServicer_to_server(OpenInference(context), self._server)
        names = [*SERVICES, "grpc.health.v1.Health", reflection.SERVICE_NAME]
        reflection.enable_server_reflection(names, self._server, pool=_described())
        await self._server.start()

    def give_notice(self) -> None:
        """Say that nothing is served, and serve on."""
        if self._health:
            self._health.is_stopping = True

    def drain(self) -> None:
        """Take no new calls; those that run go on."""
        self.give_notice()
        if self._health:
            self._draining = asyncio.create_task(self._server.stop(self._drain_s))

    async def stop(self) -> None:
        """Once the requests have ended."""
        await self._server.stop(_LAST_S)
        if self._draining:
            await self._draining


def _described() -> DescriptorPool:
    """What reflection tells: all our files, of which some are in pools of their own."""
    pool = DescriptorPool()
    for file in _FILES:
        pool.AddSerializedFile(file.DESCRIPTOR.serialized_pb)
    return pool


def _credentials(config: GatewayConfig) -> grpc.ServerCredentials | None:
    """None without TLS. Raises `Conflict` for files that cannot be used."""
    if config.grpc_certfile or config.grpc_keyfile:
        shown = ShownCertificate("grpc-", config.grpc_certfile, config.grpc_keyfile)
    elif config.certfile or config.keyfile:
        shown = ShownCertificate("", config.certfile, config.keyfile)
    else:
        return None
    told = shown.pair

    def renewed() -> grpc.ServerCertificateConfiguration | None:
        """gRPC asks for each new connection."""
        nonlocal told
        shown.look()
        if shown.pair is told:
            return None
        told = shown.pair
        return _configuration(told)

    return grpc.dynamic_ssl_server_credentials(_configuration(told), renewed)  # type: ignore[arg-type]  # None is allowed


def _configuration(pair: tuple[bytes, bytes]) -> grpc.ServerCertificateConfiguration:
    certificate, key = pair
    return grpc.ssl_server_certificate_configuration([(key, certificate)])
