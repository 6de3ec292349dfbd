"""The runners compute on a GPU what transformers does there, and what they compute on the CPU."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from jupyter_dsserve.demo import builtin_path
from jupyter_dsserve.engine.encoder import load_encoder
from jupyter_dsserve.engine.exported import ExportedProgram
from jupyter_dsserve.engine.norm import FusedNorm
from jupyter_dsserve.engine.sampling import TorchLogits
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.request import SamplingParams
from jupyter_dsserve.protocol.spec import WorkerSpec
from tests.engine import tiny_encoders, tiny_models
from tests.engine.tiny_programs import save_scorer

PROMPTS = tiny_models.random_prompts([60, 1, 25, 9])
NUM_TOKENS = 12


def generate(folder: Path, device: str, prompt: list[int]) -> list[int]:
    """By transformers alone, in fp32."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.generation_config.pad_token_id = 0
    ids = torch.tensor([prompt], device=device)
    out = model.to(device).generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NUM_TOKENS)
    answer: list[int] = out[0, len(prompt) :].tolist()
    return answer


@pytest.mark.parametrize("name", ["llama", "gemma2"])
def test_greedy_answers_are_those_of_generate_together_and_alone(name: str, device: str, tmp_path: Path) -> None:
    folder = tiny_models.save_architecture(name, tmp_path)
    runner = tiny_models.load(folder, device=device)
    runner.check()
    together = tiny_models.answers(runner, PROMPTS, NUM_TOKENS)
    assert together == [generate(folder, device, prompt) for prompt in PROMPTS]
    assert [tiny_models.answers(runner, [prompt], NUM_TOKENS)[0] for prompt in PROMPTS] == together
    if name == "llama":
        assert any(isinstance(module, FusedNorm) for module in runner._model.modules())


def test_sequences_that_share_a_memory_for_the_context_of_one_answer_as_alone(device: str, tmp_path: Path) -> None:
    folder = tiny_models.save_architecture("llama", tmp_path)
    one = 2 * 3 * 2 * 16 * 4 * 256  # K and V, layers, heads, numbers a head, bytes, tokens
    runner = tiny_models.load(folder, device=device, kv_bytes=2 * one - 1)
    runner.check()
    assert runner.room.is_limited
    assert tiny_models.answers(runner, PROMPTS, NUM_TOKENS) == [generate(folder, device, prompt) for prompt in PROMPTS]


@pytest.mark.parametrize("settings", [{"dtype": "bf16"}, {"quantize": "int8"}, {"quantize": "int4", "dtype": "bf16"}])
def test_fewer_bits_agree_with_the_plain_model(settings: dict[str, Any], device: str) -> None:
    """With the trained one of the package, as it is on the CPU; below the share the check refuses."""
    runner = tiny_models.load(builtin_path("demo-v1"), device=device, min_agreement=0.7, **settings)
    runner.check()
    assert runner.info.note.startswith("agrees with plain transformers on ")
    assert all(len(answer) == NUM_TOKENS for answer in tiny_models.answers(runner, PROMPTS, NUM_TOKENS))


@pytest.mark.gpu
@pytest.mark.parametrize("quantize", ["", "int8", "int4"])
def test_half_precision_computes_on_a_gpu_without_anything_to_build(quantize: str, gpu: str) -> None:
    runner = tiny_models.load(builtin_path("demo-v1"), device=gpu, dtype="fp16", quantize=quantize, min_agreement=0.7)
    runner.check()
    assert tiny_models.answers(runner, PROMPTS, NUM_TOKENS)


@pytest.mark.gpu
def test_what_a_runner_says_it_holds_is_of_the_gpu(gpu: str, tmp_path: Path) -> None:
    runner = tiny_models.load(tiny_models.save_architecture("llama", tmp_path), device=gpu)
    runner.check()
    least = runner.room.max_bytes + sum(p.nbytes for p in runner._model.parameters())
    assert least <= runner.device_bytes() < torch.cuda.get_device_properties(gpu).total_memory


def test_the_same_random_numbers_take_the_same_tokens(device: str) -> None:
    logits = torch.randn(32, 50_000, generator=torch.Generator().manual_seed(0)) * 4
    kinds: list[dict[str, Any]] = [{}, {"top_p": 0.9}, {"top_k": 50, "min_p": 0.02}, {"repetition_penalty": 1.2}]

    def taken(logits: torch.Tensor) -> list[int]:
        asked = [SamplingParams(temperature=0.9, seed=row, **kinds[row % 4]) for row in range(len(logits))]
        return TorchLogits(logits).sample([Sequence("s", [1, 2, 3], sampling) for sampling in asked])

    assert taken(logits.to(device)) == taken(logits)


def test_an_encoder_gives_the_vectors_of_the_cpu(device: str) -> None:
    def vectors(where: str) -> Any:
        spec = WorkerSpec(tiny_encoders.MINILM, task="embed", runner="encoder", dtype="fp32", device=where)
        runner = load_encoder(spec, tiny_encoders.MINILM, lambda stage, done: None)
        runner.check()
        return tiny_encoders.answer(runner, "a cat sat on the mat", "x", "The quick brown fox jumps")

    np.testing.assert_allclose(vectors(device), vectors("cpu"), atol=1e-4)


def test_an_exported_program_gives_the_numbers_of_the_cpu(device: str, tmp_path: Path) -> None:
    path = str(save_scorer(tmp_path / "scorer.pt2"))
    given = {"x": np.ones((3, 4), np.float32), "ids": np.array([1, 2, 3])}
    plain, there = (ExportedProgram(path, where, 1)(given) for where in ("cpu", device))
    np.testing.assert_allclose(there["score"], plain["score"], atol=1e-5)
    assert there["label"].tolist() == plain["label"].tolist()


# In a process of its own: after this it has no GPU any more.
LOST = """
import sys, torch
from jupyter_dsserve.engine.faults import is_device_lost
try:
    torch.zeros(3, device="cuda")[torch.tensor([9], device="cuda")].tolist()
except Exception as fault:
    sys.exit(0 if is_device_lost(fault) else repr(fault))
"""


@pytest.mark.gpu
def test_an_access_out_of_bounds_is_known_as_the_loss_of_the_gpu(gpu: str) -> None:
    done = subprocess.run([sys.executable, "-c", LOST], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
