"""Linear layers on a CPU, with their weights laid out once as oneDNN's matrix multiplication reads them.

For the few rows of a step torch's own call (MKL in fp32, oneDNN with a new layout each time in bf16) is far from what
the processor can do. Measured on one core of an EPYC with AVX-512, 1 / 16 / 64 rows of a 2048 × 384 layer, in µs: fp32
193 / 426 / 1030 plain and 90 / 166 / 438 packed, bf16 115 / 164 / 298 and 55 / 95 / 233. And a row's result is the
same bits however many rows stand beside it, which the plain call does not promise.

A call costs some 12 µs before the first number, as much as a small layer's arithmetic: layers that read the same rows
(`_TOGETHER`) are one product.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from itertools import accumulate, pairwise
from typing import Any

import torch
from transformers.pytorch_utils import Conv1D

with redirect_stdout(sys.__stderr__):
    import deepspeed
    from deepspeed.module_inject.layers import LinearAllreduce, LinearLayer
from jupyter_dsserve.engine.memory import return_freed

# The number of rows a layout is made for. Only 1 gives another layout, which is slower at every other number.
_ROWS = 16
_DTYPES = (torch.float32, torch.bfloat16)
# Children of one module that families call with the very same rows, in the order in which they do.
_TOGETHER = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("query", "key", "value"), ("w1", "w3"))


class PackedLinear(torch.nn.Module):
    """`torch.nn.Linear` for inference. Only a packed copy of the weight, ``[out, in]``, is kept."""

    def __init__(self, weight: torch.Tensor, bias: torch.Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self._bias = bias
        self._multiply: Callable[..., torch.Tensor] = torch.ops.mkldnn._linear_pointwise.default
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), _ROWS)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self._multiply(rows, self._packed, self._bias, "none", [], "")

    __call__ = forward  # no hooks: what `torch.nn.Module` adds to a call is 2 of the 17 µs of a small layer

    @property
    def weight(self) -> torch.Tensor:
        """The weight as it was, ``[out, in]``: a copy, for models that look at it (a router at its dtype)."""
        return self._packed.to_dense()

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self._bias is not None}"


class _Product:
    """Layers with one input as one product; ``slices`` are theirs of its columns. Kept until the last has taken its."""

    def __init__(self, layers: list[torch.nn.Linear]) -> None:
        weight = torch.cat([layer.weight.detach() for layer in layers])
        biases = [layer.bias.detach() for layer in layers if layer.bias is not None]
        self._layer = PackedLinear(weight, torch.cat(biases) if biases else None)
        ends = accumulate(len(layer.weight) for layer in layers)
        self.slices = [slice(begin, end) for begin, end in pairwise([0, *ends])]
        self._rows: torch.Tensor | None = None
        self._columns: torch.Tensor | None = None

    def columns(self, rows: torch.Tensor, part: slice) -> torch.Tensor:
        if rows is not self._rows or self._columns is None:
            self._rows, self._columns = rows, self._layer(rows)
        found = self._columns[..., part]
        if part is self.slices[-1]:
            self._rows = self._columns = None
        return found

    def weight(self, part: slice) -> torch.Tensor:
        return self._layer.weight[part]


class PackedPart(torch.nn.Module):
    """One of the layers of a product, called as it would be alone; right also where it is called with other rows."""

    def __init__(self, product: _Product, part: slice, in_features: int) -> None:
        super().__init__()
        self.out_features, self.in_features = part.stop - part.start, in_features
        self._product, self._part = product, part

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return self._product.columns(rows, self._part)

    __call__ = forward

    @property
    def weight(self) -> torch.Tensor:
        """The weight as it was, ``[out, in]``: a copy."""
        return self._product.weight(self._part)

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, columns={self._part}"


class PackedAllreduce(torch.nn.Module):
    """DeepSpeed's `LinearAllreduce` for inference: each rank has the columns of some inputs, and all add up."""

    def __init__(self, layer: LinearAllreduce) -> None:
        super().__init__()
        self._part = PackedLinear(layer.weight.detach(), None)
        self._ranks = layer.mp_group
        self._bias = None if layer.bias is None else layer.bias.detach().clone()

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        total = self._part(rows)
        deepspeed.comm.inference_all_reduce(total, group=self._ranks)
        return total if self._bias is None else total.add_(self._bias)


def can_pack(model: torch.nn.Module) -> bool:
    """Whether this build of torch has oneDNN, and the model lies where and as it can use it."""
    first = next(model.parameters())
    if first.device.type != "cpu" or first.dtype not in _DTYPES or not torch.backends.mkldnn.is_available():
        return False
    return first.dtype != torch.bfloat16 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


@torch.no_grad()
def pack_linears(model: torch.nn.Module) -> int:
    """Put packed layers in the place of every linear layer of ``model``; how many.

    One product at a time, so that never more than one weight is in memory twice. What is left of the weights is copied
    too: a single view of a mapped file would keep the whole of it in this process. A weight tied to an embedding is
    then there twice. What AutoTP made of a linear layer is packed too; other subclasses of `torch.nn.Linear` mean
    something of their own and are left alone.
    """
    # By name: whoever held the layers here would hold their weights until the end.
    products = [(parent, names) for parent in model.modules() for names in _products(parent)]
    for parent, names in products:
        for name, packed in zip(names, _packed([getattr(parent, name) for name in names]), strict=True):
            setattr(parent, name, packed)
        return_freed()  # what held the weights before
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return sum(len(names) for _, names in products)


def _products(parent: torch.nn.Module) -> list[tuple[str, ...]]:
    """The names of ``parent``'s linear layers, those together that make one product."""
    linear = {name: child for name, child in parent.named_children() if _is_linear(child)}
    together = [names for names in _TOGETHER if _can_join([linear.get(name) for name in names])]
    joined = {name for names in together for name in names}
    return [*together, *((name,) for name in linear if name not in joined)]


def _is_linear(child: torch.nn.Module) -> bool:
    if type(child) is LinearLayer:
        return not child.gather_output
    return type(child) in (torch.nn.Linear, Conv1D, LinearAllreduce)


def _can_join(layers: list[Any]) -> bool:
    """Plain layers (or AutoTP's) of one width, all with a bias or all without."""
    first = layers[0]
    return all(
        type(layer) in (torch.nn.Linear, LinearLayer)
        and layer.weight.shape[1] == first.weight.shape[1]
        and (layer.bias is None) == (first.bias is None)
        for layer in layers
    )


def _packed(layers: list[Any]) -> list[torch.nn.Module]:
    if len(layers) > 1:
        product = _Product(layers)
        return [PackedPart(product, part, layers[0].weight.shape[1]) for part in product.slices]
    (layer,) = layers
    if isinstance(layer, LinearAllreduce):
        return [PackedAllreduce(layer)]
    weight = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
    return [PackedLinear(weight.detach(), None if layer.bias is None else layer.bias.detach().clone())]
