"""`OnnxProgram`: an ``*.onnx`` file in onnxruntime. Runs no code from the file, and needs no torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jupyter_dsserve.engine.batcher import ANY_NUMBER, Arrays
from jupyter_dsserve.engine.host import resident_bytes
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.tensors import TensorInfo, datatype_of

_CUDA = "CUDAExecutionProvider"
_TYPES = {"float": "float32", "double": "float64"}  # the rest are named as numpy's, but for a 16-bit float
_TYPES |= {"float16": "float16"} | {f"{u}int{bits}": f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)}
_TYPES |= {"bool": "bool"}


class OnnxProgram:
    """Inputs and outputs have the file's names. It does not say how many rows it takes."""

    rows = (0, ANY_NUMBER)

    def __init__(self, path: str, device: str, num_threads: int) -> None:
        """Raises `InvalidRequest` if it does not load, or onnxruntime is not there."""
        try:
            import onnxruntime
        except ImportError:
            raise InvalidRequest(
                f"model {path} needs onnxruntime: pip install 'jupyter_dsserve[onnx]' in the worker's environment",
                param="model",
            ) from None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = num_threads
        # They would spin between calls, on cores that the notebook works on.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        try:
            self._session = onnxruntime.InferenceSession(path, options, providers=_providers(device, onnxruntime))
        except InvalidRequest:
            raise
        except Exception as fault:  # it has an exception class for each of its status codes
            raise InvalidRequest(f"model {path} does not load in onnxruntime: {fault}", param="model") from fault
        self.inputs = tuple(_info(path, found) for found in self._session.get_inputs())
        self.outputs = tuple(_info(path, found) for found in self._session.get_outputs())
        first = {
            found.shape[0] if found.shape else 0 for found in self._session.get_inputs() + self._session.get_outputs()
        }
        # An axis without a name may be any.
        self.has_rows = len(first - {None}) <= 1 and not any(isinstance(size, int) for size in first)
        self._device = "cpu"
        if _CUDA in self._session.get_providers():
            self._device = f"cuda:{_number(device)}"
        elif device.startswith("cuda"):  # it only warns, and takes the processor
            raise InvalidRequest(
                f"device is {device!r}, but onnxruntime could not start CUDA here (its log says why; mostly cuDNN or "
                "CUDA's libraries are missing): install onnxruntime-gpu[cuda,cudnn], or use cpu",
                param="device",
            )

    @property
    def facts(self) -> Mapping[str, str]:
        """What whoever made the file wrote into it."""
        found: dict[str, str] = self._session.get_modelmeta().custom_metadata_map
        return found

    @property
    def device(self) -> str:
        return self._device

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        names = [info.name for info in self.outputs]
        return dict(zip(names, map(np.asarray, self._session.run(names, dict(inputs))), strict=True))

    def device_bytes(self) -> int:
        """Of RAM on a GPU too: onnxruntime does not say what it has there, the gateway asks the driver."""
        return resident_bytes()


def _providers(device: str, onnxruntime: Any) -> list[Any]:
    has_gpu = _CUDA in onnxruntime.get_available_providers()
    if device.startswith("cuda") and not has_gpu:
        raise InvalidRequest(
            f"device is {device!r}, but this onnxruntime knows no CUDA: install onnxruntime-gpu, or use cpu",
            param="device",
        )
    if device == "cpu" or not has_gpu:
        return ["CPUExecutionProvider"]
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls()  # those that pip installed (with torch, say) lie where no loader looks
    return [(_CUDA, {"device_id": _number(device)}), "CPUExecutionProvider"]


def _number(device: str) -> int:
    """Of the GPU; ``auto`` is the first."""
    return int(device.partition(":")[2] or 0)


def _info(path: str, found: Any) -> TensorInfo:
    kind = found.type.removeprefix("tensor(").removesuffix(")")
    if kind not in _TYPES:
        raise InvalidRequest(
            f"model {path} has {found.name!r} of type {found.type}: tensors of numbers are served", param="model"
        )
    shape = tuple(size if isinstance(size, int) else -1 for size in found.shape)
    return TensorInfo(found.name, datatype_of(np.dtype(_TYPES[kind]), found.name), shape)
