"""Names what lies in a model's directory, without reading gigabytes: to notice that it is not what was registered."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from jupyter_dsserve.adapter import Adapter
from jupyter_dsserve.protocol.errors import Conflict, InvalidRequest

# What a load reads. A training run writes other things beside it (optimizer states, logs), and a person a README.
_SUFFIXES = frozenset((".gguf", ".jinja", ".json", ".model", ".onnx", ".onnx_data", ".pt2", ".safetensors", ".txt"))
_BESIDE_ONNX = ".onnx.data"  # weights over protobuf's limit
_NOT_READ = frozenset(("trainer_state.json", "training_args.json", "all_results.json", "train_results.json"))
_WHOLE_BYTES = 1 << 20  # a file up to this size is read whole
# Of a larger one: its beginning, its end and pieces between. A training step changes nearly every weight, so that any
# piece shows it; what a sample can miss is a change of a few bytes by hand that keeps size and header.
_NUM_PIECES = 32
_PIECE_BYTES = 4096
_MAX_HEADER_BYTES = 16 << 20


async def content_at(path: str) -> str:
    """`content_of`, off the loop: the directory may lie on a slow network. Raises `InvalidRequest` for what cannot be
    read."""
    try:
        return await asyncio.to_thread(content_of, path)
    except OSError as fault:
        raise InvalidRequest(f"model {path!r} cannot be read ({fault.strerror}): check its permissions") from None


def check_content(version: str, registered: str, found: str, model: str) -> None:
    """Raises `Conflict` if a directory does not hold any more what it held when ``version`` was registered."""
    if registered and found != registered:
        raise Conflict(
            f"{model} has changed since {version} was registered (content {registered}, now {found or 'gone'}): "
            "versions never change, so load it as another version, or put back what was there",
            param="model",
        )


def content_of(path: str) -> str:
    """16 hex digits of SHA-256 over the names, sizes and content of the model's files at ``path``, and of its base's if
    it is an adapter; of files over a MiB their header and 32 pieces of 4 KiB. Empty for what is no path, a hub name
    say. Raises OSError for what cannot be read."""
    if not os.path.exists(path):
        return ""
    digest = hashlib.sha256()
    places = [Path(path)]
    if (adapter := Adapter.read(places[0])) and os.path.isdir(adapter.base):
        places.append(Path(adapter.base))
    for place in places:
        for name, file in _files(place):
            digest.update(f"\0{name}\0{file.stat().st_size}\0".encode())
            with file.open("rb") as opened:
                for piece in _pieces(opened, file):
                    digest.update(piece)
    return digest.hexdigest()[:16]


def _files(place: Path) -> Iterator[tuple[str, Path]]:
    """By name: the files that a load reads, of the directory and of those in it (sentence-transformers has such)."""
    if place.is_file():
        yield place.name, place
        return
    found = [p for p in place.iterdir() if p.is_file()]
    inside = [d for d in place.iterdir() if d.is_dir() and not d.name.startswith((".", "checkpoint-"))]
    found += [p for d in inside for p in d.iterdir() if p.is_file()]
    for file in sorted(found):
        is_read = file.suffix in _SUFFIXES or file.name.endswith(_BESIDE_ONNX)
        if is_read and file.name not in _NOT_READ:
            yield str(file.relative_to(place)), file


def _pieces(opened: BinaryIO, file: Path) -> Iterator[bytes]:
    size = file.stat().st_size
    if size <= _WHOLE_BYTES:
        yield opened.read()
        return
    if file.suffix == ".safetensors":  # the names, types and places of all tensors
        header = int.from_bytes(opened.read(8), "little")
        yield opened.read(min(header, _MAX_HEADER_BYTES))
    for index in range(_NUM_PIECES):
        opened.seek((size - _PIECE_BYTES) * index // (_NUM_PIECES - 1))
        yield opened.read(_PIECE_BYTES)
