"""The decoding kernel gives what attention written out gives, for every shape and option it takes."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
import torch

from jupyter_dsserve.engine import decode
from jupyter_dsserve.engine.attention import _attend
from jupyter_dsserve.engine.decode import Decoding, can_decode, load_kernel
from tests.engine import tiny_models

POSITIONS = [0, 1, 15, 40, 99, 3]
SLOTS = [4, 0, 6, 2, 5, 3]
STRIDE = 128


@pytest.fixture(autouse=True)
def made() -> None:
    assert load_kernel() is not None, "there is no C compiler here: apt-get install gcc"


def cache(kv_heads: int, dim: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.randn(kv_heads, 7, STRIDE, dim, generator=torch.Generator().manual_seed(dim)).to(dtype)


def query(heads: int, dim: int, dtype: torch.dtype, num_rows: int = len(SLOTS)) -> torch.Tensor:
    """As models give it: heads behind rows in memory."""
    return torch.randn(1, num_rows, heads, dim, generator=torch.Generator().manual_seed(1)).to(dtype).transpose(1, 2)


def kernel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, **options: object) -> torch.Tensor:
    out = torch.full((q.shape[2], q.shape[1], v.shape[3]), float("nan"), dtype=q.dtype)
    settings: dict[str, object] = {"window": None, "scaling": None, "softcap": None, "sinks": None} | options
    assert can_decode(q, k, v)
    Decoding(SLOTS, POSITIONS).attend(q, k, v, out, **settings)  # type: ignore[arg-type]
    return out


def written_out(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    window: int | None = None,
    scaling: float | None = None,
    softcap: float | None = None,
    sinks: torch.Tensor | None = None,
) -> torch.Tensor:
    """Row by row, in fp32."""
    rows = []
    for row, (slot, position) in enumerate(zip(SLOTS, POSITIONS, strict=True)):
        low = max(0, position + 1 - window) if window else 0
        asked = q[0, :, row].unflatten(0, (k.shape[0], -1))[None].float()
        seen = (t[None, :, slot, low : position + 1].float() for t in (k, v))
        rows.append(_attend(asked, *seen, None, scaling, softcap, sinks).flatten(1, 2))
    return torch.cat(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kv_heads", "group"), [(2, 1), (2, 2), (2, 3), (1, 4), (1, 7), (2, 8)])
@pytest.mark.parametrize(("key_dim", "value_dim"), [(64, 64), (128, 128), (16, 16), (48, 80), (96, 32)])
def test_it_gives_what_attention_written_out_gives(
    dtype: torch.dtype, kv_heads: int, group: int, key_dim: int, value_dim: int
) -> None:
    q, k, v = (
        query(kv_heads * group, key_dim, dtype),
        cache(kv_heads, key_dim, dtype),
        cache(kv_heads, value_dim, dtype),
    )
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(kernel(q, k, v).float(), written_out(q, k, v), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(
    ("window", "scaling", "softcap", "has_sinks"),
    list(product([None, 1, 20], [None, 0.3], [None, 5.0], [False, True])),
)
def test_it_keeps_windows_scales_soft_caps_and_sinks(
    window: int | None, scaling: float | None, softcap: float | None, has_sinks: bool
) -> None:
    q, k, v = query(6, 64, torch.float32), cache(2, 64, torch.float32), cache(2, 64, torch.float32)
    options = {
        "window": window,
        "scaling": scaling,
        "softcap": softcap,
        "sinks": torch.linspace(-2, 2, 6) if has_sinks else None,
    }
    torch.testing.assert_close(kernel(q, k, v, **options), written_out(q, k, v, **options), atol=1e-5, rtol=1e-5)  # type: ignore[arg-type]


def test_large_scores_neither_overflow_nor_lose_the_best() -> None:
    q, k, v = 300 * query(4, 64, torch.float32), cache(2, 64, torch.float32), cache(2, 64, torch.float32)
    torch.testing.assert_close(kernel(q, k, v), written_out(q, k, v), atol=1e-4, rtol=1e-4)


def test_several_threads_give_the_same_bits_as_one() -> None:
    q, k, v = query(6, 64, torch.float32), cache(2, 64, torch.float32), cache(2, 64, torch.float32)
    one, before = kernel(q, k, v), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert torch.equal(kernel(q, k, v), one)
    finally:
        torch.set_num_threads(before)


def test_what_it_does_not_know_goes_another_way() -> None:
    k = cache(1, 64, torch.float32)
    assert not can_decode(query(9, 64, torch.float32), k, k)  # too many queries a head
    assert not can_decode(query(2, 24, torch.float32), cache(1, 24, torch.float32), k)
    assert not can_decode(query(2, 64, torch.float16), k.half(), k.half())


def test_it_does_not_change_how_the_process_rounds() -> None:
    """Linked with fast arithmetic a library would turn the smallest numbers into zeros for everybody."""
    smallest = torch.tensor([1e-40])
    assert float(smallest * 1.0) > 0


def test_without_a_compiler_the_model_answers_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = tiny_models.load(tiny_models.save_architecture("llama", tmp_path))
    prompts = tiny_models.random_prompts()
    expected = tiny_models.answers(runner, prompts, 8)
    monkeypatch.setattr(decode.shutil, "which", lambda name: None)
    load_kernel.cache_clear()
    try:
        assert load_kernel() is None
        assert tiny_models.answers(runner, prompts, 8) == expected
    finally:
        monkeypatch.undo()
        load_kernel.cache_clear()
