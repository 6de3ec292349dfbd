"""What changes numbers shows that it still agrees with plain transformers, or is not served."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jupyter_dsserve.demo import builtin_path
from jupyter_dsserve.engine.equivalence import Agreement, Reference, agreement, least_agreement, refuse_below
from jupyter_dsserve.engine.ragged import RaggedRunner
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.spec import WorkerSpec
from tests.engine.tiny_models import answers, load, random_prompts, save_architecture

DEMO = builtin_path("demo-v1")


def num_bytes(runner: RaggedRunner) -> int:
    return sum(weight.numel() * weight.element_size() for weight in runner._model.parameters())


def load_short(folder: Path, **settings: Any) -> RaggedRunner:
    return load(folder, max_context=128, **settings)


def test_a_trained_model_in_eight_bits_agrees_and_says_how_far() -> None:
    runner = load_short(DEMO, quantize="int8")
    runner.check()
    found = runner.info.note
    assert found.startswith("agrees with plain transformers on ")
    assert float(found.split()[5].rstrip("%")) >= 95
    assert " off by at most 0 " not in found
    plain = load_short(DEMO)
    plain.check()
    assert plain.info.note == ""
    prompts = random_prompts((5, 40))
    assert [a[0] for a in answers(runner, prompts, 1)] == [a[0] for a in answers(plain, prompts, 1)]


def test_four_bits_take_less_than_eight_and_those_less_than_half_of_what_the_weights_take() -> None:
    weights = sum(path.stat().st_size for path in DEMO.glob("*.safetensors")) * 2  # they are in bf16, and load as fp32
    four, eight = (num_bytes(load_short(DEMO, quantize=kind)) for kind in ("int4", "int8"))
    assert four < eight < weights / 2


def test_a_model_that_says_something_else_is_not_served_and_the_reason_has_the_figure(tmp_path: Path) -> None:
    """Four bits ruin a model of random weights, whose logits all lie close together."""
    model = save_architecture("llama", tmp_path)
    with pytest.raises(InvalidRequest, match=r"on [0-6]\d\.\d% of \d+ tokens.*less than min_agreement 0.7"):
        load_short(model, quantize="int4").check()
    load_short(model, quantize="int4", min_agreement=0.0).check()


def test_quantising_what_deepspeed_cannot_is_refused_with_the_bytes(tmp_path: Path) -> None:
    """GPT-2's layers are of a kind of their own."""
    with pytest.raises(InvalidRequest, match=r"take (\d+\.\d) MB with it and \1 MB without"):
        load_short(save_architecture("gpt2", tmp_path), quantize="int8")


def test_a_plain_version_is_compared_if_it_asks_to_be() -> None:
    runner = load_short(DEMO, min_agreement=1.0)
    runner.check()
    assert runner.info.note.startswith("agrees with plain transformers on 100.0% ")


def test_agreement_counts_tokens_with_the_same_successor_and_measures_the_logits_after_the_last() -> None:
    eye = torch.eye(4)
    expected = Reference([[0, 1, 2, 3]], [[0, 1, 2, 3]], eye[3:])
    assert agreement(expected, lambda tokens: eye[tokens]) == Agreement(1.0, 0.0, 4)
    assert agreement(expected, lambda tokens: eye[[0, 1, 3, 3]] * 1.5) == Agreement(0.75, 0.5, 4)


@pytest.mark.parametrize("found", [Agreement(0.98, 0.0, 100), Agreement(1.0, float("nan"), 100)])
def test_too_little_agreement_and_none_at_all_are_refused(found: Agreement) -> None:
    with pytest.raises(InvalidRequest, match=r"min_agreement 0\.99"):
        refuse_below(found, 0.99, "m")
    refuse_below(Agreement(0.99, 0.5, 100), 0.99, "m")


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({}, None),
        ({"tp": 2}, 0.99),
        ({"zero": "nvme"}, 0.99),
        ({"quantize": "int8"}, 0.9),
        ({"quantize": "int4"}, 0.7),
        ({"quantize": "int4", "min_agreement": 0.0}, 0.0),
        ({"min_agreement": 0.5}, 0.5),
    ],
)
def test_what_must_be_reached_goes_by_what_the_version_does_unless_it_says_otherwise(
    settings: dict[str, Any], least: float | None
) -> None:
    assert least_agreement(WorkerSpec("m", **settings)) == least
