"""``inference.GRPCInferenceService``: the Open Inference Protocol, with what Triton adds to it. What it means to each
task is said in `gateway.v2`, which REST shares; here messages become tensors, and tensors messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any

import numpy as np

from jupyter_dsserve import __version__
from jupyter_dsserve.fleet.answering import Answering
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.gateway.bodies import validated
from jupyter_dsserve.gateway.context import Context
from jupyter_dsserve.gateway.generate import collect
from jupyter_dsserve.gateway.grpc.call import GrpcAsker, ServicerContext, asked, calling, each
from jupyter_dsserve.gateway.grpc.repository import Repository
from jupyter_dsserve.gateway.grpc.shared_memory import SharedMemory
from jupyter_dsserve.gateway.v2 import mapping, models, shared_memory
from jupyter_dsserve.gateway.v2.mapping import Inference
from jupyter_dsserve.gateway.v2.peers import peer_named
from jupyter_dsserve.gateway.v2.shared_memory import aside
from jupyter_dsserve.gateway.v2.wire import MAX_SHARED_BYTES, Place, Read, Shared, Write, put
from jupyter_dsserve.protocol import open_inference_pb2 as pb
from jupyter_dsserve.protocol.errors import DSServeError, InvalidRequest
from jupyter_dsserve.protocol.tensors import BYTES, DATATYPES, ModelInfo, Tensor

EXTENSIONS = (
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
    "parameters",
    "statistics",
    "system_shared_memory",
)
# Of a streamed answer: whether it is the last one; and whether the caller wants that told by an empty one.
_FINAL, _WANTS_FINAL = "triton_final_response", "triton_enable_empty_final_response"
NOWHERE: Mapping[str, Place] = {}
_CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents",
    "INT16": "int_contents",
    "INT32": "int_contents",
    "INT64": "int64_contents",
    "UINT8": "uint_contents",
    "UINT16": "uint_contents",
    "UINT32": "uint_contents",
    "UINT64": "uint64_contents",
    "FP32": "fp32_contents",
    "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}


class OpenInference(Repository, SharedMemory):
    def __init__(self, context: Context) -> None:
        self._context, self._fleet = context, context.fleet

    async def ServerLive(  # noqa: N802  (the names are the .proto's)
        self, request: pb.ServerLiveRequest, call: ServicerContext
    ) -> pb.ServerLiveResponse:
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(self, request: pb.ServerReadyRequest, call: ServicerContext) -> pb.ServerReadyResponse:  # noqa: N802
        return pb.ServerReadyResponse(ready=any(d.ready for d in self._fleet.deployments()))

    async def ServerMetadata(  # noqa: N802
        self, request: pb.ServerMetadataRequest, call: ServicerContext
    ) -> pb.ServerMetadataResponse | None:
        async with asked(self._context, call, "GRPCInferenceService/ServerMetadata"):
            return pb.ServerMetadataResponse(name="jupyter_dsserve", version=__version__, extensions=EXTENSIONS)
        return None

    async def ModelReady(  # noqa: N802
        self, request: pb.ModelReadyRequest, call: ServicerContext
    ) -> pb.ModelReadyResponse | None:
        async with asked(self._context, call, "GRPCInferenceService/ModelReady") as asker:
            asker.check_model(request.name)
            deployment, pinned = models.named(request.name, request.version)
            ready = self._fleet.deployment(deployment).ready
            if pinned:
                self._fleet.version(deployment, pinned)  # a version nobody knows is not found
            return pb.ModelReadyResponse(ready=pinned in ready if pinned else bool(ready))
        return None

    async def ModelMetadata(  # noqa: N802
        self, request: pb.ModelMetadataRequest, call: ServicerContext
    ) -> pb.ModelMetadataResponse | None:
        async with asked(self._context, call, "GRPCInferenceService/ModelMetadata") as asker:
            asker.check_model(request.name)
            found = models.shown(self._fleet, request.name, request.version)
            told = models.metadata(found, self._fleet.deployment(found.deployment).ready)
            answer = pb.ModelMetadataResponse(name=request.name, versions=told.versions, platform=told.platform)
            for side, infos in ((answer.inputs, told.inputs), (answer.outputs, told.outputs)):
                for info in infos:
                    side.add(name=info.name, datatype=info.datatype, shape=info.shape)
            return answer
        return None

    async def ModelConfig(  # noqa: N802
        self, request: pb.ModelConfigRequest, call: ServicerContext
    ) -> pb.ModelConfigResponse | None:
        async with asked(self._context, call, "GRPCInferenceService/ModelConfig") as asker:
            asker.check_model(request.name)
            told = models.config(models.shown(self._fleet, request.name, request.version))
            return pb.ModelConfigResponse(config=pb.ModelConfig(**told))
        return None

    async def ModelInfer(  # noqa: N802
        self, request: pb.ModelInferRequest, call: ServicerContext
    ) -> pb.ModelInferResponse | None:
        async with asked(self._context, call, "GRPCInferenceService/ModelInfer") as asker:
            inference, places = await _inference(asker, request)
            if inference.is_stream:
                raise InvalidRequest(
                    "stream is true, and ModelInfer answers once: ask ModelStreamInfer", param="stream"
                )
            answering, info = await _begin(asker, request, inference)
            told = mapping.outputs(inference, await collect(answering.chunks), info)
            return await _responding(asker, request, answering, inference, told, places)
        return None

    async def ModelStreamInfer(  # noqa: N802
        self, requests: AsyncIterator[pb.ModelInferRequest], call: ServicerContext
    ) -> None:
        writing = asyncio.Lock()  # a call takes one message at a time

        async def tell(response: pb.ModelInferResponse, error: str = "") -> None:
            async with writing:
                await stream.tell(pb.ModelStreamInferResponse(infer_response=response, error_message=error))

        async def answer(request: pb.ModelInferRequest) -> None:
            try:
                async with calling(stream.again()) as asker, aclosing(_responses(asker, request)) as responses:
                    async for response in responses:
                        await tell(response)
            except DSServeError as fault:
                await tell(pb.ModelInferResponse(model_name=request.model_name, id=request.id), fault.message)

        async with asked(self._context, call, "GRPCInferenceService/ModelStreamInfer") as stream:
            await each(requests, answer)


async def _responses(asker: GrpcAsker, request: pb.ModelInferRequest) -> Any:
    """The answer to a request on a stream: with the parameter ``stream`` in pieces, as they come."""
    wants_final = request.parameters[_WANTS_FINAL].bool_param if _WANTS_FINAL in request.parameters else False
    inference, places = await _inference(asker, request)
    if inference.is_stream and places:
        raise InvalidRequest(
            f"output {min(places)!r} is asked for in shared memory, and in a stream each piece would lie where the one "
            "before lay: leave stream or the region out",
            param=min(places),
        )
    answering, info = await _begin(asker, request, inference)
    if not inference.is_stream:
        told = mapping.outputs(inference, await collect(answering.chunks), info)
        yield _marked(await _responding(asker, request, answering, inference, told, places), not wants_final)
    else:
        async with aclosing(answering.chunks) as chunks:
            async for _, chunk in chunks:
                if chunk.text or chunk.logprobs or (chunk.finish_reason and not chunk.error):
                    told = mapping.outputs(inference, [chunk], info)
                    is_last = chunk.finish_reason is not None and not chunk.error and not wants_final
                    yield _marked(_response(request, answering, inference, told), is_last)
                if chunk.error:
                    raise chunk.error
    if wants_final:
        yield _marked(_response(request, answering, inference, []), True)


async def _inference(asker: GrpcAsker, request: pb.ModelInferRequest) -> tuple[Inference, Mapping[str, Place]]:
    """With the places in shared memory of its outputs, by name. Raises `InvalidRequest` for tensors and parameters that
    cannot be, `NotFound` for a model or a region, `Forbidden` for regions and a caller from elsewhere."""
    if not request.model_name:
        request.model_name = asker.only_model()
    asker.check_model(request.model_name)
    task = models.task_of(asker.fleet, request.model_name, request.model_version)
    parameters = _values(request.parameters)
    parameters.pop(_WANTS_FINAL, None)
    wanted = {output.name: _place("output", output.name, output.parameters) for output in request.outputs}
    places = {name: place for name, place in wanted.items() if place}
    given = [_place("input", each.name, each.parameters) for each in request.inputs]
    shared = [*places.values(), *(place for place in given if place)]
    if shared:
        if sum(place.num_bytes for place in shared) > MAX_SHARED_BYTES:
            raise InvalidRequest(f"the call's shared memory is over {MAX_SHARED_BYTES} bytes: make several calls")
        shared_memory.check(asker, peer_named(asker.call.peer()), shared)
    tensors = await aside(shared, _tensors, request, given, partial(shared_memory.read, asker))
    return mapping.requests(task, tensors, parameters, list(wanted)), places


def _place(kind: str, name: str, parameters: Mapping[str, pb.InferParameter]) -> Place | None:
    """Where a tensor lies in shared memory; its only parameters say that. Raises `InvalidRequest`."""
    return validated(Shared, _values(parameters), f"{kind} {name}").place(name) if parameters else None


async def _begin(asker: GrpcAsker, request: pb.ModelInferRequest, inference: Inference) -> tuple[Answering, ModelInfo]:
    """The answers as they begin, and what the version that gives them says of itself."""
    infos: list[ModelInfo] = []

    def chosen(version: Version) -> None:
        mapping.check_outputs(inference, version.info)
        infos.append(version.info)

    name, version = request.model_name, request.model_version
    model = f"{name}@{version}" if version else name
    answering = await asker.ask(model, inference.requests, inference.task, chosen)
    return answering, infos[-1] if infos else ModelInfo()


def _tensors(request: pb.ModelInferRequest, places: Sequence[Place | None], read: Read) -> list[Tensor]:
    """``places`` are those of the inputs in shared memory. Raises `InvalidRequest` naming the input that is wrong."""
    raw, num_here = request.raw_input_contents, places.count(None)
    if raw and len(raw) != num_here:
        raise InvalidRequest(
            f"there are {len(raw)} raw_input_contents for {num_here} inputs: send one for each that does not lie in "
            "shared memory, or none",
            param="raw_input_contents",
        )
    found = []
    here = iter(raw)
    for given, place in zip(request.inputs, places, strict=True):
        if any(size < 0 for size in given.shape) or given.datatype not in (*DATATYPES, BYTES):
            raise InvalidRequest(
                f"input {given.name!r} is of {given.datatype!r} and of shape {list(given.shape)}: send sizes of 0 or "
                f"more, and one of {', '.join((*DATATYPES, BYTES))}",
                param=given.name,
            )
        if place:
            if given.HasField("contents"):
                raise InvalidRequest(f"input {given.name!r} has contents and a region: send one", param=given.name)
            found.append(_raw(given, read(place)))
        else:
            found.append(_raw(given, next(here)) if raw else _typed(given))
    return found


def _raw(given: pb.ModelInferRequest.InferInputTensor, data: bytes) -> Tensor:
    tensor = Tensor(given.name, given.datatype, tuple(given.shape), data)
    if given.datatype != BYTES:  # whoever reads its elements checks them
        tensor.array()
        if given.datatype == "BOOL" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
            raise InvalidRequest(f"input {given.name!r}: raw BOOL has bytes other than 0 and 1", param=given.name)
    return tensor


def _typed(given: pb.ModelInferRequest.InferInputTensor) -> Tensor:
    field = _CONTENTS.get(given.datatype, "")
    others = [f.name for f, _ in given.contents.ListFields() if f.name != field]
    values = getattr(given.contents, field) if field else []
    if others or not field:
        raise InvalidRequest(
            f"input {given.name!r} of {given.datatype} comes in {others[0] if others else 'its contents'}: send "
            f"{field or 'it raw'}",
            param=given.name,
        )
    if given.datatype == BYTES:
        tensor = Tensor.of_bytes(given.name, list(values), tuple(given.shape))
        tensor.elements()
        return tensor
    dtype = DATATYPES[given.datatype]
    array = np.array(values, "?" if field == "bool_contents" else None)
    if (
        dtype.kind in "iu"
        and array.size
        and not np.iinfo(dtype).min <= array.min() <= array.max() <= np.iinfo(dtype).max
    ):
        raise InvalidRequest(f"input {given.name!r} has numbers outside {given.datatype}", param=given.name)
    return _raw(given, array.astype(dtype).tobytes())


async def _responding(
    asker: GrpcAsker,
    request: pb.ModelInferRequest,
    answering: Answering,
    inference: Inference,
    tensors: list[Tensor],
    places: Mapping[str, Place],
) -> pb.ModelInferResponse:
    """Outputs that have a place in shared memory are written there. Raises `InvalidRequest` for one that is larger."""
    write = partial(shared_memory.write, asker)
    return await aside([*places.values()], _response, request, answering, inference, tensors, places, write)


def _response(
    request: pb.ModelInferRequest,
    answering: Answering,
    inference: Inference,
    tensors: list[Tensor],
    places: Mapping[str, Place] = NOWHERE,
    write: Write | None = None,
) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(
        model_name=request.model_name,
        model_version=answering.version.name if answering.version else "",
        id=request.id or inference.requests[0].id,
    )
    for tensor in tensors:
        output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        if write and (place := places.get(tensor.name)):
            for name, value in put(tensor, place, write).items():
                kind = "string_param" if isinstance(value, str) else "int64_param"
                setattr(output.parameters[name], kind, value)
        # Triton has an empty one for what lies in shared memory, and its client counts them.
        response.raw_output_contents.append(b"" if output.parameters else tensor.data)
    return response


def _marked(response: pb.ModelInferResponse, is_final: bool) -> pb.ModelInferResponse:
    response.parameters[_FINAL].bool_param = is_final
    return response


def _values(parameters: Mapping[str, pb.InferParameter]) -> dict[str, Any]:
    """Raises `InvalidRequest` for one without a value."""
    found: dict[str, Any] = {}
    for name, parameter in parameters.items():
        kind = parameter.WhichOneof("parameter_choice")
        if kind is None:
            raise InvalidRequest(f"parameter {name!r} has no value: send one", param=name)
        found[name] = getattr(parameter, kind)
    return found
