"""Arrays on the wire: `Tensor`, and what a model says of itself, `TensorInfo` and `ModelInfo`."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from jupyter_dsserve.protocol.errors import InvalidRequest

# The Open Inference Protocol's names of numbers.
DATATYPES = {
    "BOOL": np.dtype("?"),
    "UINT8": np.dtype("u1"),
    "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"),
    "UINT64": np.dtype("<u8"),
    "INT8": np.dtype("i1"),
    "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"),
    "INT64": np.dtype("<i8"),
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "FP64": np.dtype("<f8"),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
# Its name of texts and other bytes. An element is its length, in four bytes, and then that many.
BYTES = "BYTES"
_LENGTH = struct.Struct("<I")
_NAMES = {dtype: name for name, dtype in DATATYPES.items()}


@dataclass(frozen=True, slots=True)
class Tensor:
    """A named array: ``data`` holds it packed, row by row, little-endian; ``datatype`` is a key of `DATATYPES`, or
    `BYTES`."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: bytes

    @staticmethod
    def of(name: str, array: NDArray[np.generic]) -> Tensor:
        """Raises `InvalidRequest` if the protocol has no name for the array's numbers."""
        datatype = datatype_of(array.dtype, name)
        return Tensor(name, datatype, array.shape, array.astype(DATATYPES[datatype], copy=False).tobytes())

    @staticmethod
    def of_bytes(name: str, elements: Sequence[bytes], shape: tuple[int, ...] | None = None) -> Tensor:
        """Of datatype `BYTES`; without a ``shape`` it is ``[elements]``."""
        data = b"".join(part for each in elements for part in (_LENGTH.pack(len(each)), each))
        return Tensor(name, BYTES, (len(elements),) if shape is None else shape, data)

    def elements(self) -> list[bytes]:
        """Those of a tensor of `BYTES`, row by row. Raises `InvalidRequest` for numbers, or data that do not fit."""
        if self.datatype != BYTES:
            raise InvalidRequest(f"tensor {self.name!r} is {self.datatype}: send BYTES", param=self.name)
        found: list[bytes] = []
        at, end, num_elements = 0, len(self.data), math.prod(self.shape)
        while at + _LENGTH.size <= end and len(found) < num_elements:
            (size,) = _LENGTH.unpack_from(self.data, at)
            at += _LENGTH.size + size
            found.append(self.data[at - size : at])
        if at != end or len(found) != num_elements:
            raise InvalidRequest(
                f"tensor {self.name!r} has {end} bytes, which are not the {num_elements} elements of BYTES that its "
                f"shape {list(self.shape)} says: send each as its length, in four bytes, and so many bytes",
                param=self.name,
            )
        return found

    def array(self) -> NDArray[np.generic]:
        """A view, not writable. Raises `InvalidRequest` if the bytes do not fit type and shape."""
        dtype = DATATYPES.get(self.datatype)
        if dtype is None:
            raise InvalidRequest(
                f"tensor {self.name!r} is of datatype {self.datatype!r}: use one of {', '.join(DATATYPES)}",
                param=self.name,
            )
        needed = dtype.itemsize * math.prod(self.shape)
        if len(self.data) != needed:
            raise InvalidRequest(
                f"tensor {self.name!r} has {len(self.data)} bytes, but {self.datatype} of shape {list(self.shape)} "
                f"takes {needed}",
                param=self.name,
            )
        try:
            return np.frombuffer(self.data, dtype).reshape(self.shape)
        except ValueError as fault:  # nothing in it, and sizes that nobody could number
            raise InvalidRequest(
                f"tensor {self.name!r} cannot have the shape {list(self.shape)}: {fault}", param=self.name
            ) from None


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """An input or output of a model. -1 in ``shape``: any size."""

    name: str
    datatype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """What callers must know of a model before they ask. For the task ``generate`` there are only a ``note``,
    ``step_times``, and the ``tool_format``: how its answers call functions (`protocol.tools.ToolFormat`).

    ``labels`` are the classes of a classifier, in the order of its scores; ``note`` is for people. ``step_times`` are
    pairs of a number of sequences and the seconds that a decoding step of so many took in WARMING, smallest first.
    """

    inputs: tuple[TensorInfo, ...] = ()
    outputs: tuple[TensorInfo, ...] = ()
    labels: tuple[str, ...] = ()
    note: str = ""
    step_times: tuple[tuple[int, float], ...] = ()
    tool_format: str = ""


def datatype_of(dtype: np.dtype[np.generic], name: str) -> str:
    """The protocol's name for numbers of ``dtype``. Raises `InvalidRequest` naming tensor ``name`` if it has none."""
    found = _NAMES.get(dtype.newbyteorder("<"))
    if found is None:
        raise InvalidRequest(f"tensor {name!r} holds {dtype}, which is none of {', '.join(DATATYPES)}", param=name)
    return found
