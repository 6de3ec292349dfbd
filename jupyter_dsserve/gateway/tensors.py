"""``/v2``: the Open Inference Protocol's REST, for exported programs. Tensors are JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from jupyter_dsserve import __version__
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.gateway import answers
from jupyter_dsserve.gateway.bodies import InferBody, Priority
from jupyter_dsserve.gateway.describe import INFERENCE_ERRORS, describes
from jupyter_dsserve.gateway.generate import PRIORITY_HEADER, check_task, collect, start
from jupyter_dsserve.gateway.handlers import Handler, until_caller_leaves
from jupyter_dsserve.protocol.errors import DSServeError, EngineFailure, InvalidRequest, NotFound, Unavailable
from jupyter_dsserve.protocol.tensors import Tensor

Json = dict[str, Any]
_PLATFORMS = {".pt2": "pytorch_export", ".onnx": "onnx_onnxv1"}


class OIPHandler(Handler):
    """Errors in the protocol's shape."""

    is_inference = True
    error_type = answers.OIPFaultAnswer

    def error_body(self, error: DSServeError) -> Json:
        return {"error": error.message}


class Server(OIPHandler):
    @describes("The server, and the protocol's extensions that it has.", {200: answers.ServerMetadata})
    def get(self) -> None:
        self.answer({"name": "jupyter_dsserve", "version": __version__, "extensions": []})


class Live(OIPHandler):
    is_open = True

    @describes("Whether the gateway runs.", {200: answers.ServerLive})
    def get(self) -> None:
        self.answer({"live": True})


class Ready(OIPHandler):
    is_open = True

    @describes("Whether some version can answer.", {200: answers.ServerReady, 503: answers.ServerReady})
    def get(self) -> None:
        is_ready = any(self.fleet.deployment(d.name).ready for d in self.fleet.status())
        self.answer({"ready": is_ready}, 200 if is_ready else 503)


class Model(OIPHandler):
    """What a model takes and gives. Without a version: the READY one with the most weight."""

    @describes("What a model takes and gives.", {200: answers.ModelMetadata}, errors=(NotFound, Unavailable))
    def get(self, name: str, version: str = "") -> None:
        found = self._shown(name, version)
        check_task(found, "tensor")
        if not found.is_ready:
            raise Unavailable(f"{found.id} is {found.state.value}: what it takes is known once it is READY")
        sides = {
            side: [{"name": t.name, "datatype": t.datatype, "shape": list(t.shape)} for t in infos]
            for side, infos in (("inputs", found.info.inputs), ("outputs", found.info.outputs))
        }
        platform = _PLATFORMS.get(Path(found.model_path).suffix, "")
        self.answer({"name": name, "versions": sorted(self._ready(found)), "platform": platform, **sides})

    def _shown(self, name: str, version: str) -> Version:
        self.check_model(name)
        deployment, _, pinned = name.partition("@")
        if version or pinned:
            return self.fleet.version(deployment, version or pinned)
        weights = self.fleet.deployment(deployment).route.weights
        ready = sorted(self.fleet.deployment(deployment).ready, key=lambda v: -weights.get(v, 0.0))
        if not ready:
            raise Unavailable(f"no version of {name} is READY", retry_after_s=2)
        return self.fleet.version(deployment, ready[0])

    def _ready(self, version: Version) -> set[str]:
        return self.fleet.deployment(version.deployment).ready


class ModelReady(OIPHandler):
    @describes("Whether a model can answer.", {200: answers.ModelReady, 503: answers.ModelReady}, errors=(NotFound,))
    def get(self, name: str, version: str = "") -> None:
        self.check_model(name)
        deployment, _, pinned = name.partition("@")
        ready, pinned = self.fleet.deployment(deployment).ready, version or pinned
        if pinned:
            self.fleet.version(deployment, pinned)  # a version nobody knows is not found
        is_ready = pinned in ready if pinned else bool(ready)
        self.answer({"name": name, "ready": is_ready}, 200 if is_ready else 503)


class Infer(OIPHandler):
    @describes(
        "Run a model on tensors.",
        {200: answers.Inferred},
        body=InferBody,
        example={"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32", "data": [0.5, 1.0]}]},
        headers={PRIORITY_HEADER: Priority},
        errors=INFERENCE_ERRORS,
    )
    @until_caller_leaves
    async def post(self, name: str, version: str = "") -> None:
        body = self.body(InferBody)
        request = body.request()
        wanted: list[str] = []

        def choose_outputs(chosen: Version) -> None:
            known = [info.name for info in chosen.info.outputs]
            wanted[:] = [each.name for each in body.outputs or ()] or known
            if known and (strange := set(wanted) - set(known)):
                raise InvalidRequest(f"output {strange.pop()!r} is not known: there are {known}", param="outputs")

        model = f"{name}@{version}" if version else name
        answering = await start(self, model, [request], task="tensor", check=choose_outputs)
        assert answering.version  # only text that is generated can be the policy's own
        (whole,) = await collect(answering.chunks)
        outputs = {tensor.name: tensor for tensor in whole.tensors}
        self.answer(
            {
                "model_name": name,
                "model_version": answering.version.name,
                "id": body.id or request.id,
                "outputs": [_output(outputs[each]) for each in wanted],
            }
        )


def _output(tensor: Tensor) -> Json:
    array = tensor.array()
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise EngineFailure(f"output {tensor.name!r} has NaN or an infinity, which JSON does not know")
    return {
        "name": tensor.name,
        "shape": list(tensor.shape),
        "datatype": tensor.datatype,
        "data": array.ravel().tolist(),
    }


_MODEL = r"/v2/models/([^/]+)"
_VERSION = rf"{_MODEL}/versions/([^/]+)"

ROUTES: list[tuple[str, type[Handler]]] = [
    (r"/v2", Server),
    (r"/v2/health/live", Live),
    (r"/v2/health/ready", Ready),
    (_MODEL, Model),
    (_VERSION, Model),
    (rf"{_MODEL}/ready", ModelReady),
    (rf"{_VERSION}/ready", ModelReady),
    (rf"{_MODEL}/infer", Infer),
    (rf"{_VERSION}/infer", Infer),
]
