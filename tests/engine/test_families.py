"""Every family that can be made tiny answers as `generate` does, or is refused by name: batched, alone, in chunks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from jupyter_dsserve.engine.loader import load_checked
from jupyter_dsserve.engine.padded import PaddedRunner
from jupyter_dsserve.engine.ragged import RaggedRunner
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.spec import WorkerSpec
from tests.engine import families, tiny_models

NUM_TOKENS = 10
NUM_DISTINCT = 3  # in each answer: a model that repeats one token proves little
LENGTHS = (45, 2, 11, 13)  # of prompts: over several chunks and windows, and around one window
NUM_STEP_TOKENS = 16


def generate(folder: Path, prompts: list[list[int]]) -> list[list[int]]:
    """The reference: one prompt at a time, by transformers' own loop, cache and attention."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def answer(prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt])
        # Without a mask `generate` would take token 0 for padding.
        out: Any = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS, do_sample=False)
        return out[0, len(prompt) :].tolist()

    return [answer(prompt) for prompt in prompts]


def load(folder: Path) -> RaggedRunner | PaddedRunner:
    spec = WorkerSpec(str(folder), dtype="fp32", device="cpu", num_threads=1, max_step_tokens=NUM_STEP_TOKENS)
    runner = load_checked(spec, str(folder), lambda stage, done: None)
    assert isinstance(runner, RaggedRunner | PaddedRunner)
    return runner


def agree(runner: RaggedRunner | PaddedRunner, folder: Path) -> None:
    prompts = tiny_models.random_prompts(LENGTHS)
    expected = generate(folder, prompts)
    assert min(len(set(answer)) for answer in expected) >= NUM_DISTINCT
    assert tiny_models.answers(runner, prompts, NUM_TOKENS) == expected
    assert tiny_models.answers(runner, prompts[:1], NUM_TOKENS) == expected[:1]


@pytest.mark.parametrize("name", families.names(families.RAGGED))
def test_a_family_with_attention_that_can_be_replaced_runs_ragged_and_answers_as_generate_does(
    name: str, tmp_path: Path
) -> None:
    runner = load(families.save(name, tmp_path))
    assert runner.kind == "ragged"
    agree(runner, tmp_path)


@pytest.mark.parametrize("name", families.names(families.PADDED))
def test_any_other_family_runs_padded_and_answers_as_generate_does(name: str, tmp_path: Path) -> None:
    runner = load(families.save(name, tmp_path))
    assert runner.kind.startswith("padded: ")
    agree(runner, tmp_path)


@pytest.mark.parametrize("name", families.names(families.EITHER))
def test_a_family_that_some_releases_batch_answers_as_generate_does(name: str, tmp_path: Path) -> None:
    agree(load(families.save(name, tmp_path)), tmp_path)


@pytest.mark.parametrize("name", families.names(families.REFUSED))
def test_what_no_runner_computes_as_it_should_is_refused_by_name(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"\((Bert|ProphetNet|Roberta|XLNet)(LM|For).*another architecture"):
        load(families.save(name, tmp_path))
