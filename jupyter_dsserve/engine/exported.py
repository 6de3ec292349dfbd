"""`ExportedProgram`: what `torch.export.save` wrote. Loading one can run code from the file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.export.passes import move_to_device_pass
from torch.utils import _pytree as pytree

from jupyter_dsserve.engine.batcher import ANY_NUMBER, Arrays
from jupyter_dsserve.engine.device import named_device
from jupyter_dsserve.engine.memory import held_bytes
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.tensors import DATATYPES, TensorInfo, datatype_of

_BF16 = DATATYPES["BF16"]


class ExportedProgram:
    """Inputs are named after the arguments of ``forward``, outputs after the keys of the dictionary it returns, else
    ``output`` or ``output_0``, ``output_1``, …"""

    def __init__(self, path: str, device: str, num_threads: int) -> None:
        """Raises `InvalidRequest` if it does not load, or takes or gives anything but tensors."""
        torch.set_num_threads(num_threads)
        self._device = named_device(device)
        try:
            program = torch.export.load(path)
        except Exception as fault:  # it reads several formats, and raises what comes to hand
            raise InvalidRequest(
                f"model {path} is no program that torch.export loads: {fault}", param="model"
            ) from fault
        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        names = {name: value for name, value in values.items() if name in program.graph_signature.user_inputs}
        self.inputs = tuple(_info(path, name, value) for name, value in names.items())
        outputs = [values.get(str(name)) for name in program.graph_signature.user_outputs]
        self._output_names = _output_names(program.call_spec.out_spec)
        self.outputs = tuple(_info(path, *pair) for pair in zip(self._output_names, outputs, strict=True))
        self.rows = _rows(program, list(names.values()))
        first = {str(value.shape[0]) if value.dim() else "" for value in (*names.values(), *outputs)}
        self.has_rows = len(first) == 1 and not first.pop().isdigit()
        if self._device.type != "cpu":
            program = move_to_device_pass(program, self._device)
        self._in_spec = program.call_spec.in_spec
        self._module = program.module()

    @property
    def device(self) -> str:
        return str(self._device)

    @torch.inference_mode()
    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        # Copied, for the bytes of the wire are not writable.
        flat = [_to_torch(inputs[info.name].copy()).to(self._device) for info in self.inputs]
        args, kwargs = pytree.tree_unflatten(flat, self._in_spec)
        found = pytree.tree_leaves(self._module(*args, **kwargs))
        return {name: _to_numpy(value.cpu()) for name, value in zip(self._output_names, found, strict=True)}

    def device_bytes(self) -> int:
        return held_bytes(self._device)


def _info(path: str, name: str, value: Any) -> TensorInfo:
    if not isinstance(value, torch.Tensor):
        raise InvalidRequest(
            f"model {path} has {name!r}, which is no tensor: export it with tensors only", param="model"
        )
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorInfo(name, datatype_of(_numpy_dtype(value.dtype, name), name), shape)


def _to_torch(array: NDArray[Any]) -> torch.Tensor:
    """Neither knows the other's bfloat16, but they are the same bits."""
    if array.dtype == _BF16:
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def _to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    if tensor.dtype == torch.bfloat16:
        return tensor.contiguous().view(torch.int16).numpy().view(_BF16)
    return tensor.numpy()


def _numpy_dtype(dtype: torch.dtype, name: str) -> np.dtype[Any]:
    if dtype == torch.bfloat16:
        return _BF16
    try:
        return torch.empty(0, dtype=dtype).numpy().dtype
    except TypeError:
        raise InvalidRequest(
            f"tensor {name!r} is {dtype}, which has no name on the wire: let the program take and give fp32"
        ) from None


def _output_names(spec: Any) -> list[str]:
    paths, _ = pytree.tree_flatten_with_path(pytree.tree_unflatten(list(range(spec.num_leaves)), spec))
    names = [".".join(str(getattr(key, "key", getattr(key, "idx", key))) for key in path) for path, _ in paths]
    return ["output" if not name else f"output_{name}" if name[0].isdigit() else name for name in names]


def _rows(program: Any, inputs: list[torch.Tensor]) -> tuple[int, int]:
    """The least and the most rows that the program was exported for."""
    sizes: list[Any] = [value.shape[0] for value in inputs if value.dim()]
    ranges = [program.range_constraints.get(size.node.expr) for size in sizes if isinstance(size, torch.SymInt)]
    least = max((int(r.lower) for r in ranges if r), default=0)
    most = min((int(r.upper) for r in ranges if r and r.upper < ANY_NUMBER), default=ANY_NUMBER)
    return least, most
