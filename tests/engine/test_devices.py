"""Nothing of the engine's mixes a GPU's tensors with the CPU's, or reads a GPU's memory as if it were RAM.

By a pretended GPU (`pretended`): the real loader, runners and sampling, with device ``cuda:0``, on tensors that compute
on the CPU and refuse what CUDA refuses. It proves that everything is made where it is used, and that the branches for a
GPU give the CPU's tokens. It does not prove what CUDA's own kernels, dtypes and memory do, nor anything of several
GPUs: see tests/gpu. Not here either: exported programs, DeepSpeed's ranks and its offloading.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from jupyter_dsserve.engine.encoder import load_encoder
from jupyter_dsserve.engine.loader import load_padded
from jupyter_dsserve.engine.paged_cache import PagedCache
from jupyter_dsserve.engine.pooling import Dense, Normalize, Pooling
from jupyter_dsserve.engine.ragged import RaggedRunner
from jupyter_dsserve.engine.runner import Span
from jupyter_dsserve.engine.sampling import TorchLogits
from jupyter_dsserve.engine.scheduler import Scheduler
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import SamplingParams, Structure, StructureKind
from jupyter_dsserve.protocol.spec import WorkerSpec
from tests.engine import families, tiny_encoders, tiny_models
from tests.engine.pretended import GPU, OnGpu, WrongDevice, gpu

DEVICES = ("cpu", "cuda:0")
PROMPTS = tiny_models.random_prompts([60, 1, 25, 9])
NUM_TOKENS = 6


def on_both(answer: Callable[[str], Any]) -> tuple[Any, Any]:
    """What ``answer`` gives for a device's name, on the CPU and on the GPU."""
    plain = answer("cpu")
    with gpu():
        return plain, answer("cuda:0")


def checked(folder: Path, device: str, **settings: Any) -> RaggedRunner:
    runner = tiny_models.load(folder, device=device, **settings)
    assert runner.device == device
    runner.check()
    return runner


@pytest.mark.parametrize(
    "use",
    [
        lambda there, here: there + here,
        lambda there, here: torch.cat([there, here]),
        lambda there, here: here[there.long()],
        lambda there, here: there.numpy(),
        lambda there, here: np.asarray(there),
        lambda there, here: there.data_ptr(),
    ],
)
def test_what_cuda_refuses_is_refused_here(use: Callable[[Any, Any], object]) -> None:
    with gpu():
        there = torch.tensor([1.0, 2.0], device=GPU)
        with pytest.raises(WrongDevice):
            use(there, torch.ones(2))


def test_what_cuda_takes_is_taken_here() -> None:
    with gpu():
        there = torch.arange(3, device=GPU) + torch.tensor(1)
        assert isinstance(there, OnGpu)
        there[torch.tensor([0])] = 7
        assert there[[2, 0]].tolist() == [3, 7]
        assert type(there.cpu()) is torch.Tensor
        assert there.to(GPU) is there


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt-oss"])
def test_a_model_gives_the_same_tokens_there_also_from_what_the_cache_has(name: str, tmp_path: Path) -> None:
    """Windows, soft caps, experts and sinks; chunks of prompts, decoding together, and copies in the cache."""
    folder = tiny_models.save_architecture(name, tmp_path)

    def answer(device: str) -> list[list[list[int]]]:
        runner = checked(folder, device)
        scheduler = Scheduler(runner.room, runner.max_step_tokens)
        twice = [tiny_models.answers(runner, PROMPTS, NUM_TOKENS, scheduler) for _ in range(2)]
        assert scheduler.num_cached > 0
        return twice

    plain, there = on_both(answer)
    assert there == plain


def test_a_quantised_model_gives_the_same_tokens_there(tmp_path: Path) -> None:
    folder = tiny_models.save_architecture("llama", tmp_path)

    def answer(device: str) -> list[list[int]]:
        runner = checked(folder, device, quantize="int4", min_agreement=0.0)
        return tiny_models.answers(runner, PROMPTS[2:], NUM_TOKENS)

    plain, there = on_both(answer)
    assert there == plain


def test_sequences_share_a_memory_that_holds_the_context_of_one_there(tmp_path: Path) -> None:
    """More about its blocks: test_paged_cache."""
    folder = tiny_models.save_architecture("llama", tmp_path)
    plain = tiny_models.load(folder)
    expected = tiny_models.answers(plain, PROMPTS, NUM_TOKENS)
    with gpu():
        runner = checked(folder, "cuda:0", kv_bytes=300 * plain._cache.token_bytes)
        room, cache = runner.room, runner._cache
        assert isinstance(cache, PagedCache)
        assert (room.num_slots, room.num_blocks, room.block_tokens) == (16, 4, 64)
        assert sum(t.nbytes for pair in cache._layers.values() for t in pair) == room.max_bytes
        assert tiny_models.answers(runner, PROMPTS, NUM_TOKENS) == expected


