"""``grpc.health.v1``: whether something can answer, overall and for each service. It needs no key, as ``/health``."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1.health_pb2_grpc import HealthServicer

from jupyter_dsserve.fleet.fleet import Fleet
from jupyter_dsserve.gateway.grpc.call import ServicerContext
from jupyter_dsserve.protocol.spec import Task

_LOOK_S = 0.5
_Status = int  # a value of HealthCheckResponse.ServingStatus


class Health(HealthServicer):
    """``services``: for each name the task that it serves, None for any. The empty name is the whole server's."""

    def __init__(self, fleet: Fleet, services: Mapping[str, Task | None]) -> None:
        self._fleet, self._services = fleet, {"": None, **services}
        self.is_stopping = False

    async def Check(  # noqa: N802  (the names are the .proto's)
        self, request: pb.HealthCheckRequest, call: ServicerContext
    ) -> pb.HealthCheckResponse:
        status = self.status(request.service)
        if status == pb.HealthCheckResponse.SERVICE_UNKNOWN:
            await call.abort(grpc.StatusCode.NOT_FOUND, f"there is no service {request.service!r} here")
        return pb.HealthCheckResponse(status=status)

    async def Watch(self, request: pb.HealthCheckRequest, call: ServicerContext) -> None:  # noqa: N802
        told: _Status | None = None
        while True:
            status = self.status(request.service)
            if status != told:
                told = status
                await call.write(pb.HealthCheckResponse(status=status))
            await asyncio.sleep(_LOOK_S)

    def status(self, service: str) -> _Status:
        if service not in self._services:
            return pb.HealthCheckResponse.SERVICE_UNKNOWN
        if self.is_stopping or not self._can_answer(self._services[service]):
            return pb.HealthCheckResponse.NOT_SERVING
        return pb.HealthCheckResponse.SERVING

    def _can_answer(self, task: Task | None) -> bool:
        versions = (v for d in self._fleet.deployments() for v in d.versions.values())
        return any(v.can_answer for v in versions if task in (None, v.spec.task))
