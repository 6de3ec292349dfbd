"""Linear layers on a CPU, with their weights laid out once as oneDNN's matrix multiplication reads them.

For the few rows of a step torch's own call (MKL in fp32, oneDNN with a new layout each time in bf16) is far from what
the processor can do. Measured on one core of an EPYC with AVX-512, 1 / 16 / 64 rows of a 2048 × 384 layer, in µs: fp32
193 / 426 / 1030 plain and 90 / 166 / 438 packed, bf16 115 / 164 / 298 and 55 / 95 / 233. And a row's result is the
same bits however many rows stand beside it, which the plain call does not promise.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import redirect_stdout
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
    """Put a `PackedLinear` in the place of every linear layer of ``model``; how many.

    One layer at a time, so that never more than one weight is in memory twice. What is left of the weights is copied
    too: a single view of a mapped file would keep the whole of it in this process. A weight tied to an embedding is
    then there twice. What AutoTP made of a linear layer is packed too; other subclasses of `torch.nn.Linear` mean
    something of their own and are left alone.
    """
    places = [
        (parent, name)
        for parent in model.modules()
        for name, child in parent.named_children()
        if type(child) in (torch.nn.Linear, Conv1D, LinearAllreduce)
        or (type(child) is LinearLayer and not child.gather_output)
    ]
    for parent, name in places:
        setattr(parent, name, _packed(getattr(parent, name)))
        return_freed()  # what held the weight before
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return len(places)


def _packed(layer: Any) -> PackedLinear | PackedAllreduce:
    if isinstance(layer, LinearAllreduce):
        return PackedAllreduce(layer)
    weight = layer.weight.t() if isinstance(layer, Conv1D) else layer.weight
    return PackedLinear(weight.detach(), None if layer.bias is None else layer.bias.detach().clone())
