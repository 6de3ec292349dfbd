"""Bodies of ``infer`` in both directions: JSON, raw tensors after it, tensors in shared memory, and compression.

Triton's extension for binary data: the JSON is as long as the header `HEADER_LENGTH` says, and the tensors that have a
``binary_data_size`` follow in their order, little-endian, row by row.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Annotated, Any, Literal

import numpy as np
import orjson
from pydantic import Field

from jupyter_dsserve.gateway.bodies import Body, read_body
from jupyter_dsserve.protocol.errors import EngineFailure, InvalidRequest, TooLarge
from jupyter_dsserve.protocol.tensors import BYTES, DATATYPES, Tensor

Json = dict[str, Any]
HEADER_LENGTH = "Inference-Header-Content-Length"
_WINDOW_BITS = {"gzip": 31, "deflate": 15}  # as zlib numbers their formats

# In shared memory, of a call: a message to a worker holds less than 2 GiB.
MAX_SHARED_BYTES = 1 << 30

Size = Annotated[int, Field(ge=0, lt=2**63)]
RegionName = Annotated[str, Field(min_length=1, max_length=200)]


@dataclass(frozen=True, slots=True)
class Place:
    """``num_bytes`` of a region, ``offset`` bytes after its start."""

    region: str
    offset: int
    num_bytes: int


Read = Callable[[Place], bytes]
Write = Callable[[Place, bytes], None]


Ints = Literal["UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"]
Datatype = Literal["BOOL", Ints, "FP16", "FP32", "FP64", "BF16", "BYTES"]


class Shared(Body):
    """Where a tensor lies in a region that was registered."""

    shared_memory_region: RegionName | None = None
    shared_memory_byte_size: Size | None = None
    shared_memory_offset: Size = 0

    def place(self, name: str) -> Place | None:
        """Raises `InvalidRequest` if only half of it is said."""
        if self.shared_memory_region is None and self.shared_memory_byte_size is None:
            return None
        if self.shared_memory_region is None or self.shared_memory_byte_size is None:
            raise InvalidRequest(
                f"tensor {name!r} has one of shared_memory_region and shared_memory_byte_size: send both", param=name
            )
        return Place(self.shared_memory_region, self.shared_memory_offset, self.shared_memory_byte_size)


class InputParameters(Shared):
    binary_data_size: Size | None = None


class InputTensor(Body):
    """``data`` is nested as ``shape`` says, or flat; without it the tensor is raw after the JSON, or in a region."""

    name: str
    shape: Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(max_length=64)]
    datatype: Datatype
    data: list[Any] | None = None
    parameters: InputParameters | None = None

    @property
    def place(self) -> Place | None:
        return self.parameters.place(self.name) if self.parameters else None

    def tensor(self) -> Tensor:
        """That of ``data``. Raises `InvalidRequest` naming the input if it is not of the datatype, or not as many as
        the shape says."""
        found = self._found()
        if found.size != math.prod(self.shape) or (found.ndim > 1 and found.shape != tuple(self.shape)):
            raise self.refused(f"data has the shape {list(found.shape)}, not {self.shape}, which is what shape says")
        if self.datatype == BYTES:
            return Tensor.of_bytes(self.name, [text.encode() for text in found.ravel().tolist()], tuple(self.shape))
        if not np.isfinite(found).all():
            raise self.refused("data has NaN or an infinity, which JSON does not know")
        with np.errstate(over="ignore"):
            array = found.astype(DATATYPES[self.datatype])
        if not np.isfinite(array).all():
            raise self.refused(f"data has numbers too large for {self.datatype}: send smaller ones")
        try:
            return Tensor.of(self.name, array.reshape(self.shape))
        except ValueError as fault:
            raise self.refused(f"an array of the shape {self.shape} cannot be: {fault}") from None

    def _found(self) -> np.ndarray[Any, Any]:
        is_bytes = self.datatype == BYTES
        if not is_bytes:
            self._check_numbers()
        dtype = np.dtype(object) if is_bytes else DATATYPES[self.datatype]
        try:
            found = np.array(self.data, object if is_bytes else None) if self.data else np.empty(0, dtype)
        except ValueError:
            raise self.uneven() from None
        fits = all(isinstance(each, str) for each in found.flat) if is_bytes else found.dtype.kind in _kinds(dtype)
        if not fits:
            raise self.of_other_kinds()
        if dtype.kind in "iu" and found.size:
            limits: Any = np.iinfo(dtype)
            if not limits.min <= found.min() <= found.max() <= limits.max:
                raise self.refused(f"data has numbers outside {self.datatype}, {limits.min} to {limits.max}")
        return found

    def _check_numbers(self) -> None:
        """Before numpy sees them: of texts it makes cells that are all as wide as the longest one."""
        level = self.data or []
        while (kinds := set(map(type, level))) == {list}:
            level = list(chain.from_iterable(level))
        if list in kinds:
            raise self.uneven()
        if not kinds <= {int, float, bool}:
            raise self.of_other_kinds()

    def raw(self, data: bytes) -> Tensor:
        """The tensor whose bytes are ``data``. Raises `InvalidRequest` naming it if they do not fit."""
        tensor = Tensor(self.name, self.datatype, tuple(self.shape), data)
        if self.datatype == BYTES:
            return tensor  # whoever reads its elements checks them
        tensor.array()
        if self.datatype == "BOOL" and np.frombuffer(data, np.uint8).max(initial=0) > 1:
            raise self.refused("raw BOOL has bytes other than 0 and 1")
        return tensor

    def uneven(self) -> InvalidRequest:
        return self.refused("data is nested unevenly: nest it as the shape says, or send it flat")

    def of_other_kinds(self) -> InvalidRequest:
        return self.refused(f"data holds other things than {self.datatype}: send only such")

    def refused(self, what: str) -> InvalidRequest:
        return InvalidRequest(f"input {self.name!r}: {what}", param=self.name)


def _kinds(dtype: np.dtype[Any]) -> str:
    """Of numpy, which JSON's numbers may be to become ``dtype``."""
    return {"b": "b", "i": "iu", "u": "iu"}.get(dtype.kind, "iuf")


