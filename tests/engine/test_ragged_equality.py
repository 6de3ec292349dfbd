"""Greedy answers of the ragged runner are, token for token, those of transformers' own `generate`, in fp32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from jupyter_dsserve.demo import builtin_names, builtin_path
from jupyter_dsserve.engine.attention import NotRagged
from jupyter_dsserve.engine.ragged import RaggedRunner
from jupyter_dsserve.engine.runner import Span, Step
from jupyter_dsserve.engine.scheduler import Scheduler
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.request import SamplingParams
from tests.engine import tiny_models

NUM_TOKENS = 24
NUM_DISTINCT = 8  # in each answer: a model that repeats one token proves little
CODE = '''"""Read lines of a file and count the words in them."""

import os
import re
from collections import Counter


class Reader:
    """Reads a file line by line."""

    def __init__(self, path, encoding="utf-8"):
        self.path = path
        self.encoding = encoding
        self.words = Counter()

    def read(self):
        with open(self.path, encoding=self.encoding) as file:
            for line in file:
                self.words.update(re.findall(r"[a-z]+", line.lower()))
        return self

    def most_common(self, count=10):
        """Return the most common words and how often they came."""
        return self.words.most_common(count)
'''


def generate(folder: Path, prompts: list[list[int]], num_tokens: int) -> list[list[int]]:
    """The reference: one prompt at a time by transformers' eager attention (it knows windows, soft caps and sinks)."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0

    def answer(prompt: list[int]) -> list[int]:
        ids = torch.tensor([prompt])
        out: Any = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=num_tokens, do_sample=False)
        return out[0, len(prompt) :].tolist()

    return [answer(prompt) for prompt in prompts]


