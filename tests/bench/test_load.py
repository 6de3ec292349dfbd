"""A load takes little more memory of its own than the weights, also where it converts them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from tests.bench.bench_load import measure, weights_mib
from tests.bench.models import make_model

# Of modules that a load imports, of oneDNN, and of the first forward passes, whatever the model.
FIXED_MIB = 60


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model("SM", tmp_path_factory.mktemp("models"))


def test_a_checkpoint_converted_as_it_is_loaded_is_never_in_memory_twice(model: Path) -> None:
    loaded = measure(model, "bf16")
    weights = weights_mib(model, "bf16")
    assert weights > 90
    assert weights * 0.9 < loaded.own_mib < weights * 1.2 + FIXED_MIB


def test_one_that_is_kept_in_fewer_bits_is_never_whole_at_its_full_size(model: Path, tmp_path: Path) -> None:
    half = AutoModelForCausalLM.from_pretrained(model, dtype=torch.bfloat16)
    half.save_pretrained(tmp_path)
    for file in model.glob("tokenizer*"):
        (tmp_path / file.name).symlink_to(file)
    loaded = measure(tmp_path, "fp32", quantize="int8", min_agreement=0)
    weights = weights_mib(tmp_path, "fp32")
    assert weights > 180
    assert weights * 0.3 < loaded.own_mib < weights * 0.75 + FIXED_MIB