class OutputParameters(Shared):
    binary_data: bool | None = None


class OutputTensor(Body):
    name: str
    parameters: OutputParameters | None = None

    @property
    def place(self) -> Place | None:
        return self.parameters.place(self.name) if self.parameters else None


class InferBody(Body):
    """``parameters`` hold ``binary_data_output``, ``priority``, ``timeout`` (microseconds), and those of the model."""

    id: str = ""
    inputs: Annotated[list[InputTensor], Field(min_length=1)]
    outputs: list[OutputTensor] | None = None
    parameters: dict[str, Any] | None = None

    @property
    def wanted(self) -> list[str]:
        return [each.name for each in self.outputs or ()]

    @property
    def own_parameters(self) -> Json:
        """Those that are the model's."""
        return {name: value for name, value in (self.parameters or {}).items() if name != "binary_data_output"}

    @property
    def is_binary(self) -> bool:
        """Whether outputs are raw unless they say otherwise. Raises `InvalidRequest`."""
        said = (self.parameters or {}).get("binary_data_output", False)
        if not isinstance(said, bool):
            raise InvalidRequest("binary_data_output is no true or false: send one", param="binary_data_output")
        return said


# ---- what comes


def inflated(raw: bytes, coding: str, max_bytes: int) -> bytes:
    """A body by its ``Content-Encoding``. Raises `TooLarge` over ``max_bytes``, `InvalidRequest` for what is broken."""
    if coding in ("", "identity"):
        return raw
    if coding not in _WINDOW_BITS:
        raise InvalidRequest(
            f"Content-Encoding is {coding!r}: send gzip, deflate, or the body as it is", param="Content-Encoding"
        )
    reader = zlib.decompressobj(_WINDOW_BITS[coding])
    try:
        found = reader.decompress(raw, max_bytes + 1)
    except zlib.error as fault:
        raise InvalidRequest(f"the body is no {coding} ({fault})") from None
    if len(found) > max_bytes:
        raise TooLarge(f"the body inflates to more than {max_bytes} bytes, which is the limit: send a smaller one")
    if not reader.eof or reader.unused_data:
        raise InvalidRequest(f"the body is no whole {coding}, or more than one: send one")
    return found


