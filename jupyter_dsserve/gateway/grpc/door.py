"""`Door`: what is refused on a call's metadata, which come first. Of its message nothing is received then: who has no
key makes the gateway keep and decode nothing."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import grpc
import grpc.aio
from tornado.httputil import HTTPHeaders

from jupyter_dsserve.gateway.asker import Asker
from jupyter_dsserve.gateway.connections import check_headers
from jupyter_dsserve.gateway.context import Context
from jupyter_dsserve.gateway.grpc.call import ServicerContext, code_of, headers_of
from jupyter_dsserve.protocol.errors import DSServeError, NotAllowed

_OIP = "/inference.GRPCInferenceService/"
# Who may call what: of these services a method needs a key, but for those that say whether we are there. All others
# are gRPC's own, health and reflection.
WITH_KEY = (_OIP, "/dsserve.v1.Inference/", "/dsserve.v1.ModelService/")
OPEN = frozenset({f"{_OIP}ServerLive", f"{_OIP}ServerReady"})
ADMIN = frozenset({f"{_OIP}RepositoryModelLoad", f"{_OIP}RepositoryModelUnload"})


_Details = grpc.HandlerCallDetails
_Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"


class Door(grpc.aio.ServerInterceptor):
    """Before every call. `GrpcFront` makes it before there is a `Context`, without which nothing with a key opens."""

    def __init__(self) -> None:
        self.context: Context | None = None

    async def intercept_service(
        self, continuation: Callable[[_Details], Awaitable[_Handler | None]], details: _Details
    ) -> _Handler:
        try:
            self._check(details)
            handler = await continuation(details)
            if handler is None:
                raise NotAllowed(f"{details.method[1:]} is not served here: docs/grpc.md lists what is")
        except DSServeError as fault:
            return _refusing(fault)
        return handler

    def _check(self, details: _Details) -> None:
        """Raises `HeadersTooLarge`, `Unauthorized`, or `Forbidden` for a key that does not open it."""
        metadata = list(details.invocation_metadata or ())
        check_headers(len(metadata), sum(len(name) + len(value) for name, value in metadata))
        if details.method in OPEN or not details.method.startswith(WITH_KEY):
            return
        assert self.context
        caller = _Caller(self.context, headers_of((n, v) for n, v in metadata if n == "authorization"))
        caller.check_key()
        caller.check_scope("admin" if details.method in ADMIN else "infer", details.method[1:])


class _Caller(Asker):
    """One of whom only the key is known."""

    def __init__(self, context: Context, headers: HTTPHeaders) -> None:
        self.enter(context)
        self._headers = headers

    @property
    def sent_headers(self) -> HTTPHeaders:
        return self._headers


def _refusing(fault: DSServeError) -> _Handler:
    """A stream of requests is not read before somebody asks for one, and to a caller it looks like any other method."""

    async def refuse(_requests: object, call: ServicerContext) -> None:
        await call.abort(code_of(fault), fault.message)

    return grpc.stream_stream_rpc_method_handler(refuse)
