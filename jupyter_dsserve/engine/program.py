"""`ProgramRunner`: named tensors in, named tensors out, by an exported program (``*.pt2``, ``*.onnx``).

Requests share a call along the first axis where the program says that this axis may have any size. Whether it really
treats rows alone is tried in WARMING; one that does not is called for each request by itself.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jupyter_dsserve.engine.batcher import ANY_NUMBER, Arrays, Item, Limits, Work
from jupyter_dsserve.engine.host import num_cores
from jupyter_dsserve.protocol.errors import EngineFailure, InvalidRequest
from jupyter_dsserve.protocol.request import Features, Request
from jupyter_dsserve.protocol.spec import WorkerSpec
from jupyter_dsserve.protocol.tensors import DATATYPES, ModelInfo, TensorInfo

log = logging.getLogger(__name__)

_PROBE_SIZE = 8  # of an axis that may have any size
_TOLERANCE = 1e-3


class Program(Protocol):
    """A loaded program. ``has_rows``: the first axis of all inputs and outputs is the same, of any size. ``rows``: the
    least and the most of it in a call."""

    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    has_rows: bool
    rows: tuple[int, int]

    @property
    def device(self) -> str: ...

    def __call__(self, inputs: Mapping[str, NDArray[Any]]) -> Arrays:
        """Every output, by name."""
        ...

    def device_bytes(self) -> int: ...


class ProgramRunner:
    """Owns one program."""

    def __init__(self, program: Program, max_rows: int) -> None:
        self._program = program
        self.is_batched = program.has_rows
        max_rows = min(max_rows, program.rows[1])
        self.limits = Limits(max_rows, max_rows)

    @property
    def info(self) -> ModelInfo:
        how = "requests share calls" if self.is_batched else "every request is a call of its own"
        return ModelInfo(self._program.inputs, self._program.outputs, note=f"{how}, on {self.device}")

    @property
    def device(self) -> str:
        return self._program.device

    def prepare(self, request: Request) -> Work:
        """Check names, datatypes and shapes. Raises `InvalidRequest` naming the input that is wrong."""
        if not isinstance(request.prompt, Features):
            raise InvalidRequest(f"this version takes named tensors, and no {type(request.prompt).__name__}")
        given = {tensor.name: tensor for tensor in request.prompt.tensors}
        wanted = {info.name: info for info in self._program.inputs}
        if len(given) < len(request.prompt.tensors) or given.keys() != wanted.keys():
            names = [tensor.name for tensor in request.prompt.tensors]
            raise InvalidRequest(f"inputs are {names}: send each of {list(wanted)} once", param="inputs")
        arrays = {name: given[name].array() for name in wanted}
        for name, array in arrays.items():
            _check(wanted[name], given[name].datatype, array)
        if not self.is_batched:
            return Work(request.id, [Item(arrays, kind=object())])
        num_rows = self._num_rows(arrays)
        kind = tuple(array.shape[1:] for array in arrays.values())
        return Work(request.id, [Item(arrays, num_rows=num_rows, kind=kind)])

    def _num_rows(self, arrays: Arrays) -> int:
        sizes = {name: len(array) for name, array in arrays.items()}
        num_rows = next(iter(sizes.values()))
        least, most = self._program.rows
        if set(sizes.values()) != {num_rows}:
            raise InvalidRequest(f"the inputs have different numbers of rows ({sizes}): send as many of each")
        if not max(1, least) <= num_rows <= most:
            upper = f" to {most}" if most < ANY_NUMBER else " or more"
            raise InvalidRequest(f"the inputs have {num_rows} rows, and this program takes {max(1, least)}{upper}")
        return num_rows

    def forward(self, batch: Seq[Item]) -> Arrays:
        if len(batch) == 1:
            return self._program(batch[0].value)
        return self._program({name: np.concatenate([item.value[name] for item in batch]) for name in batch[0].value})

    def check(self) -> None:
        """Call the program once on random numbers; twice more to see whether it treats rows alone.

        An axis that may have any size is tried with one of our own choice: a program that refuses it is not at fault.
        """
        least = max(1, self._program.rows[0])
        draw = np.random.default_rng(0)
        probes = [{t.name: _random(t, least, draw) for t in self._program.inputs} for _ in range(2)]
        is_guess = any(-1 in t.shape[1:] or (t.shape[:1] == (-1,) and not self.is_batched) for t in self.info.inputs)
        try:
            alone = self._program(probes[0])
            if self.is_batched:
                both = {name: np.concatenate([probe[name] for probe in probes]) for name in probes[0]}
                self.is_batched = _is_start(alone, self._program(both), least)
        except Exception as fault:
            if not is_guess:
                raise EngineFailure(f"the program fails when it is called: {type(fault).__name__}: {fault}") from fault
            log.warning("not tried before the first call, for it refuses shapes that are guessed: %s", fault)
            self.is_batched = False

    def device_bytes(self) -> int:
        return self._program.device_bytes()


def load_program(spec: WorkerSpec, model_path: str) -> Program:
    """The program in the file ``model_path``. Raises `InvalidRequest` with the reason if it does not load."""
    if spec.dtype != "auto":
        raise InvalidRequest(
            f"dtype is {spec.dtype}, but a program computes in its own numbers: leave dtype out", param="dtype"
        )
    num_threads = spec.num_threads or max(1, num_cores() - 1)
    if os.path.splitext(model_path)[1] == ".onnx":
        from jupyter_dsserve.engine.onnx import OnnxProgram

        return OnnxProgram(model_path, spec.device, num_threads)
    # Only here: an ONNX worker must not pay for torch.
    from jupyter_dsserve.engine.exported import ExportedProgram

    return ExportedProgram(model_path, spec.device, num_threads)


def _check(info: TensorInfo, datatype: str, array: NDArray[Any]) -> None:
    if datatype != info.datatype:
        raise InvalidRequest(f"input {info.name!r} is {datatype}: send {info.datatype}", param=info.name)
    fits = len(array.shape) == len(info.shape) and all(
        want in (-1, have) for want, have in zip(info.shape, array.shape, strict=True)
    )
    if not fits:
        raise InvalidRequest(
            f"input {info.name!r} has the shape {list(array.shape)}: send {list(info.shape)}, where -1 is any size",
            param=info.name,
        )


def _random(info: TensorInfo, num_rows: int, draw: np.random.Generator) -> NDArray[Any]:
    open_sizes = [num_rows] + [_PROBE_SIZE] * len(info.shape)
    shape = [own if size < 0 else size for size, own in zip(info.shape, open_sizes, strict=False)]
    dtype = DATATYPES[info.datatype]
    # Whole numbers may be places in a table: 0 and 1 are in any.
    numbers = draw.standard_normal(shape) if dtype.kind == "f" else draw.integers(0, 2, shape)
    return np.asarray(numbers).astype(dtype)


def _is_start(alone: Arrays, both: Arrays, num_rows: int) -> bool:
    """Whether the first rows of a call are what they are without the others."""
    for name, whole in both.items():
        own, start = alone[name].astype(float), whole[:num_rows].astype(float)
        if len(own) != num_rows or len(whole) != 2 * num_rows:
            return False
        largest = float(np.abs(own).max(initial=0.0))
        scale = _TOLERANCE * largest if math.isfinite(largest) else 0.0
        if not np.allclose(start, own, rtol=_TOLERANCE, atol=scale, equal_nan=True):
            return False
    return True
