"""Weights that become wider are so layer by layer as they are quantised, and the numbers are the same as ever."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from jupyter_dsserve.engine import loader
from jupyter_dsserve.engine.filed import FiledLinear, filed_dtype, linears_filed
from jupyter_dsserve.engine.pretrained import config_at, model_at
from jupyter_dsserve.engine.quantize import quantise_linears
from jupyter_dsserve.engine.ragged import RaggedRunner
from tests.engine.tiny_models import answers, load, random_prompts, save_architecture


def save_bf16(name: str, folder: Path, **changes: Any) -> Path:
    model = AutoModelForCausalLM.from_pretrained(save_architecture(name, folder, **changes), dtype=torch.bfloat16)
    model.save_pretrained(folder)
    return folder


def quantised(folder: Path) -> RaggedRunner:
    return load(folder, quantize="int8", min_agreement=0.0)


def bits(weight: torch.Tensor) -> torch.Tensor:
    """A quantised one is made of whole numbers, which as floats may be none."""
    return weight.detach().contiguous().view(torch.uint8)


# Gemma computes a number of its own from the config, which in bf16 is another one; a tied embedding is a layer too.
@pytest.mark.parametrize(("name", "changes"), [("llama", {}), ("gemma2", {}), ("qwen2", {"tie_word_embeddings": True})])
def test_answers_and_agreement_are_as_if_all_had_been_converted_first(
    name: str, changes: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, prompts = save_bf16(name, tmp_path, **changes), random_prompts((40, 7, 25))
    filed = quantised(folder)
    monkeypatch.setattr(loader, "filed_dtype", lambda *_: None)
    before = quantised(folder)
    filed.check()
    before.check()
    assert filed.info.note == before.info.note != ""
    weights, expected = dict(filed._model.named_parameters()), dict(before._model.named_parameters())
    assert {n: w.dtype for n, w in weights.items()} == {n: w.dtype for n, w in expected.items()}
    assert all(torch.equal(bits(weight), bits(expected[name])) for name, weight in weights.items())
    assert answers(filed, prompts, 12) == answers(before, prompts, 12)
    assert not [m for m in filed._model.modules() if isinstance(m, FiledLinear)]


def test_until_then_linear_weights_are_as_in_the_files_and_compute_as_wide_ones(tmp_path: Path) -> None:
    folder = save_bf16("llama", tmp_path)
    config = config_at(str(folder))
    wide = model_at(AutoModelForCausalLM, str(folder), config, torch.float32, lambda _: None)
    with linears_filed(filed_dtype(str(folder), config, torch.float32)):
        model = model_at(AutoModelForCausalLM, str(folder), config, torch.float32, lambda _: None)
    dtypes = {type(m): m.weight.dtype for m in model.modules() if getattr(m, "weight", None) is not None}
    assert dtypes.pop(FiledLinear) == torch.bfloat16
    assert set(dtypes.values()) == {torch.float32}
    tokens = torch.tensor([[5, 6, 7, 8]])
    with torch.inference_mode():
        assert torch.equal(model(tokens).logits, wide(tokens).logits)
    assert type(torch.nn.Linear(2, 2)) is torch.nn.Linear, "others are made as ever"
    quantise_linears(model, "int8", torch.float32)
    assert not [m for m in model.modules() if isinstance(m, FiledLinear)]


def test_what_does_not_become_wider_or_is_no_number_by_itself_loads_as_ever(tmp_path: Path) -> None:
    narrow, wide = save_bf16("llama", tmp_path / "bf16"), save_architecture("llama", tmp_path / "fp32")
    config = config_at(str(narrow))
    assert filed_dtype(str(narrow), config, torch.float32) == torch.bfloat16
    assert filed_dtype(str(narrow), config, torch.bfloat16) is None
    assert filed_dtype(str(wide), config_at(str(wide)), torch.float32) is None
    assert filed_dtype("org/name", config, torch.float32) is None
    config.quantization_config = {"quant_method": "gptq"}
    assert filed_dtype(str(narrow), config, torch.float32) is None


@pytest.mark.parametrize("kind", ["int8", "int4"])
def test_half_precision_is_made_of_fewer_bits_without_a_kernel_that_would_have_to_be_built(kind: str) -> None:
    torch.manual_seed(0)
    model = torch.nn.Module()
    model.embedding, model.layer = torch.nn.Embedding(2, 2), torch.nn.Linear(128, 256)
    model.get_input_embeddings = lambda: model.embedding
    rows = torch.randn(3, 128).half()
    with torch.inference_mode():
        plain = model.half().layer(rows)
        quantise_linears(model, kind, torch.float16)
        off = (model.layer(rows) - plain).abs().max() / plain.abs().max()
    assert off < (0.02 if kind == "int8" else 0.2)