def read_infer(raw: bytes, header_length: str | None) -> tuple[InferBody, memoryview]:
    """The JSON of a body, and the raw tensors after it. Raises `InvalidRequest`."""
    length = len(raw)
    if header_length is not None:
        if not (header_length.isascii() and header_length.isdecimal() and int(header_length[:20]) <= len(raw)):
            raise InvalidRequest(
                f"{HEADER_LENGTH} is {header_length[:40]!r}, and the body has {len(raw)} bytes: send how many of them "
                "are JSON",
                param=HEADER_LENGTH,
            )
        length = int(header_length)
    return read_body(InferBody, raw[:length]), memoryview(raw)[length:]


def read_tensors(body: InferBody, rest: memoryview, read: Read) -> list[Tensor]:
    """``rest`` are the raw tensors; ``read`` gives what lies in a region. Raises `InvalidRequest` naming the tensor."""
    found, at, num_shared = [], 0, 0
    for each in body.inputs:
        size = each.parameters.binary_data_size if each.parameters else None
        place = each.place
        if [each.data is None, size is None, place is None].count(False) != 1:
            raise each.refused("send one of data, binary_data_size and shared_memory_region")
        if place:
            num_shared += place.num_bytes
            if num_shared > MAX_SHARED_BYTES:
                raise each.refused(f"the call's shared memory is over {MAX_SHARED_BYTES} bytes: make several calls")
            found.append(each.raw(read(place)))
        elif size is None:
            found.append(each.tensor())
        else:
            if at + size > len(rest):
                raise each.refused(
                    f"binary_data_size is {size}, and {len(rest) - at} bytes are left after the JSON (is the header "
                    f"{HEADER_LENGTH} right?)"
                )
            found.append(each.raw(bytes(rest[at : at + size])))
            at += size
    if at != len(rest):
        raise InvalidRequest(f"{len(rest) - at} bytes after the JSON belong to no input: say binary_data_size of each")
    return found


# ---- what goes


def answered(
    head: Json, tensors: Sequence[Tensor], body: InferBody, is_binary: bool, write: Write
) -> tuple[bytes, int | None]:
    """The body of an answer: ``head`` with the outputs, and the length of its JSON if raw tensors follow.
    ``is_binary``: outputs are raw unless they say otherwise.

    Raises `InvalidRequest` naming an output that is larger than its place in shared memory, or that JSON cannot carry.
    """
    asked: Mapping[str, OutputTensor] = {each.name: each for each in body.outputs or ()}
    told: list[Json] = []
    parts: list[bytes] = []
    for tensor in tensors:
        own: Json = {"name": tensor.name, "shape": list(tensor.shape), "datatype": tensor.datatype}
        output = asked.get(tensor.name)
        said = output.parameters.binary_data if output and output.parameters else None
        if output and (place := output.place):
            own["parameters"] = put(tensor, place, write)
        elif is_binary if said is None else said:
            own["parameters"] = {"binary_data_size": len(tensor.data)}
            parts.append(tensor.data)
        else:
            own["data"] = _data(tensor)
        told.append(own)
    text = orjson.dumps(head | {"outputs": told})
    return (b"".join((text, *parts)), len(text)) if parts else (text, None)


def put(tensor: Tensor, place: Place, write: Write) -> Json:
    size = len(tensor.data)
    if size > place.num_bytes:
        raise InvalidRequest(
            f"output {tensor.name!r} has {size} bytes, and its shared_memory_byte_size is {place.num_bytes}: give it "
            "more room",
            param=tensor.name,
        )
    write(place, tensor.data)
    return {
        "shared_memory_region": place.region,
        "shared_memory_offset": place.offset,
        "shared_memory_byte_size": size,
    }


def _data(tensor: Tensor) -> list[Any]:
    remedy = f"output {tensor.name!r} {{}}, which JSON does not know: ask for it with binary_data"
    if tensor.datatype == BYTES:
        try:
            return [element.decode() for element in tensor.elements()]
        except UnicodeDecodeError:
            raise InvalidRequest(remedy.format("is no text"), param=tensor.name) from None
    array = tensor.array()
    if array.dtype.kind not in "biu" and not np.isfinite(array).all():
        raise EngineFailure(remedy.format("has NaN or an infinity"))
    return array.ravel().tolist()
