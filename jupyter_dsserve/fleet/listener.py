"""`Listener`: the second way in for workers, over TCP and TLS, for those on other machines."""

from __future__ import annotations

import resource
import socket
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import grpc
import grpc.aio

from jupyter_dsserve.fleet.certificate import given_certificate, own_certificate
from jupyter_dsserve.protocol.errors import Conflict
from jupyter_dsserve.protocol.pings import pings
from jupyter_dsserve.protocol.spec import MAX_FAR_MESSAGE_BYTES
from jupyter_dsserve.protocol.worker_pb2_grpc import LinkServicer, add_LinkServicer_to_server

_PING_S = 10  # a connection is asked so often whether its machine is still there
_PING_WAIT_S = 15
_MIN_PING_S = 5  # workers may ask as often
# Without a token nobody holds a connection for longer, nor do all together hold more of the files that we may open.
_HANDSHAKE_S = 10
_IDLE_S = 10  # a worker's stream is a call all the time
_PART_OF_FILES = 16
_ANY = (1 << 31) - 1
_WILDCARDS = ("0.0.0.0", "[::]", "*")

Knows: TypeAlias = Callable[[str], bool]
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


@dataclass(frozen=True, slots=True)
class JoinSettings:
    """``address`` is ``HOST:PORT``, where port 0 takes a free one; empty: workers join over the unix socket only.
    Without ``certfile`` and ``keyfile`` (PEM) the gateway makes a certificate of its own."""

    address: str = ""
    certfile: str = ""
    keyfile: str = ""


class Listener:
    """Made and started once. `address` and `certificate` are what a worker has to know."""

    def __init__(self, settings: JoinSettings, data_dir: Path, link: LinkServicer, knows: Knows) -> None:
        """``knows`` says whether a token opens anything here. Raises `Conflict` for what cannot be listened at."""
        host, colon, port = settings.address.rpartition(":")
        is_bare = ":" in host and not (host.startswith("[") and host.endswith("]"))  # which gRPC reads as it likes
        if is_bare or not (host and colon and port.isdecimal() and int(port) < 65536):
            raise Conflict(f"--join-address {settings.address}: write HOST:PORT, such as 0.0.0.0:8870 or [::]:8870")
        is_given = settings.certfile or settings.keyfile
        self.certificate = (
            given_certificate(settings.certfile, settings.keyfile) if is_given else own_certificate(data_dir)
        )
        self._server = grpc.aio.server(
            interceptors=[_Door(knows)],
            options=[
                ("grpc.so_reuseport", 0),  # else a second gateway would get half of the workers
                ("grpc.max_receive_message_length", MAX_FAR_MESSAGE_BYTES),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_allowed_incoming_connections", _most_connections()),
                ("grpc.server_handshake_timeout_ms", 1000 * _HANDSHAKE_S),
                ("grpc.max_connection_idle_ms", 1000 * _IDLE_S),
                *pings(_PING_S, _PING_WAIT_S),
                ("grpc.keepalive_permit_without_calls", 1),
                ("grpc.http2.min_ping_interval_without_data_ms", 1000 * _MIN_PING_S),
            ],
        )
        add_LinkServicer_to_server(link, self._server)
        pair = (self.certificate.key, self.certificate.certificate)
        try:
            taken = self._server.add_secure_port(settings.address, grpc.ssl_server_credentials([pair]))
        except RuntimeError as fault:
            raise Conflict(
                f"workers cannot join at {settings.address} ({fault}): give another --join-address"
            ) from None
        self.address = f"{socket.getfqdn() if host in _WILDCARDS else host}:{taken}"

    async def start(self) -> None:
        await self._server.start()

    async def stop(self) -> None:
        await self._server.stop(grace=0)


class _Door(grpc.aio.ServerInterceptor):
    """Before every call: who brings no token in its metadata, which come first, sends nothing else."""

    def __init__(self, knows: Knows) -> None:
        self._knows = knows

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[_Handler | None]],
        details: grpc.HandlerCallDetails,
    ) -> _Handler | None:
        brought = dict(details.invocation_metadata or ()).get("authorization", "")
        if isinstance(brought, str) and self._knows(brought.removeprefix("Bearer ")):
            return await continuation(details)
        return grpc.stream_stream_rpc_method_handler(_refuse)


async def _refuse(_messages: object, call: grpc.aio.ServicerContext[Any, Any]) -> None:
    """A stream is not read before somebody asks for a message, and to a caller it looks like any other method."""
    await call.abort(
        grpc.StatusCode.UNAUTHENTICATED,
        "the token opens nothing here: ask for the command again, it goes with the version",
    )


def _most_connections() -> int:
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _ANY if most == resource.RLIM_INFINITY else min(_ANY, most // _PART_OF_FILES)
