"""What a process that exports a model to ONNX is told, and what it tells."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from jupyter_dsserve.protocol.spec import Task

FILE = "model.onnx"  # in a directory that was made
# The names of an encoder's tensors, in the graph as in the Open Inference Protocol.
ENCODER_INPUTS = ("input_ids", "attention_mask")
TYPES = "token_type_ids"  # one more of a classifier that tells the texts of a pair apart
ENCODER_OUTPUT = {"embed": "embedding", "classify": "probs"}


@dataclass(frozen=True, slots=True)
class ExportSpec:
    """``model``: the directory or hub name of an encoder (tasks ``embed`` and ``classify``), or a ``*.pt2`` (task
    ``tensor``); an empty ``task`` is what its files say. ``out``: the directory to make. ``tolerance``: how far an
    output of onnxruntime may be from torch's, as a share of the largest number in it. ``allow_code``: a ``*.pt2`` may
    be loaded, which can run code from the file."""

    model: str
    out: str
    task: Task | Literal[""] = ""
    tolerance: float = 1e-4
    allow_code: bool = False

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> ExportSpec:
        return ExportSpec(**json.loads(text))


@dataclass(frozen=True, slots=True)
class Exported:
    """``path`` is the ``model.onnx``, ``num_bytes`` its size with the data beside it. ``difference``: the most that an
    output was off from torch's in ``num_checks`` calls of different shapes; ``share``: the same, of the largest number
    in that output."""

    path: str
    task: Task
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    num_bytes: int
    num_checks: int
    difference: float
    share: float

    def __repr__(self) -> str:
        return (
            f"{self.path} ({self.num_bytes / 1e6:.1f} MB), task {self.task}: {', '.join(self.inputs)} → "
            f"{', '.join(self.outputs)}\nonnxruntime and torch differ by at most {self.difference:.2g} "
            f"({self.share:.2g} of the largest number) in {self.num_checks} calls of different shapes"
        )

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> Exported:
        raw = json.loads(text)
        return Exported(**(raw | {"inputs": tuple(raw["inputs"]), "outputs": tuple(raw["outputs"])}))


def is_onnx(path: str | Path) -> bool:
    """Whether ``path`` is the directory of an encoder in ONNX, and not of a checkpoint beside which one lies."""
    return (Path(path) / FILE).is_file() and not any(Path(path).glob("*.safetensors"))
