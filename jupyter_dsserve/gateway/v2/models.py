"""What the Open Inference Protocol and Triton's extensions tell of a model. REST and gRPC share it; pure, but for what
it reads of the fleet."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jupyter_dsserve.fleet.fleet import Fleet
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.gateway.v2.mapping import Signature, signature
from jupyter_dsserve.protocol.errors import Unavailable
from jupyter_dsserve.protocol.spec import Task
from jupyter_dsserve.protocol.tensors import BYTES, TensorInfo

Json = dict[str, Any]
_PLATFORMS = {".pt2": "pytorch_export", ".onnx": "onnx_onnxv1"}


@dataclass(frozen=True, slots=True)
class Metadata:
    """``versions`` are the READY ones; ``inputs`` hold those that may be left out, too."""

    name: str
    versions: tuple[str, ...]
    platform: str
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]


def named(model: str, version: str = "") -> tuple[str, str]:
    """(deployment, version) of ``m``, ``m@v``, or ``m`` with a version beside it; an empty version is none."""
    deployment, _, pinned = model.partition("@")
    return deployment, version or pinned


def shown(fleet: Fleet, model: str, version: str = "") -> Version:
    """The version that a question about ``model`` is answered for: the one it names, or the READY one with the most
    weight. Raises `NotFound`, and `Unavailable` if none is READY."""
    name, pinned = named(model, version)
    if pinned:
        return fleet.version(name, pinned)
    deployment = fleet.deployment(name)
    ready = sorted(deployment.ready, key=lambda v: -deployment.route.weights.get(v, 0.0))
    if not ready:
        raise Unavailable(f"no version of {model} is READY: load one", retry_after_s=2)
    return fleet.version(name, ready[0])


def task_of(fleet: Fleet, model: str, version: str = "") -> Task:
    """What a call of ``model`` is read as, before it is known who answers it. Raises `NotFound`."""
    return likely(fleet, model, version).spec.task


def likely(fleet: Fleet, model: str, version: str = "") -> Version:
    """Who most likely answers a call of ``model``, though none may be READY. Raises `NotFound`."""
    name, pinned = named(model, version)
    if pinned:
        return fleet.version(name, pinned)
    deployment = fleet.deployment(name)
    candidates = [*(fleet.version(name, v) for v in deployment.ready), *deployment.versions.values()]
    weights = deployment.route.weights
    return max(candidates, key=lambda v: (weights.get(v.name, 0.0), v.can_answer))


def metadata(version: Version, ready: Collection[str]) -> Metadata:
    """Raises `Unavailable` for a model that has not said yet what it takes."""
    said = _signature(version)
    return Metadata(
        version.deployment, tuple(sorted(ready)), platform(version), (*said.inputs, *said.optional), said.outputs
    )


def platform(version: Version) -> str:
    if version.spec.task == "tensor":
        return _PLATFORMS.get(Path(version.model_path).suffix, "")
    return "dsserve_toy" if version.spec.runner == "toy" else "deepspeed_transformers"


def config(version: Version) -> Json:
    """Triton's model configuration, as far as it says something here. Batches have no axis of their own: shapes are
    given whole. Raises `Unavailable` as `metadata` does."""
    said = _signature(version)
    return {
        "name": version.deployment,
        "platform": platform(version),
        "backend": "jupyter_dsserve",
        "max_batch_size": 0,
        "input": [_config_of(info) for info in said.inputs]
        + [_config_of(info) | {"optional": True} for info in said.optional],
        "output": [_config_of(info) for info in said.outputs],
        "model_transaction_policy": {"decoupled": version.spec.task == "generate"},
    }


def _config_of(info: TensorInfo) -> Json:
    kind = "STRING" if info.datatype == BYTES else info.datatype
    return {"name": info.name, "data_type": f"TYPE_{kind}", "dims": list(info.shape)}


def _signature(version: Version) -> Signature:
    found = signature(version.spec.task, version.info)
    if not found.outputs or not found.inputs:
        raise Unavailable(f"{version.id} is {version.state.value}: what it takes is known once it is READY")
    return found


def counted(fleet: Fleet, model: str, version: str, may_ask: Callable[[str], bool]) -> list[Version]:
    """Whose statistics are asked: one version's, all of a model's, or without a model all that the caller may ask.
    Raises `NotFound`."""
    if not model:
        return [
            v for deployment in fleet.deployments() if may_ask(deployment.name) for v in deployment.versions.values()
        ]
    name, pinned = named(model, version)
    return [fleet.version(name, pinned)] if pinned else list(fleet.deployment(name).versions.values())


def statistics(version: Version, at: float, now: float) -> Json:
    """Triton's, as far as we have such figures: no times of inputs and outputs, no cache, no batch sizes. ``at`` is
    seconds since the epoch, ``now`` monotonic seconds of the same moment."""
    window, totals = version.window, version.window.totals
    num_good = window.requests - window.errors
    return {
        "name": version.deployment,
        "version": version.name,
        "last_inference": 0 if totals.last_at is None else round(1000 * (at - (now - totals.last_at))),
        "inference_count": num_good,
        "execution_count": sum(replica.heartbeat.num_steps for replica in version.replicas),
        "inference_stats": {
            "success": _duration(num_good, totals.good_s),
            "fail": _duration(window.errors, totals.failed_s),
            "queue": _duration(window.requests, totals.queued_s.sum),
            "compute_infer": _duration(num_good, totals.computed_s),
        },
        "batch_stats": [],
    }


def _duration(count: int, seconds: float) -> Json:
    return {"count": count, "ns": round(1e9 * seconds)}


def index(versions: Iterable[Version], *, only_ready: bool) -> list[Json]:
    """What there is, loaded or not, as Triton's repository index says it."""
    return [
        {
            "name": version.deployment,
            "version": version.name,
            "state": "READY" if version.can_answer else "UNAVAILABLE",
            "reason": "" if version.can_answer else version.failure or version.state.value,
        }
        for version in versions
        if version.can_answer or not only_ready
    ]
