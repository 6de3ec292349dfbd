"""An encoder that `onnx_export` made, served as what it was made of: the tokenizer is here, the rest in the graph."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from jupyter_dsserve.engine.batcher import Limits
from jupyter_dsserve.engine.encoder import EncoderRunner, encoder_config
from jupyter_dsserve.engine.hf_tokenizer import HFTokenizer
from jupyter_dsserve.engine.host import num_cores
from jupyter_dsserve.engine.loader import Progress
from jupyter_dsserve.engine.onnx import OnnxProgram
from jupyter_dsserve.engine.pooling import Pooling
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.export import ENCODER_INPUTS, FILE, TYPES
from jupyter_dsserve.protocol.spec import WorkerSpec


class _OnnxEncoder(EncoderRunner):
    """Says of the graph where it computes."""

    _engine: _Graph

    @property
    def device(self) -> str:
        return self._engine.program.device

    def device_bytes(self) -> int:
        return self._engine.program.device_bytes()


class _Graph:
    """What `EncoderRunner` takes for an engine: arrays go through onnxruntime, and come back as rows."""

    def __init__(self, program: OnnxProgram, config: Any) -> None:
        self.program = program
        self._has_types = TYPES in {info.name for info in program.inputs}
        forward = self._with_types if self._has_types else self._without_types  # whose signature is looked at
        # Arrays are handed over on the CPU, wherever the graph computes.
        self.module = SimpleNamespace(device=torch.device("cpu"), dtype=torch.float32, config=config, forward=forward)

    def __call__(self, **inputs: torch.Tensor) -> torch.Tensor:
        if self._has_types:
            inputs.setdefault(TYPES, torch.zeros_like(inputs["input_ids"]))
        (rows,) = self.program({name: tensor.numpy() for name, tensor in inputs.items()}).values()
        return torch.from_numpy(rows)

    def _with_types(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor
    ) -> torch.Tensor:
        return self(input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids)

    def _without_types(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self(input_ids=input_ids, attention_mask=attention_mask)


def load_onnx_encoder(spec: WorkerSpec, folder: str, progress: Progress) -> EncoderRunner:
    """Load what `onnx_export` wrote into ``folder``. Raises `InvalidRequest` for another file, or another task."""
    if spec.dtype not in ("auto", "fp32"):
        raise InvalidRequest(
            f"dtype is {spec.dtype}, but an encoder in ONNX computes in fp32: leave dtype out", param="dtype"
        )
    path = str(Path(folder) / FILE)
    config = encoder_config(folder, spec.task == "classify")
    progress("weights", 0.1)
    program = OnnxProgram(path, spec.device, spec.num_threads or max(1, num_cores() - 1))
    facts = program.facts
    if facts.get("dsserve.task") != spec.task or {i.name for i in program.inputs} - {TYPES} != {*ENCODER_INPUTS}:
        raise InvalidRequest(
            f"model {path} was not made for the task {spec.task}: make it with jupyter dsserve export onnx --task "
            f"{spec.task}, or serve it as named tensors with the task tensor",
            param="model",
        )
    progress("tokenizer", 0.9)
    tokenizer = HFTokenizer.load(folder, frozenset(), int(facts["dsserve.vocab_size"]))
    max_length = min(n for n in (spec.max_context, int(facts["dsserve.max_length"])) if n > 0)
    progress("loaded", 1.0)
    (output,) = program.outputs
    is_classifier = spec.task == "classify"
    return _OnnxEncoder(
        _Graph(program, config),
        tokenizer.cutting(max_length),
        lambda rows, _lengths: rows,
        output,
        Limits(spec.max_step_tokens, spec.max_sequences),
        labels=tuple(config.id2label[number] for number in range(config.num_labels)) if is_classifier else (),
        written=str if is_classifier else Pooling.read(folder).written,
        note=f"{facts['dsserve.note']}; by onnxruntime on {program.device}",
    )
