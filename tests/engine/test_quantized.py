"""Quantised checkpoints: what loads here answers as its dequantised weights do, the rest is refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from jupyter_dsserve.protocol.errors import InvalidRequest
from tests.engine import tiny_models

BLOCK = 128  # of FP8 weights with a scale of their own
PROMPTS = [[5, 6, 7, 8], [40, 3, 99]]


def save_llama(folder: Path, quantization: dict[str, Any] | None = None) -> Path:
    sizes = {"hidden_size": BLOCK, "intermediate_size": BLOCK, "num_attention_heads": 4, "num_key_value_heads": 4}
    tiny_models.save_architecture("llama", folder, **sizes)
    if quantization:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": quantization}))
    return folder


def test_fp8_weights_answer_as_what_they_stand_for(tmp_path: Path) -> None:
    """On a machine without a GPU they are dequantised when they are loaded."""
    settings = {"quant_method": "fp8", "weight_block_size": [BLOCK, BLOCK], "activation_scheme": "dynamic"}
    quantized, plain = save_llama(tmp_path / "fp8", settings), save_llama(tmp_path / "plain")
    stored, meant = {}, {}
    for name, weight in load_file(plain / "model.safetensors").items():
        stored[name] = meant[name] = weight
        if "proj" in name:
            scale = weight.abs().amax() / 448  # the largest FP8 number
            stored[name] = (weight / scale).to(torch.float8_e4m3fn)
            stored[f"{name}_scale_inv"] = scale.reshape(1, 1)
            meant[name] = stored[name].float() * scale
    save_file(stored, quantized / "model.safetensors", metadata={"format": "pt"})
    before = tiny_models.answers(tiny_models.load(plain), PROMPTS, 12)
    save_file(meant, plain / "model.safetensors", metadata={"format": "pt"})
    expected = tiny_models.answers(tiny_models.load(plain), PROMPTS, 12)
    assert tiny_models.answers(tiny_models.load(quantized), PROMPTS, 12) == expected != before


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"quant_method": "awq", "bits": 4, "group_size": 32}, "AWQ quantized model requires gptqmodel"),
        ({"quant_method": "gptq", "bits": 4, "group_size": 32}, "GPTQ quantized model requires|GPU is required"),
        ({"quant_method": "fbgemm_fp8"}, "fbgemm fp8 quantization requires"),
    ],
)
def test_what_transformers_cannot_load_here_is_refused_by_name(
    settings: dict[str, Any], words: str, tmp_path: Path
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        tiny_models.load(save_llama(tmp_path, settings))
