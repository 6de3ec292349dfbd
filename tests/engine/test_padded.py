"""The padded runner: sampling, chunks, aborts, and the check that keeps wrong numbers from being served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jupyter_dsserve.engine.loader import load_padded
from jupyter_dsserve.engine.loop import Engine
from jupyter_dsserve.engine.padded import PaddedRunner
from jupyter_dsserve.engine.runner import Span, Step
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Chunk, FinishReason, SamplingParams
from jupyter_dsserve.protocol.spec import WorkerSpec
from tests.engine import families, tiny_models


def load(name: str, folder: Path) -> PaddedRunner:
    path = str(families.save(name, folder))
    spec = WorkerSpec(path, runner="padded", dtype="fp32", device="cpu", num_threads=1, max_step_tokens=16)
    return load_padded(spec, path, lambda stage, done: None)


@pytest.fixture(scope="module")
def mamba(tmp_path_factory: pytest.TempPathFactory) -> PaddedRunner:
    runner = load("mamba", tmp_path_factory.mktemp("mamba"))
    runner.check()
    return runner


def test_a_seed_gives_the_same_answer_alone_and_in_company(mamba: PaddedRunner) -> None:
    prompts = tiny_models.random_prompts([30, 2, 9])
    sampling = {"temperature": 1.0, "top_k": 40, "seed": 11}
    together = tiny_models.answers(mamba, prompts, 8, **sampling)
    assert tiny_models.answers(mamba, prompts[:1], 8, **sampling) == together[:1]
    assert tiny_models.answers(mamba, prompts[:1], 8, **(sampling | {"seed": 12})) != together[:1]


def test_a_model_without_a_limit_has_the_context_that_is_asked_for(tmp_path: Path) -> None:
    path = str(families.save("mamba", tmp_path))
    for asked, room in ((0, 2048), (5000, 5000)):
        spec = WorkerSpec(path, runner="padded", device="cpu", num_threads=1, max_context=asked)
        assert load_padded(spec, path, lambda stage, done: None).room.max_context == room


def test_a_model_that_keeps_a_state_gets_its_prompt_in_one_piece(
    mamba: PaddedRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert lengths_of_passes(mamba, monkeypatch) == [40, 1]


def test_a_model_that_keeps_all_keys_gets_its_prompt_in_chunks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = load("falcon", tmp_path)
    runner.check()
    assert lengths_of_passes(runner, monkeypatch) == [16, 16, 8, 1]


def lengths_of_passes(runner: PaddedRunner, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Tokens of each forward pass for a prompt of 40 and an answer of two."""
    lengths: list[int] = []
    plain = runner._engine.forward
    monkeypatch.setattr(
        runner._engine, "forward", lambda **given: lengths.append(given["input_ids"].shape[1]) or plain(**given)
    )
    tiny_models.answers(runner, tiny_models.random_prompts([40]), 2)
    return lengths


@pytest.mark.parametrize("name", ["mamba", "falcon"])
def test_an_echoed_prompt_has_the_logprobs_of_a_plain_pass_whole_or_in_chunks(name: str, tmp_path: Path) -> None:
    runner = load(name, tmp_path)
    runner.check()
    chunks: list[Chunk] = []
    engine = Engine(runner, chunks.extend)
    prompts = tiny_models.random_prompts([40, 9])
    for id, prompt in zip("ab", prompts, strict=True):
        engine.post(Sequence(id, list(prompt), SamplingParams(max_tokens=1, echo=True, logprobs=0)))
    while sum(chunk.finish_reason is not None for chunk in chunks) < 2:
        engine.turn()
    for id, prompt in zip("ab", prompts, strict=True):
        found = [one.logprob for chunk in chunks if chunk.request_id == id for one in chunk.logprobs]
        plain = runner._plain_logits(prompt).log_softmax(-1)
        assert found[1:-1] == pytest.approx(
            [float(plain[at, prompt[at + 1]]) for at in range(len(prompt) - 1)], abs=1e-3
        )


def test_an_aborted_sequence_leaves_its_cache_and_the_others_go_on(mamba: PaddedRunner) -> None:
    chunks: list[Chunk] = []
    engine = Engine(mamba, chunks.extend)
    prompts = tiny_models.random_prompts([9, 12])
    for name, prompt in zip("ab", prompts, strict=True):
        engine.post(Sequence(name, list(prompt), SamplingParams(max_tokens=6)))
    engine.turn()
    engine.abort("a")
    while not any(chunk.finish_reason is FinishReason.LENGTH for chunk in chunks):
        engine.turn()
    assert [sequence.sequence.id for sequence in mamba._running.values()] == ["b"]
    assert [chunk.finish_reason for chunk in chunks if chunk.request_id == "a"][-1] is FinishReason.ABORT
    assert mamba._running[1].sequence.tokens[12:] == tiny_models.answers(mamba, prompts[1:], 6)[0]


def test_a_slot_that_is_given_again_starts_with_an_empty_cache(mamba: PaddedRunner) -> None:
    first, second = tiny_models.random_prompts([20, 20], seed=6)
    fresh = last_logits(mamba, second)
    last_logits(mamba, first)
    torch.testing.assert_close(last_logits(mamba, second), fresh, rtol=0, atol=0)


def last_logits(runner: PaddedRunner, tokens: list[int]) -> torch.Tensor:
    return runner.forward(Step([Span(Sequence("a", tokens, SamplingParams(), slot=0), 0, len(tokens), True)], 0)).logits


def test_the_check_refuses_a_model_whose_sequences_share_a_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache in the module itself, as RecurrentGemma has one: a neighbour's decoding would go on from it."""
    runner = load("mamba", tmp_path)
    shared: dict[str, Any] = {}
    plain = runner._engine.forward

    def forward(**given: Any) -> Any:
        name = next((name for name in ("cache", "cache_params") if given.get(name) is not None), None)
        if name:
            given[name] = shared["cache"]
        out = plain(**given)
        shared["cache"] = out.get("cache") or out.get("cache_params")
        return out

    monkeypatch.setattr(runner._engine, "forward", forward)
    with pytest.raises(InvalidRequest, match=r"MambaForCausalLM.*with its cache than without: logits are off by"):
        runner.check()


def test_the_check_says_which_model_does_not_run_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = load("mamba", tmp_path)
    monkeypatch.setattr(runner._model, "prepare_inputs_for_generation", None, raising=False)
    with pytest.raises(InvalidRequest, match=r"\(MambaForCausalLM\) does not run: TypeError"):
        runner.check()
