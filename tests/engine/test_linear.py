"""Packed linear layers compute what plain ones do, and a row's result does not depend on its neighbours."""

from __future__ import annotations

import pytest
import torch
from transformers.pytorch_utils import Conv1D

from jupyter_dsserve.engine.linear import PackedLinear, PackedPart, pack_linears

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


class Attention(torch.nn.Module):
    """Three layers that read the same rows, one of another name that does too, and one that reads others."""

    def __init__(self, *, with_bias: bool) -> None:
        super().__init__()
        self.q_proj = torch.nn.Linear(12, 24, bias=with_bias)
        self.k_proj = torch.nn.Linear(12, 8, bias=with_bias)
        self.v_proj = torch.nn.Linear(12, 8, bias=with_bias)
        self.gate = torch.nn.Linear(12, 5)
        self.o_proj = torch.nn.Linear(24, 12, bias=with_bias)


@torch.no_grad()
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("with_bias", [True, False])
def test_layers_that_read_the_same_rows_are_one_product_and_give_each_its_own_numbers(
    with_bias: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(4)
    model = Attention(with_bias=with_bias).to(dtype)
    plain = {name: (layer, layer.weight.clone()) for name, layer in model.named_children()}
    assert pack_linears(model) == 5
    assert [name for name, layer in model.named_children() if isinstance(layer, PackedPart)] == [
        "q_proj",
        "k_proj",
        "v_proj",
    ]
    rows, others = torch.randn(1, 3, 12).to(dtype), torch.randn(1, 3, 12).to(dtype)
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    # In the order of a model, in another, and each with rows of its own.
    for calls in (["q", "k", "v"], ["v", "q", "k"], ["k", "k", "q"]):
        for given in (rows, others):
            for name in calls:
                layer, weight = plain[f"{name}_proj"]
                packed = getattr(model, f"{name}_proj")
                assert torch.allclose(packed(given), layer(given), atol=tolerance)
                assert torch.equal(packed.weight, weight)


@torch.no_grad()
def test_layers_of_different_kinds_or_widths_stay_apart() -> None:
    model = Attention(with_bias=True)
    model.k_proj = torch.nn.Linear(12, 8, bias=False)
    model.up_proj, model.gate_proj = torch.nn.Linear(12, 4), torch.nn.Linear(6, 4)
    assert pack_linears(model) == 7
    assert not any(isinstance(layer, PackedPart) for layer in model.modules())
