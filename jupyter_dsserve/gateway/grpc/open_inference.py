"""``inference.GRPCInferenceService``: the Open Inference Protocol, with what Triton adds to it. What it means to each
task is said in `gateway.v2`, which REST shares; here messages become tensors, and tensors messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

import numpy as np

from jupyter_dsserve import __version__
from jupyter_dsserve.fleet.answering import Answering
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.gateway.context import Context
from jupyter_dsserve.gateway.generate import collect
from jupyter_dsserve.gateway.grpc.call import GrpcAsker, ServicerContext, asked, calling, each
from jupyter_dsserve.gateway.v2 import mapping, models
from jupyter_dsserve.gateway.v2.mapping import Inference
from jupyter_dsserve.protocol import open_inference_pb2 as pb
from jupyter_dsserve.protocol.errors import DSServeError, InvalidRequest
from jupyter_dsserve.protocol.open_inference_pb2_grpc import GRPCInferenceServiceServicer
from jupyter_dsserve.protocol.tensors import BYTES, DATATYPES, ModelInfo, Tensor

EXTENSIONS = ("model_configuration", "model_repository", "parameters")
# Of a streamed answer: whether it is the last one; and whether the caller wants that told by an empty one.
_FINAL, _WANTS_FINAL = "triton_final_response", "triton_enable_empty_final_response"
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


class OpenInference(GRPCInferenceServiceServicer):
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

    async def RepositoryIndex(  # noqa: N802
        self, request: pb.RepositoryIndexRequest, call: ServicerContext
    ) -> pb.RepositoryIndexResponse | None:
        async with asked(self._context, call, "GRPCInferenceService/RepositoryIndex") as asker:
            mine = [d for d in self._fleet.deployments() if asker.may_ask(d.name)]
            versions = [version for deployment in mine for version in deployment.versions.values()]
            return pb.RepositoryIndexResponse(models=models.index(versions, only_ready=request.ready))
        return None

    async def ModelInfer(  # noqa: N802
        self, request: pb.ModelInferRequest, call: ServicerContext
    ) -> pb.ModelInferResponse | None:
        async with asked(self._context, call, "GRPCInferenceService/ModelInfer") as asker:
            inference = _inference(asker, request)
            if inference.is_stream:
                raise InvalidRequest(
                    "stream is true, and ModelInfer answers once: ask ModelStreamInfer", param="stream"
                )
            answering, info = await _begin(asker, request, inference)
            whole = await collect(answering.chunks)
            return _response(request, answering, inference, mapping.outputs(inference, whole, info))
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
    inference = _inference(asker, request)
    answering, info = await _begin(asker, request, inference)
    if not inference.is_stream:
        whole = await collect(answering.chunks)
        yield _marked(
            _response(request, answering, inference, mapping.outputs(inference, whole, info)), not wants_final
        )
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


def _inference(asker: GrpcAsker, request: pb.ModelInferRequest) -> Inference:
    """Raises `InvalidRequest` for tensors and parameters that cannot be, `NotFound` for a model."""
    if not request.model_name:
        request.model_name = asker.only_model()
    asker.check_model(request.model_name)
    task = models.task_of(asker.fleet, request.model_name, request.model_version)
    parameters = _values(request.parameters)
    parameters.pop(_WANTS_FINAL, None)
    for output in request.outputs:
        if output.parameters:
            raise InvalidRequest(
                f"output {output.name!r} has parameters ({', '.join(output.parameters)}), and none are taken here: "
                "leave them out; shared memory is REST's",
                param=output.name,
            )
    return mapping.requests(task, _tensors(request), parameters, [output.name for output in request.outputs])


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


def _tensors(request: pb.ModelInferRequest) -> list[Tensor]:
    """Raises `InvalidRequest` naming the input that is wrong."""
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise InvalidRequest(
            f"there are {len(raw)} raw_input_contents for {len(request.inputs)} inputs: send one for each, or none",
            param="raw_input_contents",
        )
    found = []
    for number, given in enumerate(request.inputs):
        if given.parameters:
            raise InvalidRequest(
                f"input {given.name!r} has parameters ({', '.join(given.parameters)}), and none are taken here: leave "
                "them out; shared memory is REST's",
                param=given.name,
            )
        if any(size < 0 for size in given.shape) or given.datatype not in (*DATATYPES, BYTES):
            raise InvalidRequest(
                f"input {given.name!r} is of {given.datatype!r} and of shape {list(given.shape)}: send sizes of 0 or "
                f"more, and one of {', '.join((*DATATYPES, BYTES))}",
                param=given.name,
            )
        found.append(_raw(given, raw[number]) if raw else _typed(given))
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


def _response(
    request: pb.ModelInferRequest, answering: Answering, inference: Inference, tensors: list[Tensor]
) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(
        model_name=request.model_name,
        model_version=answering.version.name if answering.version else "",
        id=request.id or inference.requests[0].id,
    )
    for tensor in tensors:
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)
        response.raw_output_contents.append(tensor.data)
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
