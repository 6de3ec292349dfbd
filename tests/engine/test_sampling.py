"""One random number of the sequence's own makes a token; nothing else in the batch has a say."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from jupyter_dsserve.engine.sampling import TorchLogits, keep_likely
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.request import SamplingParams


def sequence(**sampling: Any) -> Sequence:
    return Sequence("s", [0], SamplingParams(**sampling))


def random_logits(rows: int, vocabulary: int = 500, seed: int = 0, spread: float = 2.0) -> torch.Tensor:
    return torch.randn(rows, vocabulary, generator=torch.Generator().manual_seed(seed)) * spread


def kept(scores: torch.Tensor, top_k: int = 0, top_p: float = 1.0) -> set[int]:
    return set(keep_likely(scores[None], [top_k], [top_p])[0].isfinite().nonzero()[:, 0].tolist())


def test_temperature_zero_takes_the_most_likely_token() -> None:
    logits = random_logits(5)
    assert TorchLogits(logits).sample([sequence()] * 5) == logits.argmax(-1).tolist()


def test_greedy_rows_stay_greedy_beside_sampled_ones() -> None:
    logits = random_logits(6)
    mixed = [sequence(temperature=5.0, seed=n) if n % 2 else sequence() for n in range(6)]
    assert TorchLogits(logits).sample(mixed)[::2] == logits.argmax(-1).tolist()[::2]


@pytest.mark.parametrize("own", [{}, {"top_k": 7}, {"top_p": 0.8}, {"top_k": 50, "top_p": 0.5}])
def test_a_row_gets_the_same_token_in_any_company(own: dict[str, Any]) -> None:
    """Filters of the others must not change the way one's own random number is read."""
    logits = random_logits(8)
    company = [sequence(temperature=1.0, **more) for more in ({}, {"top_k": 3}, {"top_p": 0.3}, {"top_k": 90})]
    for seed in range(20):
        alone = TorchLogits(logits[:1]).sample([sequence(temperature=0.9, seed=seed, **own)])
        among = TorchLogits(logits).sample(
            [sequence(temperature=0.9, seed=seed, **own), sequence(), sequence(), *company, sequence()]
        )
        assert among[:1] == alone


def test_tokens_come_as_often_as_their_probability_says() -> None:
    logits = random_logits(1, vocabulary=12, spread=1.0)
    probabilities = (logits[0] / 0.7).softmax(-1)
    one, num_draws = sequence(temperature=0.7, seed=1), 20_000
    drawn = torch.tensor(TorchLogits(logits.expand(num_draws, -1)).sample([one] * num_draws))
    seen = drawn.bincount(minlength=12) / num_draws
    assert (seen - probabilities).abs().max() < 4 * (0.25 / num_draws) ** 0.5


def test_a_token_takes_exactly_one_random_number() -> None:
    """So a sequence that is computed again draws the same numbers at the same places."""
    one, twin = sequence(temperature=1.0, seed=3), sequence(temperature=1.0, seed=3)
    TorchLogits(random_logits(1)).sample([one])
    twin.random.random()
    assert one.random.random() == twin.random.random()


def test_top_k_keeps_the_k_most_likely() -> None:
    scores = random_logits(1)[0]
    assert kept(scores, top_k=7) == set(scores.topk(7).indices.tolist())
    assert len(kept(scores, top_k=10_000)) == len(scores)


def test_top_p_keeps_the_fewest_tokens_that_reach_it() -> None:
    scores = torch.tensor([0.1, 0.4, 0.15, 0.35]).log()
    assert kept(scores, top_p=0.39) == {1}
    assert kept(scores, top_p=0.41) == {1, 3}
    assert kept(scores, top_p=0.74) == {1, 3}
    assert kept(scores, top_p=0.76) == {1, 2, 3}
    assert kept(scores, top_p=1.0) == {0, 1, 2, 3}


def test_top_p_counts_what_top_k_has_left() -> None:
    scores = torch.tensor([0.1, 0.4, 0.15, 0.35]).log()
    assert kept(scores, top_k=2, top_p=0.5) == {1}  # 0.4 of 0.75
    assert kept(scores, top_k=2, top_p=0.6) == {1, 3}


def test_the_nucleus_of_a_flat_distribution_over_a_large_vocabulary_is_found() -> None:
    scores = random_logits(1, vocabulary=5000, spread=0.1)[0]
    probabilities = scores.double().softmax(-1)
    nucleus = kept(scores, top_p=0.9)
    mass = float(probabilities[list(nucleus)].sum())
    least = float(probabilities[list(nucleus)].min())
    assert len(nucleus) > 4000
    assert mass >= 0.9 > mass - least


def test_tokens_as_likely_as_the_last_one_kept_stay() -> None:
    assert kept(torch.tensor([1.0, 2.0, 2.0, 2.0, 0.0]), top_k=2) == {1, 2, 3}


def test_a_tiny_temperature_is_greedy_and_not_nan() -> None:
    logits = random_logits(3, spread=50.0)
    cold = [sequence(temperature=1e-30, seed=n) for n in range(3)]
    assert TorchLogits(logits).sample(cold) == logits.argmax(-1).tolist()


def test_a_token_that_was_filtered_out_is_never_drawn_by_the_largest_number() -> None:
    class Largest:
        def random(self) -> float:
            return 1 - 2**-53

    one = sequence(temperature=1.0, top_k=2)
    one.random = Largest()  # type: ignore[assignment]
    assert TorchLogits(torch.tensor([[3.0, 2.0, 1.0, 0.0]])).sample([one]) == [1]
