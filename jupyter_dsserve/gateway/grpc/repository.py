"""Of ``inference.GRPCInferenceService``: which models there are, loading and unloading them, and their statistics."""

from __future__ import annotations

import time
from collections.abc import Mapping

from jupyter_dsserve.gateway.context import Context
from jupyter_dsserve.gateway.grpc.call import ServicerContext, asked
from jupyter_dsserve.gateway.v2 import models, repository
from jupyter_dsserve.protocol import open_inference_pb2 as pb
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.open_inference_pb2_grpc import GRPCInferenceServiceServicer

_TAKEN = frozenset({"unload_dependents"})  # Triton's client always sends it; there are none


class Repository(GRPCInferenceServiceServicer):
    """Only a key of scope admin comes here to load or unload (`door.ADMIN`)."""

    _context: Context

    async def RepositoryIndex(  # noqa: N802  (the names are the .proto's)
        self, request: pb.RepositoryIndexRequest, call: ServicerContext
    ) -> pb.RepositoryIndexResponse | None:
        async with asked(self._context, call, "GRPCInferenceService/RepositoryIndex") as asker:
            mine = [d for d in asker.fleet.deployments() if asker.may_ask(d.name)]
            versions = [version for deployment in mine for version in deployment.versions.values()]
            return pb.RepositoryIndexResponse(models=models.index(versions, only_ready=request.ready))
        return None

    async def RepositoryModelLoad(  # noqa: N802
        self, request: pb.RepositoryModelLoadRequest, call: ServicerContext
    ) -> pb.RepositoryModelLoadResponse | None:
        async with asked(self._context, call, "GRPCInferenceService/RepositoryModelLoad") as asker:
            _check_parameters(request.parameters)
            await repository.load(asker.fleet, request.model_name)
            return pb.RepositoryModelLoadResponse()
        return None

    async def RepositoryModelUnload(  # noqa: N802
        self, request: pb.RepositoryModelUnloadRequest, call: ServicerContext
    ) -> pb.RepositoryModelUnloadResponse | None:
        async with asked(self._context, call, "GRPCInferenceService/RepositoryModelUnload") as asker:
            _check_parameters(request.parameters, _TAKEN)
            await repository.unload(asker.fleet, request.model_name)
            return pb.RepositoryModelUnloadResponse()
        return None

    async def ModelStatistics(  # noqa: N802
        self, request: pb.ModelStatisticsRequest, call: ServicerContext
    ) -> pb.ModelStatisticsResponse | None:
        async with asked(self._context, call, "GRPCInferenceService/ModelStatistics") as asker:
            if request.name:
                asker.check_model(request.name)
            counted = models.counted(asker.fleet, request.name, request.version, asker.may_ask)
            at, now = time.time(), time.monotonic()
            return pb.ModelStatisticsResponse(model_stats=[_statistics(models.statistics(v, at, now)) for v in counted])
        return None


def _check_parameters(
    parameters: Mapping[str, pb.ModelRepositoryParameter], taken: frozenset[str] = frozenset()
) -> None:
    """Raises `InvalidRequest`."""
    if others := sorted(parameters.keys() - taken):
        raise InvalidRequest(
            f"parameters are {', '.join(others)}, and none are taken: a version is loaded as it was registered",
            param="parameters",
        )


def _statistics(told: models.Json) -> pb.ModelStatistics:
    return pb.ModelStatistics(**{name: value for name, value in told.items() if name != "batch_stats"})
