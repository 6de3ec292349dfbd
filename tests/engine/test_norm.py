"""RMS norms are fused where that gives the numbers of the family's own class, and left alone elsewhere."""

from __future__ import annotations

import pytest
import torch
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm
from transformers.models.mamba2.modeling_mamba2 import MambaRMSNormGated
from transformers.models.qwen3.modeling_qwen3 import Qwen3RMSNorm

from jupyter_dsserve.engine.norm import FusedNorm, fuse_norms


def with_weight(norm: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    with torch.no_grad():
        norm.weight.copy_(torch.randn(norm.weight.shape))
    return norm.to(dtype)


@torch.no_grad()
@pytest.mark.parametrize("make", [LlamaRMSNorm, Qwen3RMSNorm])
@pytest.mark.parametrize("shape", [(1, 1, 48), (1, 33, 48), (1, 5, 3, 48)])
def test_a_norm_is_one_call_with_the_same_bits_in_fp32(make: type[torch.nn.Module], shape: tuple[int, ...]) -> None:
    torch.manual_seed(1)
    model = torch.nn.Sequential(with_weight(make(48, eps=1e-5), torch.float32))
    rows = 10 * torch.randn(shape)
    expected = model(rows)
    assert fuse_norms(model) == 1
    assert isinstance(model[0], FusedNorm)
    assert torch.equal(model(rows), expected)


@torch.no_grad()
def test_a_norm_in_bf16_differs_by_a_rounding_at_most() -> None:
    torch.manual_seed(2)
    model = torch.nn.Sequential(with_weight(LlamaRMSNorm(48), torch.bfloat16))
    rows = torch.randn(1, 33, 48).bfloat16()
    expected = model(rows)
    assert fuse_norms(model) == 1
    assert torch.allclose(model(rows), expected, rtol=2**-6)


@torch.no_grad()
@pytest.mark.parametrize("norm", [GemmaRMSNorm(48), MambaRMSNormGated(48, 48)], ids=["one is added", "gated"])
def test_a_norm_that_computes_something_else_is_left_alone(norm: torch.nn.Module) -> None:
    model = torch.nn.Sequential(with_weight(norm, torch.float32))
    assert fuse_norms(model) == 0
    assert model[0] is norm
