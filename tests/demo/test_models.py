"""The shipped models are small, whole, and the second is the better one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM, AutoTokenizer

from jupyter_dsserve.demo import builtin_names, builtin_path

# Written for this test: neither model has seen it.
UNSEEN = '''
def read_settings(path, defaults=None):
    """Read the settings in the file at path and return them as a dictionary.

    Lines that begin with '#' are ignored. If a name is given twice, the last value is used.
    """
    settings = dict(defaults or {})
    with open(path) as file:
        for line in file:
            line = line.strip()
            if not line or line.startswith("#"):
                continue
            name, sep, value = line.partition("=")
            if not sep:
                raise ValueError("missing '=' in line: %r" % line)
            settings[name.strip()] = value.strip()
    return settings


class Stack:
    """A simple stack of items."""

    def __init__(self, items=()):
        self._items = list(items)

    def push(self, item):
        self._items.append(item)

    def pop(self):
        if not self._items:
            raise IndexError("pop from an empty stack")
        return self._items.pop()

    def __len__(self):
        return len(self._items)
'''


@pytest.mark.parametrize("name", builtin_names())
def test_a_model_is_bf16_and_within_its_limits(name: str) -> None:
    folder = builtin_path(name)
    with safe_open(folder / "model.safetensors", "pt") as weights:
        tensors = [weights.get_tensor(key) for key in weights.keys()]  # noqa: SIM118  (it is no mapping)
    assert {t.dtype for t in tensors} == {torch.bfloat16}
    assert sum(t.numel() for t in tensors) <= 4_500_000
    assert sum(p.stat().st_size for p in folder.iterdir()) <= 10_000_000


@pytest.mark.parametrize("name", builtin_names())
def test_a_model_carries_no_path_of_the_machine_that_made_it(name: str) -> None:
    for path in builtin_path(name).glob("*.json"):
        found = json.loads(path.read_text())
        for key in ("_name_or_path", "name_or_path", "auto_map"):
            assert not found.get(key), f"{path.name}: {key}"


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(LookupError, match="demo-v1, demo-v2"):
        builtin_path("demo-v3")


def _loss(folder: Path) -> float:
    """Mean negative log likelihood of `UNSEEN`, nats a token."""
    model: Any = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)(UNSEEN, return_tensors="pt")["input_ids"]
    with torch.inference_mode():
        return float(model(input_ids=ids, labels=ids).loss)


def test_the_second_model_predicts_unseen_code_visibly_better() -> None:
    v1, v2 = (_loss(builtin_path(name)) for name in ("demo-v1", "demo-v2"))
    assert v2 < v1 - 0.05
    assert v1 < 3.5  # 8.3 is a guess among 4,096 tokens
