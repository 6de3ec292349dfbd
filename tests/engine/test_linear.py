"""Packed linear layers compute what plain ones do, and a row's result does not depend on its neighbours."""

from __future__ import annotations

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from jupyter_dsserve.engine.linear import PackedLinear, pack_linears

DTYPES = [torch.float32, torch.bfloat16]


class Tied(torch.nn.Module):
    """An embedding whose weight is the last layer's too."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(50, 12)
        self.inner = torch.nn.Sequential(torch.nn.Linear(12, 20), Conv1D(12, 20))
        self.head = torch.nn.Linear(12, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head.forward(self.inner(self.embedding(tokens)))
        return logits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(7, 3), (640, 384), (100, 37)])
def test_a_packed_layer_gives_the_plain_ones_numbers(shape: tuple[int, int], dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(1)
    weight, bias = torch.randn(shape, generator=draw).to(dtype), torch.randn(shape[0], generator=draw).to(dtype)
    rows = torch.randn(1, 9, shape[1], generator=draw).to(dtype)
    exact = torch.nn.functional.linear(rows.double(), weight.double(), bias.double())
    packed = PackedLinear(weight, bias)(rows)
    assert packed.dtype == dtype
    assert packed.shape == exact.shape
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2
    assert float((packed - exact).abs().max() / exact.abs().max()) < tolerance


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_row_is_the_same_bits_in_any_company(dtype: torch.dtype) -> None:
    draw = torch.Generator().manual_seed(2)
    layer = PackedLinear(torch.randn(96, 64, generator=draw).to(dtype), None)
    rows = torch.randn(130, 64, generator=draw).to(dtype)
    together = layer(rows)
    for num_rows in (1, 2, 3, 16, 17, 64, 129):
        assert torch.equal(layer(rows[:num_rows]), together[:num_rows])


@torch.no_grad()
def test_every_linear_layer_of_a_model_is_replaced_and_a_tied_embedding_stays() -> None:
    torch.manual_seed(3)
    model = Tied()
    tokens = torch.arange(10)
    plain, weight = model(tokens), model.embedding.weight.clone()
    assert pack_linears(model) == 3
    assert not any(type(module) in (torch.nn.Linear, Conv1D) for module in model.modules())
    assert torch.allclose(model(tokens), plain, atol=1e-5)
    assert torch.equal(model.embedding.weight, weight)
