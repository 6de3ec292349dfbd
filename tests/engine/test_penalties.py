"""Penalties, bias and the least length, against transformers' own processors where it has them."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from transformers import MinPLogitsWarper, RepetitionPenaltyLogitsProcessor

from jupyter_dsserve.engine.penalties import adjusted
from jupyter_dsserve.engine.sampling import TorchLogits
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.request import SamplingParams

VOCABULARY = 50


def sequence(prompt: list[int], answer: list[int] | None = None, **sampling: Any) -> Sequence:
    one = Sequence("s", list(prompt), SamplingParams(**sampling))
    one.tokens += answer or []
    return one


def logits(rows: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * 3


def test_rows_that_want_nothing_are_left_as_they_are_without_a_copy() -> None:
    plain = logits(3)
    assert adjusted(plain, [sequence([1])] * 3, eos_ids=[0]) is plain


def test_only_the_rows_that_want_it_are_changed_and_the_models_own_logits_never() -> None:
    plain = logits(3)
    before = plain.clone()
    found = adjusted(plain, [sequence([1]), sequence([1], repetition_penalty=2.0), sequence([2])], eos_ids=[])
    assert torch.equal(plain, before)
    assert torch.equal(found[[0, 2]], plain[[0, 2]])
    assert not torch.equal(found[1], plain[1])


@pytest.mark.parametrize("penalty", [0.5, 1.3, 5.0])
def test_the_repetition_penalty_is_transformers(penalty: float) -> None:
    plain, one = logits(1), sequence([3, 4, 4], [7, 3], repetition_penalty=penalty)
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(torch.tensor([one.tokens]), plain.clone())
    assert torch.equal(adjusted(plain, [one], []), theirs)


def test_a_growing_sequence_is_penalised_as_a_fresh_one_and_many_rows_as_each_alone() -> None:
    plain, draw = logits(6), random.Random(3)
    kinds: list[dict[str, Any]] = [
        {"repetition_penalty": 1.4, "frequency_penalty": 0.3},
        {"presence_penalty": -1.0, "logit_bias": ((1, 2.0), (49, -3.0))},
        {"min_tokens": 30, "repetition_penalty": 0.7, "presence_penalty": 0.1},
    ]
    growing = [sequence([draw.randrange(VOCABULARY) for _ in range(9)], **kind) for kind in kinds * 2]
    for _ in range(45):
        fresh = [sequence(s.tokens[:9], s.tokens[9:], **kind) for s, kind in zip(growing, kinds * 2, strict=True)]
        together = adjusted(plain, growing, [0])
        alone = [adjusted(plain[row : row + 1], [one], [0]) for row, one in enumerate(fresh)]
        assert torch.equal(together, torch.cat(alone))
        for s in growing:
            s.tokens.append(draw.randrange(VOCABULARY))


def test_presence_and_frequency_count_the_answer_and_not_the_prompt() -> None:
    plain = logits(1)
    one = sequence([3, 3, 9], [5, 6, 5], presence_penalty=0.5, frequency_penalty=0.25)
    changed = adjusted(plain, [one], []) - plain
    wanted = torch.zeros(1, VOCABULARY)
    wanted[0, 5], wanted[0, 6] = -0.5 - 2 * 0.25, -0.5 - 0.25
    assert torch.allclose(changed, wanted, atol=1e-6)
    one.tokens.append(6)  # what comes later counts too
    assert adjusted(plain, [one], [])[0, 6] - plain[0, 6] == pytest.approx(-0.5 - 2 * 0.25, abs=1e-6)


def test_a_bias_is_added_to_its_tokens() -> None:
    plain = logits(1)
    changed = adjusted(plain, [sequence([1], logit_bias=((7, 4.0), (8, -100.0)))], []) - plain
    assert changed[0, 7] == pytest.approx(4.0)
    assert changed[0, 8] == pytest.approx(-100.0)
    assert changed.count_nonzero() == 2


def test_nothing_ends_an_answer_before_its_least_length() -> None:
    plain = logits(1)
    short = sequence([1], [2], min_tokens=2, stop_token_ids=(9,))
    assert adjusted(plain, [short], eos_ids=[0, 4])[0].isneginf().nonzero()[:, 0].tolist() == [0, 4, 9]
    short.tokens.append(3)
    assert adjusted(plain, [short], eos_ids=[0, 4]) is plain
    endless = sequence([1], min_tokens=2, ignore_eos=True)
    assert not adjusted(plain, [endless], eos_ids=[0]).isneginf().any(), (
        "with ignore_eos the end token is one like others"
    )


def test_greedy_takes_the_best_after_all_changes() -> None:
    plain = logits(1)
    best = int(plain.argmax())
    assert TorchLogits(plain).sample([sequence([1], logit_bias=((best, -100.0),))]) == [
        int(plain[0].topk(2).indices[1])
    ]


@pytest.mark.parametrize("min_p", [0.05, 0.3, 1.0])
def test_min_p_leaves_what_transformers_leaves(min_p: float) -> None:
    plain = logits(1, seed=4)
    theirs = MinPLogitsWarper(min_p)(torch.tensor([[1]]), plain.clone())[0].isfinite().nonzero()[:, 0].tolist()
    drawn = {
        TorchLogits(plain).sample([sequence([1], temperature=1.0, min_p=min_p, seed=seed)])[0] for seed in range(600)
    }
    assert drawn <= set(theirs)
    if len(theirs) < 6:
        assert drawn == set(theirs)


def test_a_row_with_penalties_gets_the_same_token_in_any_company() -> None:
    plain = logits(4)
    own = {"temperature": 0.9, "repetition_penalty": 1.5, "frequency_penalty": 0.7, "min_p": 0.02}
    company = [sequence([1], [2, 2], temperature=1.0, presence_penalty=2.0), sequence([5]), sequence([6], min_tokens=3)]
    for seed in range(20):
        alone = TorchLogits(plain[:1], [0]).sample([sequence([3], [4, 4], seed=seed, **own)])
        among = TorchLogits(plain, [0]).sample([sequence([3], [4, 4], seed=seed, **own), *company])
        assert among[:1] == alone
