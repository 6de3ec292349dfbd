"""Small exported programs, made where they are needed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from jupyter_dsserve.engine.program import ProgramRunner, load_program
from jupyter_dsserve.protocol.request import Features, Request
from jupyter_dsserve.protocol.spec import WorkerSpec
from jupyter_dsserve.protocol.tensors import Tensor


class Scorer(nn.Module):
    """Two named inputs, ``[rows, 4]`` and ``[rows]``; a score a class, and the best class."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.embedding = nn.Embedding(10, 3)

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self.linear(x) + self.embedding(ids)
        return {"score": found.softmax(-1), "label": found.argmax(-1)}


def scorer() -> Scorer:
    torch.manual_seed(0)
    return Scorer().eval()


def save_scorer(path: Path, most: int | None = None) -> Path:
    batch = torch.export.Dim("batch", max=most)
    inputs = (torch.randn(2, 4), torch.zeros(2, dtype=torch.long))
    return save_exported(scorer(), path, inputs, {"x": {0: batch}, "ids": {0: batch}})


def save_exported(module: nn.Module, path: Path, inputs: Any, dynamic: Any = None) -> Path:
    torch.export.save(torch.export.export(module, inputs, dynamic_shapes=dynamic), path)
    return path


def save_onnx(path: Path, rows: Any = "batch", op: str = "Relu", out: Any = "batch") -> Path:
    """``y = op(x @ w)``, ``x`` of shape ``[rows, 4]``."""
    weights = np.arange(12, dtype=np.float32).reshape(4, 3) - 6
    attributes = {"axis": 0} if op == "Softmax" else {}
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["h"]), helper.make_node(op, ["h"], ["y"], **attributes)],
        "small",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [rows, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [out, 3])],
        [numpy_helper.from_array(weights, "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
    return path


def load(path: Path, max_rows: int = 8, **settings: Any) -> ProgramRunner:
    """Loaded and checked."""
    spec = WorkerSpec(str(path), task="tensor", runner="program", device="cpu", num_threads=1, **settings)
    runner = ProgramRunner(load_program(spec, str(path)), max_rows)
    runner.check()
    return runner


def request(id: str = "a", **arrays: Any) -> Request:
    return Request(id, Features(tuple(Tensor.of(name, np.asarray(value)) for name, value in arrays.items())))
