"""Of ``inference.GRPCInferenceService``: Triton's system shared memory. Regions are those of REST: a key's, whichever
way it registered them; `gateway.v2.shared_memory` says who may."""

from __future__ import annotations

from dataclasses import asdict

from jupyter_dsserve.gateway.bodies import validated
from jupyter_dsserve.gateway.context import Context
from jupyter_dsserve.gateway.grpc.call import ServicerContext, asked
from jupyter_dsserve.gateway.v2 import shared_memory
from jupyter_dsserve.gateway.v2.peers import are_own_users, is_direct, peer_named
from jupyter_dsserve.gateway.v2.regions import Region
from jupyter_dsserve.gateway.v2.shapes import RegionNamed, RegisterBody
from jupyter_dsserve.protocol import open_inference_pb2 as pb
from jupyter_dsserve.protocol.open_inference_pb2_grpc import GRPCInferenceServiceServicer


class SharedMemory(GRPCInferenceServiceServicer):
    _context: Context

    async def SystemSharedMemoryStatus(  # noqa: N802  (the names are the .proto's)
        self, request: pb.SystemSharedMemoryStatusRequest, call: ServicerContext
    ) -> pb.SystemSharedMemoryStatusResponse | None:
        async with asked(self._context, call, "GRPCInferenceService/SystemSharedMemoryStatus") as asker:
            regions = self._context.regions
            found = [regions.one(asker.owner, request.name)] if request.name else regions.of(asker.owner)
            told = pb.SystemSharedMemoryStatusResponse()
            for region in found:
                status = pb.SystemSharedMemoryStatusResponse.RegionStatus(**asdict(region))
                told.regions[region.name].CopyFrom(status)
            return told
        return None

    async def SystemSharedMemoryRegister(  # noqa: N802
        self, request: pb.SystemSharedMemoryRegisterRequest, call: ServicerContext
    ) -> pb.SystemSharedMemoryRegisterResponse | None:
        async with asked(self._context, call, "GRPCInferenceService/SystemSharedMemoryRegister") as asker:
            said = {"key": request.key, "offset": request.offset, "byte_size": request.byte_size}
            body = validated(RegisterBody, said)
            name = validated(RegionNamed, {"name": request.name}).name
            peer, port = peer_named(call.peer()), int(self._context.grpc_address.rpartition(":")[2])
            is_allowed = peer is not None and is_direct(peer, asker.sent_headers) and are_own_users(peer, port)
            shared_memory.register(asker, is_allowed, Region(name, body.key, body.offset, body.byte_size))
            return pb.SystemSharedMemoryRegisterResponse()
        return None

    async def SystemSharedMemoryUnregister(  # noqa: N802
        self, request: pb.SystemSharedMemoryUnregisterRequest, call: ServicerContext
    ) -> pb.SystemSharedMemoryUnregisterResponse | None:
        async with asked(self._context, call, "GRPCInferenceService/SystemSharedMemoryUnregister") as asker:
            self._context.regions.unregister(asker.owner, request.name)
            return pb.SystemSharedMemoryUnregisterResponse()
        return None
