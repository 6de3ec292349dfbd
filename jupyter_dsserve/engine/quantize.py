"""Linear layers with fewer bits a weight, by the one way of DeepSpeed's that does something without its own kernels.

`init_inference(quant=…)` and ZeRO's `post_init_quant` change nothing on a CPU, and ``dtype=int8`` is refused there.
"""

from __future__ import annotations

import math
import sys
from contextlib import redirect_stdout

import torch

from jupyter_dsserve.engine.filed import FiledLinear
from jupyter_dsserve.engine.memory import return_freed
from jupyter_dsserve.protocol.errors import InvalidRequest

with redirect_stdout(sys.__stderr__):
    from deepspeed.inference.quantization import layers

# It is a linear layer first, whose random weight goes at once: not to draw it saves its memory, and time.
layers.QuantizedLinear.reset_parameters = lambda _self: None


class _Dequantizer(layers.DeQuantizer):  # type: ignore[misc]
    """In torch's operations whatever the dtype: for fp16 DeepSpeed has a CUDA kernel, called experimental, that needs
    nvcc and is built in the middle of the first forward pass."""

    def dequantize(self, tensor: torch.Tensor, quant_scale: torch.Tensor, quant_min: torch.Tensor) -> torch.Tensor:
        numbers = self._decompress_uint4_to_uint8(tensor) if self.config["num_bits"] == 4 else tensor
        groups = numbers.unflatten(-1, (-1, self.config["group_size"]))
        made: torch.Tensor = self._dequantize_int8(groups, quant_scale, quant_min)
        return made.flatten(-2)


_BITS = {"int8": 8, "int4": 4}
_GROUP = 64  # weights that share a scale and a least value, along a row


@torch.no_grad()
def quantise_linears(model: torch.nn.Module, kind: str, dtype: torch.dtype) -> None:
    """Put a quantised layer, computed in ``dtype``, in the place of every linear one, but for those whose weight is the
    embedding too.

    One layer at a time; each forward pass makes its weights anew. Raises `InvalidRequest` with the figures if the
    weights take no less afterwards.
    """
    before = sum(p.numel() * (dtype if p.is_floating_point() else p.dtype).itemsize for p in model.parameters())
    embedding = model.get_input_embeddings().weight  # type: ignore[operator]
    # By name: a list of the layers would keep all their weights until the last is done.
    kinds = (torch.nn.Linear, FiledLinear)
    places = [(p, name) for p in model.modules() for name, c in p.named_children() if type(c) in kinds]
    for parent, name in places:
        layer = getattr(parent, name)
        if isinstance(layer, FiledLinear):
            layer.settle(dtype)
        if layer.weight is not embedding and (config := _config(layer, kind)):
            quantised = layers.QuantizedLinear(config, layer)
            quantised.weight.dequantizer = _Dequantizer(config, layer.weight.dtype)
            setattr(parent, name, quantised)
            del layer
            return_freed()  # what held the weight before
    layers.quantized_weight_registry.clear()
    after = _num_bytes(model)
    if after > 0.9 * before:
        raise InvalidRequest(
            f"quantize is {kind!r}, but the weights of {type(model).__name__} take {after / 1e6:.1f} MB with it and "
            f"{before / 1e6:.1f} MB without, as DeepSpeed knows too few of its layers: leave it out",
            param="quantize",
        )


def _config(layer: torch.nn.Linear, kind: str) -> dict[str, object] | None:
    """DeepSpeed's settings for a layer, None if it does not divide into groups that fill the words they are kept in."""
    size = math.gcd(_GROUP, layer.in_features)
    if size * _BITS[kind] < 8 * layer.weight.element_size():
        return None
    return {"num_bits": _BITS[kind], "group_size": size, "group_dim": 1, "symmetric": False}


def _num_bytes(model: torch.nn.Module) -> int:
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
