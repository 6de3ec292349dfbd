"""Keys and values of every running sequence, in slots: one sequence a slot, one pair of tensors a layer."""

from __future__ import annotations

import math
import mmap

import torch

from jupyter_dsserve.protocol.errors import InvalidRequest

# Reserving nothing in advance lets a model with a long context load on a small machine: what is never written costs
# nothing. Where Python has no name for the flag, its number in Linux on x86 and ARM; macOS has none.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if hasattr(mmap, "MAP_POPULATE") else 0)


class KVCache:
    """K and V by layer, head, slot and position: ``[kv_heads, num_slots, max_context, head_dim]`` each.

    Heads come first, so that a step's K, which the model gives as ``[kv_heads, rows, head_dim]``, is written with one
    `index_copy_` over slots and positions together. A layer's tensors are made when it first writes, after the shapes
    it writes: under tensor parallel, or where K and V differ, they are not what the model's config says.
    """

    def __init__(self, num_slots: int, max_context: int, device: torch.device) -> None:
        self.num_slots = num_slots
        self.max_context = max_context
        self._device = device
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    def write(
        self, layer: int, places: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the rows of a step, ``[kv_heads, rows, head_dim]``, at ``places`` (`place` of each row).

        Returns all keys and values of the layer, ``[kv_heads, num_slots, max_context, head_dim]``.
        """
        if layer not in self._layers:
            self._layers[layer] = self._empty(key), self._empty(value)
        keys, values = self._layers[layer]
        keys.flatten(1, 2).index_copy_(1, places, key)
        values.flatten(1, 2).index_copy_(1, places, value)
        return keys, values

    def place(self, slot: int, position: int) -> int:
        """Where a token stands when slots and positions are counted through."""
        return slot * self.max_context + position

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        shape = (like.shape[0], self.num_slots, self.max_context, like.shape[2])
        num_bytes = math.prod(shape) * like.element_size()
        try:
            if self._device.type == "cpu":
                return _zero_pages(num_bytes, like.dtype).view(shape)
            return torch.zeros(shape, dtype=like.dtype, device=self._device)
        except (MemoryError, OSError, torch.OutOfMemoryError) as fault:
            raise InvalidRequest(
                f"no room for the KV cache: a layer needs twice {num_bytes / 2**20:.0f} MiB on {self._device} for "
                f"{self.num_slots} sequences of {self.max_context} tokens: lower max_sequences or max_context"
            ) from fault


def _zero_pages(num_bytes: int, dtype: torch.dtype) -> torch.Tensor:
    """Memory the system fills with zeros page by page as it is touched.

    `torch.zeros` would touch all of it now; `torch.empty` may hand out used memory, and a NaN in it, times an attention
    weight of zero, is a NaN.
    """
    if not hasattr(mmap, "MAP_PRIVATE"):
        return torch.zeros(num_bytes // dtype.itemsize, dtype=dtype)
    pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
    return torch.frombuffer(pages, dtype=dtype)
