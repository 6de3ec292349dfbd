"""What the headers of safetensors say of their weights. Read by the gateway before a load, and by the worker."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_MAX_HEADER_BYTES = 100_000_000  # safetensors' own limit


@dataclass(frozen=True, slots=True)
class TensorHeader:
    """One weight as it lies in its file. ``dtype`` is safetensors' word: ``F32``, ``BF16``, ``I64``, …"""

    name: str
    dtype: str
    shape: tuple[int, ...]
    num_bytes: int

    @property
    def num_elements(self) -> int:
        return math.prod(self.shape)

    @property
    def is_float(self) -> bool:
        return self.dtype.startswith(("F", "BF"))


def tensors_in(folder: Path) -> list[TensorHeader]:
    """The weights of all ``*.safetensors`` in a directory; none for anything else.

    Raises `ValueError` or `OSError` for a file that is none.
    """
    return [tensor for file in sorted(folder.glob("*.safetensors")) for tensor in _tensors_of(file)]


def narrow_dtype(tensors: Iterable[TensorHeader]) -> str:
    """``BF16`` or ``F16`` if all matrices are of that; else empty."""
    found = {tensor.dtype for tensor in tensors if tensor.is_float and len(tensor.shape) == 2}
    return found.pop() if found in ({"BF16"}, {"F16"}) else ""


def _tensors_of(file: Path) -> list[TensorHeader]:
    with file.open("rb") as opened:
        size = int.from_bytes(opened.read(8), "little")
        if size > _MAX_HEADER_BYTES:
            raise ValueError(f"{file} is no safetensors file: its header would have {size} bytes")
        header = json.loads(opened.read(size))
    try:
        return [
            TensorHeader(name, one["dtype"], tuple(one["shape"]), one["data_offsets"][1] - one["data_offsets"][0])
            for name, one in header.items()
            if name != "__metadata__"
        ]
    except (AttributeError, KeyError, TypeError, IndexError) as fault:
        raise ValueError(f"{file} is no safetensors file: its header lacks {fault}") from None
