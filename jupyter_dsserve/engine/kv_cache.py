"""Keys and values of every running sequence, in slots: one sequence a slot, one pair of tensors a layer.

Where a GPU has no room for so many whole slots, they stand in blocks instead (`paged_cache`).
"""

from __future__ import annotations

import math
import mmap

import torch

from jupyter_dsserve.engine.paged_cache import PagedCache
from jupyter_dsserve.engine.runner import Copy, KVRoom, Move
from jupyter_dsserve.protocol.errors import InvalidRequest

# Pages come from the system filled with zeros as they are touched: `torch.zeros` would touch all of them at once, and
# `torch.empty` may hand out used memory with a NaN in it, which times an attention weight of zero is a NaN.
# Reserving nothing in advance lets a model with a long context load on a small machine: what is never written costs
# nothing. Where Python has no name for the flag, its number in Linux on x86 and ARM; macOS has none.
_NO_RESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if hasattr(mmap, "MAP_POPULATE") else 0)


# Slots begin at multiples of so many tokens: at the beginning of a page, but for the smallest heads.
_ALIGN_TOKENS = 64
_BLOCK_TOKENS = 16


def _stride(max_context: int) -> int:
    return -(-max_context // _ALIGN_TOKENS) * _ALIGN_TOKENS


class KVCache:
    """K and V by layer, head, slot and position: ``[kv_heads, num_slots, stride, head_dim]`` each, with ``stride`` a
    little over ``max_context``.

    Heads come first, so that a step's K, which the model gives as ``[kv_heads, rows, head_dim]``, is written with one
    `index_copy_` over slots and positions together. A layer's tensors are made when it first writes, after the shapes
    it writes: under tensor parallel, or where K and V differ, they are not what the model's config says.
    """

    def __init__(self, num_slots: int, max_context: int, device: torch.device) -> None:
        self.num_slots = num_slots
        self.max_context = max_context
        self.stride = _stride(max_context)
        self._device = device
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._pages: list[tuple[mmap.mmap, int]] = []  # on a CPU, with the bytes of a slot in each head

    def write(
        self, layer: int, places: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the rows of a step, ``[kv_heads, rows, head_dim]``, at ``places`` (`place` of each row).

        Returns all keys and values of the layer, ``[kv_heads, num_slots, stride, head_dim]``.
        """
        if layer not in self._layers:
            self._layers[layer] = self._empty(key), self._empty(value)
        keys, values = self._layers[layer]
        keys.flatten(1, 2).index_copy_(1, places, key)
        values.flatten(1, 2).index_copy_(1, places, value)
        return keys, values

    def made_for(self, room: KVRoom) -> KVCache | PagedCache:
        """An empty cache of another size, with the layers that have written here: of whole slots, if they all fit."""
        if room.is_limited:
            return PagedCache(room, self._layers, self._device)
        made = KVCache(room.num_slots, room.max_context, self._device)
        for layer, (keys, values) in self._layers.items():
            made._layers[layer] = made._empty(keys[:, 0]), made._empty(values[:, 0])
        return made

    def places(self, slot: int, start: int, end: int) -> range:
        """Where the tokens at positions ``start`` to ``end`` stand when slots and positions are counted through."""
        return range(slot * self.stride + start, slot * self.stride + end)

    def seen(self, slots: list[int], low: int, high: int) -> tuple[slice | torch.Tensor, slice]:
        """How to find positions ``low`` to ``high`` of ``slots``: which slots, and which places in each.

        A slice where the slots follow one another, so that K and V are seen where they lie; else an index, which copies
        them.
        """
        follow = slots == list(range(slots[0], slots[0] + len(slots)))
        index = slice(slots[0], slots[0] + len(slots)) if follow else torch.tensor(slots, device=self._device)
        return index, slice(low, high)

    def do(self, move: Move) -> None:
        """Copy a beginning from slot to slot, or give memory back to the system (a GPU's stays)."""
        if isinstance(move, Copy):
            for tensor in (t for pair in self._layers.values() for t in pair):
                tensor[:, move.target, : move.num_tokens].copy_(tensor[:, move.source, : move.num_tokens])
        else:
            for pages, slot_bytes in self._pages:
                _give_back(pages, slot_bytes, self.num_slots, move.slot, slot_bytes * move.num_tokens // self.stride)

    @property
    def token_bytes(self) -> int:
        """K and V of one token in all layers that have written so far."""
        tensors = [t for pair in self._layers.values() for t in pair]
        return sum(t.shape[0] * t.shape[3] * t.element_size() for t in tensors)

    def room(self, num_slots: int, max_context: int, max_bytes: int) -> KVRoom:
        """What fits of ``num_slots`` sequences of up to ``max_context`` tokens into ``max_bytes``, by the layers that
        have written so far. Raises `InvalidRequest` if not even one does.

        Where memory is scarce on a CPU, blocks are of a size that fills whole pages: so the books say what the system
        sees.
        """
        is_cpu = self._device.type == "cpu"
        block_tokens = _BLOCK_TOKENS
        num_blocks = -(-max_context // block_tokens) * num_slots
        # A GPU's slots have their memory from the beginning, with what aligns them.
        full = num_blocks * block_tokens if is_cpu else _stride(max_context) * num_slots
        if self.token_bytes * full > max_bytes:
            block_tokens = self._tokens_of_pages() if is_cpu else _ALIGN_TOKENS
            num_blocks = max_bytes // (self.token_bytes * block_tokens)
            if num_blocks * block_tokens < max_context:
                needed = -(-max_context // block_tokens) * block_tokens * self.token_bytes
                raise InvalidRequest(
                    f"the KV cache may take {max_bytes / 2**20:.1f} MiB, but one sequence of {max_context} tokens "
                    f"takes {needed / 2**20:.1f} MiB in blocks of {block_tokens}: lower max_context, or raise kv_bytes",
                    param="kv_bytes",
                )
        return KVRoom(num_slots, max_context, num_blocks, block_tokens, num_blocks * block_tokens * self.token_bytes)

    def _tokens_of_pages(self) -> int:
        """The least tokens that fill whole pages of the system in every layer."""
        rows = {t.shape[3] * t.element_size() for pair in self._layers.values() for t in pair}
        to_a_page = [mmap.PAGESIZE // math.gcd(mmap.PAGESIZE, row) for row in rows]
        return min(_ALIGN_TOKENS, math.lcm(_BLOCK_TOKENS, *to_a_page))

    def _empty(self, like: torch.Tensor) -> torch.Tensor:
        shape = (like.shape[0], self.num_slots, self.stride, like.shape[2])
        num_bytes = math.prod(shape) * like.element_size()
        try:
            if self._device.type == "cpu" and hasattr(mmap, "MAP_PRIVATE"):
                pages = mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE)
                if hasattr(mmap, "MADV_NOHUGEPAGE"):  # a huge one would bring memory for several slots at a touch
                    pages.madvise(mmap.MADV_NOHUGEPAGE)
                self._pages.append((pages, num_bytes // (shape[0] * shape[1])))
                return torch.frombuffer(pages, dtype=like.dtype).view(shape)
            return torch.zeros(shape, dtype=like.dtype, device=self._device)
        except (MemoryError, OSError, torch.OutOfMemoryError) as fault:
            raise InvalidRequest(
                f"no room for the KV cache: a layer needs twice {num_bytes / 2**20:.0f} MiB on {self._device} for "
                f"{self.num_slots} sequences of {self.max_context} tokens: lower max_sequences or max_context"
            ) from fault


def _give_back(pages: mmap.mmap, slot_bytes: int, num_slots: int, slot: int, kept_bytes: int) -> None:
    """Let the system have the whole pages of a slot beyond ``kept_bytes``, in every head. They read as zeros then."""
    if not hasattr(mmap, "MADV_DONTNEED"):
        return
    for begin in range(slot * slot_bytes, len(pages), num_slots * slot_bytes):
        first = -(-(begin + kept_bytes) // mmap.PAGESIZE) * mmap.PAGESIZE
        last = (begin + slot_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        if last > first:
            pages.madvise(mmap.MADV_DONTNEED, first, last - first)
