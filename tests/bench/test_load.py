"""A load takes little more memory of its own than the weights, also where it converts them."""

from __future__ import annotations

from pathlib import Path

from tests.bench.bench_load import measure, weights_mib
from tests.bench.models import make_model

# Of modules that a load imports, of oneDNN, and of the first forward passes, whatever the model.
FIXED_MIB = 60


def test_a_checkpoint_converted_as_it_is_loaded_is_never_in_memory_twice(tmp_path: Path) -> None:
    model = make_model("SM", tmp_path)
    loaded = measure(model, "bf16")
    weights = weights_mib(model, "bf16")
    assert weights > 90
    assert weights * 0.9 < loaded.own_mib < weights * 1.2 + FIXED_MIB