@pytest.fixture(scope="module", params=tiny_models.ARCHITECTURES)
def architecture(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp(request.param)
    return tiny_models.save_architecture(request.param, folder)


@pytest.fixture(scope="module")
def runner(architecture: Path) -> RaggedRunner:
    return tiny_models.load(architecture)


@pytest.fixture(scope="module")
def expected(architecture: Path) -> list[list[int]]:
    return generate(architecture, tiny_models.random_prompts(), NUM_TOKENS)


def test_sixteen_prompts_of_different_lengths_together_answer_as_generate_does(
    runner: RaggedRunner, expected: list[list[int]]
) -> None:
    assert min(len(set(answer)) for answer in expected) >= NUM_DISTINCT
    assert tiny_models.answers(runner, tiny_models.random_prompts(), NUM_TOKENS) == expected


def test_a_prompt_alone_answers_as_generate_does(runner: RaggedRunner, expected: list[list[int]]) -> None:
    for prompt, answer in list(zip(tiny_models.random_prompts(), expected, strict=True))[:3]:
        assert tiny_models.answers(runner, [prompt], NUM_TOKENS) == [answer]


def test_what_stands_in_the_cache_already_changes_no_answer(runner: RaggedRunner, expected: list[list[int]]) -> None:
    """The same prompts again; and then as a chat goes on, with a part of the answer in the prompt."""
    scheduler = Scheduler(runner.room, runner.max_step_tokens)
    prompts = tiny_models.random_prompts()
    assert tiny_models.answers(runner, prompts, NUM_TOKENS, scheduler) == expected
    assert tiny_models.answers(runner, prompts, NUM_TOKENS, scheduler) == expected
    assert scheduler.num_cached > scheduler.num_prompt / 4
    half = NUM_TOKENS // 2
    longer = [prompt + answer[:half] for prompt, answer in zip(prompts, expected, strict=True)]
    before = scheduler.num_cached
    assert tiny_models.answers(runner, longer, half, scheduler) == [answer[half:] for answer in expected]
    assert scheduler.num_cached > before + sum(map(len, longer)) / 2


def test_who_had_to_leave_for_want_of_memory_answers_the_same(runner: RaggedRunner, expected: list[list[int]]) -> None:
    room = replace(runner.room, num_blocks=24)
    scheduler = Scheduler(room, runner.max_step_tokens)
    assert tiny_models.answers(runner, tiny_models.random_prompts(), NUM_TOKENS, scheduler) == expected
    assert scheduler.num_preempted > 0


def test_the_self_check_passes(runner: RaggedRunner) -> None:
    runner.check()


@pytest.mark.parametrize("name", builtin_names())
def test_a_built_in_model_answers_as_generate_does_alone_and_in_a_batch(name: str) -> None:
    folder = builtin_path(name)
    runner = tiny_models.load(folder)
    code = runner.tokenizer.encode_batch([CODE])[0]
    prompts = [code[:length] for length in range(4, len(code), 5)]
    answered = zip(prompts, generate(folder, prompts, 32), strict=True)
    # Where so small a model only repeats itself, equality proves little.
    varied = [(prompt, answer) for prompt, answer in answered if len(set(answer)) >= NUM_DISTINCT][:16]
    assert len(varied) == 16
    assert tiny_models.answers(runner, [prompt for prompt, _ in varied], 32) == [answer for _, answer in varied]
    for prompt, answer in varied[::5]:
        assert tiny_models.answers(runner, [prompt], 32) == [answer]


def test_a_prompt_cut_at_any_place_gives_the_same_logits(tmp_path: Path) -> None:
    """Chunks of a prompt see one another through the cache, windows included."""
    runner = tiny_models.load(tiny_models.save_architecture("gemma2", tmp_path))
    tokens = tiny_models.random_prompts([60])[0]
    whole = _last_logits(runner, tokens, cuts=[])
    for cuts in ([1], [59], [24, 25], [7, 30, 31, 55]):
        torch.testing.assert_close(_last_logits(runner, tokens, cuts), whole, atol=1e-4, rtol=1e-4)


def _last_logits(runner: RaggedRunner, tokens: list[int], cuts: list[int]) -> torch.Tensor:
    sequence = Sequence("a", tokens, SamplingParams(), slot=3)
    logits = torch.empty(0)
    for start, end in zip([0, *cuts], [*cuts, len(tokens)], strict=True):
        logits = runner.forward(Step([Span(sequence, start, end - start, end == len(tokens))], 0)).logits
    return logits


def test_a_step_in_which_nothing_is_sampled_gives_no_logits(tmp_path: Path) -> None:
    """The first chunk of a long prompt alone in the house is such a step."""
    runner = tiny_models.load(tiny_models.save_architecture("llama", tmp_path))
    sequence = Sequence("a", tiny_models.random_prompts([40])[0], SamplingParams(), slot=0)
    logits = runner.forward(Step([Span(sequence, 0, 32, False)], 0))
    assert logits.sample([]) == []


def test_two_runners_in_one_process_do_not_meet(tmp_path: Path) -> None:
    folders = [tiny_models.save_architecture(name, tmp_path / name) for name in ("llama", "mistral-window")]
    runners = [tiny_models.load(folder) for folder in folders]
    prompts = tiny_models.random_prompts([60, 9])
    alone = [tiny_models.answers(runner, prompts, 12) for runner in runners]
    assert alone[0] != alone[1]
    assert [tiny_models.answers(runner, prompts, 12) for runner in runners] == alone


def test_a_seed_gives_the_same_answer_alone_and_in_company(tmp_path: Path) -> None:
    runner = tiny_models.load(tiny_models.save_architecture("llama", tmp_path))
    prompts = tiny_models.random_prompts()
    sampling = {"temperature": 1.0, "top_k": 40, "top_p": 0.9, "seed": 11}
    together = tiny_models.answers(runner, prompts, 16, **sampling)
    assert tiny_models.answers(runner, prompts[:1], 16, **sampling) == together[:1]
    assert together[:1] != tiny_models.answers(runner, prompts[:1], 16, **(sampling | {"seed": 12}))


def test_the_self_check_fails_a_model_that_lets_neighbours_mix(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that adds to each row the row before it stands for convolutions and recurrences."""
    runner = tiny_models.load(tiny_models.save_architecture("llama", tmp_path))
    mlp = runner._model.model.layers[1].mlp
    plain = mlp.forward
    monkeypatch.setattr(mlp, "forward", lambda x: plain(x) + 0.1 * plain(x).roll(1, dims=1))
    with pytest.raises(NotRagged, match=r"LlamaForCausalLM.*off by"):
        runner.check()
