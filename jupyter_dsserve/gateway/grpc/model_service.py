"""``dsserve.v1.ModelService``: features in, a prediction out, for programs with one input."""

from __future__ import annotations

import math
import uuid
from collections.abc import Sequence

import numpy as np

from jupyter_dsserve.gateway.context import Context
from jupyter_dsserve.gateway.generate import check_task, collect
from jupyter_dsserve.gateway.grpc.call import ServicerContext, asked
from jupyter_dsserve.gateway.v2.models import likely
from jupyter_dsserve.protocol import inference_pb2 as pb
from jupyter_dsserve.protocol.errors import InvalidRequest, Unavailable
from jupyter_dsserve.protocol.inference_pb2_grpc import ModelServiceServicer
from jupyter_dsserve.protocol.request import Features, Request
from jupyter_dsserve.protocol.tensors import DATATYPES, Tensor, TensorInfo


class ModelService(ModelServiceServicer):
    def __init__(self, context: Context) -> None:
        self._context = context

    async def Predict(self, request: pb.PredictRequest, call: ServicerContext) -> pb.PredictResponse | None:  # noqa: N802
        async with asked(self._context, call, "ModelService/Predict") as asker:
            model = request.model or asker.only_model()
            asker.check_model(model)
            version = likely(asker.fleet, model)
            check_task(version, "tensor")
            if not version.info.inputs and version.takes:  # what it takes is known once it is there
                await version.settled()
            if not version.info.inputs:
                raise Unavailable(f"{version.id} is {version.state.value}: what it takes is known once it is READY")
            tensor = tensor_of(request.features, version.info.inputs)
            asking = Request(f"infer-{uuid.uuid4().hex}", Features((tensor,)))
            answering = await asker.ask(model, [asking], "tensor")
            (whole,) = await collect(answering.chunks)
            assert answering.version  # only text that is generated can be the policy's own
            output = whole.tensors[0].array()
            numbers = output.astype(np.float32).ravel().tolist()
            return pb.PredictResponse(
                prediction=numbers[0] if numbers else 0.0,
                predictions=numbers,
                shape=output.shape,
                version=answering.version.name,
            )
        return None


def tensor_of(features: Sequence[float], inputs: Sequence[TensorInfo]) -> Tensor:
    """``features`` as the only one of ``inputs``, row by row: of its sizes that may be any (-1) the first takes what is
    needed, the others are 1. Raises `InvalidRequest` if they do not fit."""
    if len(inputs) != 1:
        names = ", ".join(info.name for info in inputs)
        raise InvalidRequest(
            f"the model takes {len(inputs)} inputs ({names}), features fill one: ask GRPCInferenceService/ModelInfer",
            param="features",
        )
    (info,) = inputs
    dtype = DATATYPES.get(info.datatype)
    if dtype is None:
        raise InvalidRequest(f"the model's input {info.name!r} is {info.datatype}, no numbers", param="features")
    sizes = [1 if size == -1 else size for size in info.shape]
    row = math.prod(sizes)
    if -1 in info.shape and row and features and len(features) % row == 0:
        sizes[info.shape.index(-1)] = len(features) // row
    if math.prod(sizes) != len(features):
        whole = "a multiple of " if -1 in info.shape else ""
        raise InvalidRequest(
            f"there are {len(features)} features, and the model's input {info.name!r} of shape {list(info.shape)} "
            f"takes {whole}{row}",
            param="features",
        )
    given = np.array(features, np.float32)
    with np.errstate(invalid="ignore"):
        array = given.astype(dtype)
    if dtype.kind in "iub" and not np.array_equal(array.astype(np.float32), given):
        raise InvalidRequest(
            f"the features are no {info.datatype}, which the model's input {info.name!r} takes", param="features"
        )
    return Tensor.of(info.name, array.reshape(sizes))
