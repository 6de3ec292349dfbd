"""An adapter answers as peft computes it, beside its base and not merged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from jupyter_dsserve.protocol.errors import InvalidRequest
from tests.engine import tiny_models

PROMPTS = [[5, 6, 7, 8], [40, 3, 99]]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_architecture("llama", tmp_path_factory.mktemp("base"))


def save_adapter(base: Path, folder: Path, **settings: Any) -> Path:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(base)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "v_proj", "down_proj"], task_type="CAUSAL_LM")
    adapted = get_peft_model(model, config)
    with torch.no_grad():
        for name, weights in adapted.named_parameters():
            if "lora_B" in name:
                weights.normal_(0, 0.5)
    adapted.save_pretrained(folder)
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return folder


def theirs(model: Any, num_tokens: int) -> list[list[int]]:
    found = []
    for prompt in PROMPTS:
        out = model.generate(input_ids=torch.tensor([prompt]), max_new_tokens=num_tokens, do_sample=False)
        found.append(out[0, len(prompt) :].tolist())
    return found


def test_it_answers_token_for_token_as_peft_does_and_not_as_its_base(base: Path, tmp_path: Path) -> None:
    before = (base / "model.safetensors").read_bytes()
    save_adapter(base, tmp_path)
    plain = AutoModelForCausalLM.from_pretrained(base)
    of_base = theirs(plain, 12)
    expected = theirs(PeftModel.from_pretrained(plain, tmp_path), 12)
    ours = tiny_models.answers(tiny_models.load(tmp_path), PROMPTS, 12)
    assert ours == expected != of_base
    assert tiny_models.answers(tiny_models.load(base), PROMPTS, 12) == of_base
    assert (base / "model.safetensors").read_bytes() == before


def test_one_of_another_model_is_refused(base: Path, tmp_path: Path) -> None:
    other = tiny_models.save_architecture("llama", tmp_path / "other", hidden_size=32)
    save_adapter(base, tmp_path / "a", base_model_name_or_path=str(other))
    with pytest.raises(InvalidRequest, match="does not fit its base"):
        tiny_models.load(tmp_path / "a")
