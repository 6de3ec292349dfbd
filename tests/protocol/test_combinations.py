"""What does not go together is refused by name, and the page says so too."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jupyter_dsserve.protocol.combinations import CANNOT_BE, SPLITS, check_combination, check_split
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.spec import WorkerSpec

PAGE = (Path(__file__).parent.parent.parent / "docs/architecture.md").read_text()
ASKING: dict[str, dict[str, Any]] = {
    "padded": {"runner": "padded"},
    "toy": {"runner": "toy"},
    "other tasks": {"task": "embed"},
    "tp": {"tp": 2},
    "zero": {"zero": "nvme"},
    "quantize": {"quantize": "int8"},
    "min_agreement": {"min_agreement": 0.5},
}


@pytest.mark.parametrize("pair", CANNOT_BE)
def test_two_that_do_not_go_together_are_refused_by_both_names_and_each_alone_is_not(pair: tuple[str, str]) -> None:
    plain = WorkerSpec("m")
    for name in pair:
        check_combination(replace(plain, **ASKING[name]))
    with pytest.raises(InvalidRequest) as refusal:
        check_combination(replace(plain, **ASKING[pair[0]], **ASKING[pair[1]]))
    for name in pair:
        [(field, value)] = ASKING[name].items()
        assert f"{field} {value!r}" in refusal.value.message
    assert CANNOT_BE[pair] in refusal.value.message


def test_a_folder_for_weights_that_are_not_on_a_disk_is_refused() -> None:
    check_combination(WorkerSpec("m", zero="nvme", nvme_dir="/disk"))
    with pytest.raises(InvalidRequest, match="nvme_dir is '/disk'"):
        check_combination(WorkerSpec("m", nvme_dir="/disk"))


def test_the_page_has_the_same_table() -> None:
    lines = PAGE.partition("### What does not go together")[2].partition("\n#")[0].splitlines()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("| ")][1:]
    assert {(one, other): why for one, other, why in rows} == CANNOT_BE


def test_the_page_names_the_models_that_split() -> None:
    for kind in SPLITS:
        assert f"`{kind}`" in PAGE.partition("### Several ranks")[2].partition("\n#")[0]


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"model_type": "phi3", "num_attention_heads": 8}, "phi3"),
        ({"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 1}, "1 heads"),
        ({"model_type": "opt", "num_attention_heads": 5}, "5 heads"),
    ],
)
def test_a_model_that_autotp_would_get_wrong_is_refused_and_loads_on_one_rank(
    config: dict[str, Any], word: str
) -> None:
    with pytest.raises(InvalidRequest, match=word):
        check_split("m", config, 2)
    check_split("m", config, 1)


def test_a_model_whose_heads_divide_is_not_refused() -> None:
    check_split("m", {"model_type": "llama", "num_attention_heads": 8, "num_key_value_heads": 4}, 2)