def test_a_gpu_too_small_for_one_sequence_of_the_context_is_refused_by_name(tmp_path: Path) -> None:
    folder = tiny_models.save_architecture("llama", tmp_path)
    with gpu(), pytest.raises(InvalidRequest, match=r"one sequence of 256 tokens takes .* lower max_context"):
        checked(folder, "cuda:0", kv_bytes=100_000)


# Every way in which a request changes how its tokens are taken; side by side, so that the rows must be told apart.
ASKED: list[dict[str, Any]] = [
    {},
    {"temperature": 1.0, "seed": 1, "top_k": 5},
    {"temperature": 0.7, "seed": 2, "top_p": 0.8, "min_p": 0.01, "logprobs": 3},
    {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.2},
    {"logit_bias": ((7, 5.0), (9, -5.0)), "min_tokens": 30, "logprobs": 0},
    {"temperature": 1.5, "seed": 3, "structure": Structure(StructureKind.REGEX, "[a-f]+")},
]


def test_tokens_are_taken_there_as_on_the_cpu_whatever_is_asked(tmp_path: Path) -> None:
    tokenizer = tiny_models.load(tiny_models.save_architecture("llama", tmp_path)).tokenizer

    def told(logits: torch.Tensor) -> tuple[list[int], list[Any], list[Any]]:
        sequences = [Sequence(str(n), [3, 5, 5], SamplingParams(**asked)) for n, asked in enumerate(ASKED)]
        for sequence in sequences:
            sequence.tokens.append(8)  # of the answer
            if sequence.sampling.structure:
                sequence.matcher = tokenizer.matcher(sequence.sampling.structure)
        echoing = Sequence("echo", [3, 5, 5], SamplingParams(echo=True, logprobs=2))
        found = TorchLogits(logits, [0], logits[:2])
        tokens = found.sample(sequences)
        mixed = found.likelihoods(sequences, tokens)
        only_drawn = TorchLogits(logits[1:3], [0]).sample(sequences[1:3])
        return tokens + only_drawn, mixed, found.prompt_likelihoods([Span(echoing, 0, 3, True)])

    logits = torch.randn(len(ASKED), tiny_models.VOCAB, generator=torch.Generator().manual_seed(0))
    plain = told(logits)
    with gpu():
        assert told(logits.to(GPU)) == plain


@pytest.mark.parametrize("name", ["bloom", "mamba"])
def test_the_padded_runner_gives_the_same_tokens_there(name: str, tmp_path: Path) -> None:
    path = str(families.save(name, tmp_path))

    def answer(device: str) -> list[list[int]]:
        spec = WorkerSpec(path, runner="padded", dtype="fp32", device=device, num_threads=1, max_step_tokens=16)
        runner = load_padded(spec, path, lambda stage, done: None)
        runner.check()
        assert runner.device == device
        return tiny_models.answers(runner, PROMPTS[2:], NUM_TOKENS)

    plain, there = on_both(answer)
    assert there == plain


@pytest.mark.parametrize(("kind", "task"), [("BertModel", "embed"), ("BertForSequenceClassification", "classify")])
def test_an_encoder_gives_the_same_numbers_there(kind: str, task: Any, tmp_path: Path) -> None:
    folder = str(tiny_encoders.save_encoder(kind, tmp_path))

    def answer(device: str) -> Any:
        spec = WorkerSpec(folder, task=task, runner="encoder", device=device, num_threads=1)
        runner = load_encoder(spec, folder, lambda stage, done: None)
        runner.check()
        assert runner.device == device
        return tiny_encoders.answer(runner, "a cat", "the quick brown fox")

    plain, there = on_both(answer)
    np.testing.assert_allclose(there, plain, atol=1e-5)


def test_vectors_are_pooled_there_in_every_way() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(size, generator=draw) for size in ((2, 5, 8), (4, 48)))
    modes = ("cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken")
    lengths = torch.tensor([5, 2])
    plain = Pooling(modes, (Dense(weight, torch.ones(4), "Tanh"), Normalize()))(hidden, lengths)
    with gpu():
        pooling = Pooling(modes, (Dense(weight, torch.ones(4), "Tanh"), Normalize())).to(GPU)
        torch.testing.assert_close(pooling(hidden.to(GPU), lengths.to(GPU)).cpu(), plain)
