"""Keys and values in blocks, for a GPU on which not every sequence has room for its whole context.

Paged attention (Kwon et al. 2023) without a kernel of its own: a table says in which blocks a sequence stands, and what
it attends to is copied together for the call. So memory is taken by what was written, as on a CPU, where the
processor's own page table does it (`slots`).
"""

from __future__ import annotations

import torch

from jupyter_dsserve.engine.runner import Copy, KVRoom, Move
from jupyter_dsserve.protocol.errors import InvalidRequest

Layers = dict[int, tuple[torch.Tensor, torch.Tensor]]


class PagedCache:
    """K and V by layer, head, block and place in it: ``[kv_heads, num_blocks, block_tokens, head_dim]`` each.

    ``layers`` are those of another cache, whose shapes these are made after. A slot gets a block when a step first
    writes there, and keeps it until it is trimmed: `Slots` sees that there are enough. Every rank does the same in the
    same order, so that all come to the same tables. Raises `InvalidRequest` if there is no memory for it.
    """

    def __init__(self, room: KVRoom, layers: Layers, device: torch.device) -> None:
        self._size = room.block_tokens
        self._device = device
        self._free = list(range(room.num_blocks - 1, -1, -1))
        self._blocks: list[list[int]] = [[] for _ in range(room.num_slots)]
        try:
            self._layers = {
                layer: (_pool(keys, room, device), _pool(values, room, device))
                for layer, (keys, values) in layers.items()
            }
        except torch.OutOfMemoryError as fault:
            raise InvalidRequest(
                f"no room for the KV cache of {room.max_bytes / 2**20:.0f} MiB on {device}: lower kv_bytes",
                param="kv_bytes",
            ) from fault

    def write(
        self, layer: int, places: torch.Tensor, key: torch.Tensor, value: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Put the rows of a step, ``[kv_heads, rows, head_dim]``, at ``places``. Returns all blocks of the layer."""
        keys, values = self._layers[layer]
        keys.flatten(1, 2).index_copy_(1, places, key)
        values.flatten(1, 2).index_copy_(1, places, value)
        return keys, values

    def places(self, slot: int, start: int, end: int) -> list[int]:
        """Where the tokens at positions ``start`` to ``end`` stand when blocks and places in them are counted through;
        the slot gets the blocks that it lacks."""
        size, blocks = self._size, self._grown(slot, end)
        return [blocks[at // size] * size + at % size for at in range(start, end)]

    def seen(self, slots: list[int], low: int, high: int) -> tuple[torch.Tensor, slice]:
        """How to find positions ``low`` to ``high`` of ``slots``: their blocks, ``[slots, blocks]``, and which places
        of those laid end to end. A shorter sequence repeats its last block, which a mask is to hide."""
        first, last = low // self._size, -(-high // self._size)
        rows = [self._blocks[slot][first:last] for slot in slots]
        rows = [row + row[-1:] * (last - first - len(row)) for row in rows]
        return torch.tensor(rows, device=self._device), slice(low - first * self._size, high - first * self._size)

    def do(self, move: Move) -> None:
        """Copy a beginning from slot to slot, or take back blocks."""
        num_blocks = -(-move.num_tokens // self._size)
        if isinstance(move, Copy):
            source = torch.tensor(self._blocks[move.source][:num_blocks], device=self._device)
            target = torch.tensor(self._grown(move.target, move.num_tokens)[:num_blocks], device=self._device)
            for tensor in (t for pair in self._layers.values() for t in pair):
                tensor[:, target] = tensor[:, source]
        else:
            held = self._blocks[move.slot]
            self._free.extend(reversed(held[num_blocks:]))
            del held[num_blocks:]

    @property
    def num_free(self) -> int:
        return len(self._free)

    def _grown(self, slot: int, num_tokens: int) -> list[int]:
        held = self._blocks[slot]
        while len(held) * self._size < num_tokens:
            held.append(self._free.pop())
        return held


def _pool(like: torch.Tensor, room: KVRoom, device: torch.device) -> torch.Tensor:
    """Zeros, since an attention weight of zero times a NaN is a NaN. ``like`` is ``[kv_heads, …, head_dim]``."""
    shape = (like.shape[0], room.num_blocks, room.block_tokens, like.shape[-1])
    return torch.zeros(shape, dtype=like.dtype, device=device)
