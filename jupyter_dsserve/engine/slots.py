"""Slots of the KV cache: who has which, how much memory they fill, and what stands in them that can be used again.

A slot is room for one sequence of the whole context, one after the other in memory. Only what was written has memory
behind it, so many slots share a pool of ``num_blocks`` blocks: the page table of the processor does what paged
attention (Kwon et al. 2023) does in a kernel, as in vAttention (Prabhu et al. 2024). On a GPU a table of ours does
(`paged_cache`).

A sequence that has ended leaves its keys and values behind, and a prompt that begins as it did starts from there
(prefix caching, SGLang's radix tree: Zheng et al. 2023): in place if nothing else is lost by it, else by a copy. What
is in nobody's use goes when its slot or its blocks are needed, the longest unused first.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field

from jupyter_dsserve.engine.runner import Copy, KVRoom, Move, Trim


@dataclass(frozen=True, slots=True)
class Grant:
    """A slot for a sequence; the first ``num_cached`` of its tokens stand there already (once the moves are done)."""

    slot: int
    num_cached: int


@dataclass(slots=True)
class _Slot:
    """``tokens[:num_valid]`` have their K and V here. ``path`` names their complete blocks in the tree."""

    tokens: list[int] = field(default_factory=list)
    num_valid: int = 0
    num_blocks: int = 0  # with memory behind them, from the first on
    is_taken: bool = False
    path: list[int] = field(default_factory=list)


class Slots:
    """Knows numbers only. What is to happen in the cache itself is in ``moves``, to be done in order before a step.

    The lowest free slot is given first: sequences that run lie side by side, and attend in one call.
    """

    def __init__(self, room: KVRoom) -> None:
        self.room = room
        self.moves: list[Move] = []
        self.is_limited = room.is_limited
        self._slots = [_Slot() for _ in range(room.num_slots)]
        self._free = list(range(room.num_slots))  # a heap
        self._idle: dict[int, None] = {}  # free slots with something in them, the longest unused first
        self._tree = _Tree()
        self._num_filled = 0  # blocks with memory behind them, in all slots

    @property
    def has_free(self) -> bool:
        return bool(self._free)

    def num_cached(self, tokens: list[int]) -> int:
        """How many of a prompt's first tokens stand in some slot."""
        return self._match(tokens)[1]

    @property
    def taken(self) -> set[int]:
        """The slots that sequences have which run now."""
        return {number for number, held in enumerate(self._slots) if held.is_taken}

    @property
    def used(self) -> float:
        """Share of the blocks that sequences hold which run now."""
        taken = sum(self._blocks(s.num_valid) for s in self._slots if s.is_taken)
        return taken / max(1, self.room.num_blocks)

    # ---- a sequence's way

    def take(self, tokens: list[int], num_running: int = 0, *, reuse: bool = True) -> Grant | None:
        """A slot with memory for ``tokens``; None if there is no slot, or too few blocks.

        A block for each of the ``num_running`` sequences is left over, so that a newcomer does not at once drive one
        of them out. At least one token is left to compute. ``reuse`` False computes all.
        """
        if not self._free:
            return None
        source, num_cached = self._match(tokens) if reuse else (-1, 0)
        in_place = source >= 0 and not self._slots[source].is_taken
        slot = source if in_place and self._is_better_in_place(source, num_cached) else self._free[0]
        if not self._has_room(slot, source, len(tokens), num_running):
            if not in_place or not self._has_room(source, source, len(tokens), num_running):
                return None
            slot = source
        if slot != source or not self._is_all_used(source, num_cached):
            self._shelter(slot, source)
        self._take(slot)
        self._fill(slot, source, tokens, num_cached)
        return Grant(slot, num_cached)

    def grow(self, slot: int, num_tokens: int) -> bool:
        """Memory for the first ``num_tokens`` of a slot. False if there is none, even without what is idle."""
        missing = self._blocks(num_tokens) - self._slots[slot].num_blocks
        if missing > 0:
            if not self._reclaim(missing):
                return False
            self._set_blocks(slot, self._blocks(num_tokens))
        return True

    def computed(self, slot: int, num_tokens: int) -> None:
        """The first ``num_tokens`` of the slot's sequence have their K and V now."""
        held = self._slots[slot]
        held.num_valid = num_tokens
        size = self.room.block_tokens
        if num_tokens > held.num_blocks * size:
            self._set_blocks(slot, self._blocks(num_tokens))
        while (end := (len(held.path) + 1) * size) <= num_tokens:
            held.path.append(self._tree.add(held.path[-1] if held.path else 0, held.tokens[end - size : end], slot))

    def release(self, slot: int) -> None:
        """Its sequence has ended. What it leaves can be used again until the slot is."""
        held = self._slots[slot]
        held.is_taken = False
        heapq.heappush(self._free, slot)
        if held.num_blocks:
            self._idle[slot] = None

    def drop(self, slot: int) -> None:
        """Its sequence leaves, and so does what it computed."""
        self._empty(slot)
        self.release(slot)

    def forget(self) -> None:
        """Nothing that is idle can be used again: after a step that failed nobody knows what stands where, nor which
        of its moves were done."""
        for slot in list(self._idle):
            self._empty(slot)
        self.moves = [Trim(slot, 0) for slot in self._free]

    # ---- how it is done

    def _blocks(self, num_tokens: int) -> int:
        return -(-num_tokens // self.room.block_tokens)

    def _match(self, tokens: list[int]) -> tuple[int, int]:
        """The slot that begins with the most of ``tokens``, and how many of them; (-1, 0) if none does."""
        size, last, num_blocks = self.room.block_tokens, 0, 0
        for end in range(size, len(tokens), size):  # one token must be left to compute
            if (node := self._tree.find(last, tokens[end - size : end])) is None:
                break
            last, num_blocks = node, num_blocks + 1
        if not num_blocks:
            return -1, 0
        best, num_cached = -1, 0
        for slot in self._tree.holders(last):
            held = self._slots[slot]
            end = num_blocks * size
            stop = min(held.num_valid, len(tokens) - 1)
            while end < stop and held.tokens[end] == tokens[end]:
                end += 1
            if (end, not held.is_taken) > (num_cached, best >= 0 and not self._slots[best].is_taken):
                best, num_cached = slot, end
        return best, num_cached

    def _is_all_used(self, slot: int, num_cached: int) -> bool:
        """Whether taking the slot over loses less than a block of what stands there."""
        return self._slots[slot].num_valid - num_cached < self.room.block_tokens

    def _is_better_in_place(self, source: int, num_cached: int) -> bool:
        """Whether taking ``source`` over forgets fewer tokens than taking the lowest free slot for a copy of it."""
        lowest = self._free[0]
        shelf = self._shelf(lowest, source)
        lost = self._slots[lowest if shelf is None else shelf].num_valid
        return self._is_all_used(source, num_cached) or self._slots[source].num_valid - num_cached < lost

    def _has_room(self, slot: int, source: int, num_tokens: int, reserve: int) -> bool:
        missing = self._blocks(num_tokens) - self._slots[slot].num_blocks
        spare = sum(self._slots[idle].num_blocks for idle in self._idle if idle not in (slot, source))
        return missing + reserve <= self.room.num_blocks - self._num_filled + spare or not self.is_limited

    def _take(self, slot: int) -> None:
        self._slots[slot].is_taken = True
        self._idle.pop(slot, None)
        if self._free[0] == slot:
            heapq.heappop(self._free)
        else:
            self._free.remove(slot)
            heapq.heapify(self._free)

    def _shelter(self, slot: int, source: int) -> None:
        """Move what stands in the free ``slot`` to another where nothing, or something longer unused, stands."""
        old, target = self._slots[slot], self._shelf(slot, source)
        if target is None or not old.path:
            return
        missing = len(old.path) - self._slots[target].num_blocks
        if self.is_limited and missing > self.room.num_blocks - self._num_filled:
            return
        num_valid = len(old.path) * self.room.block_tokens
        self._empty(target, keeps_memory=True)
        self._set_blocks(target, max(self._slots[target].num_blocks, len(old.path)))
        self._hold(target, old.tokens, num_valid)
        self._idle[target] = None
        self.moves.append(Copy(slot, target, num_valid))

    def _shelf(self, slot: int, source: int) -> int | None:
        """Another free slot than the two: the highest empty one, else the longest unused, if it is longer so than
        ``slot``. A slot of which the beginning is used again in place goes to an empty one or nowhere."""
        if empty := [s for s in self._free if s not in self._idle and s != slot]:
            return max(empty)
        oldest = next(iter(self._idle), None)
        return None if oldest in (slot, source) or slot == source else oldest

    def _fill(self, slot: int, source: int, tokens: list[int], num_cached: int) -> None:
        """Put ``tokens`` into ``slot``, of which ``source`` has the first ``num_cached``."""
        needed = self._blocks(len(tokens))
        held = self._slots[slot]
        self._reclaim(needed - held.num_blocks, spare=source)
        if slot != source:
            self._empty(slot, keeps_memory=True)
            if num_cached:
                self.moves.append(Copy(source, slot, num_cached))
        if held.num_blocks > needed and self.is_limited:
            self.moves.append(Trim(slot, needed * self.room.block_tokens))
            self._set_blocks(slot, needed)
        self._set_blocks(slot, max(held.num_blocks, needed))
        self._hold(slot, tokens, num_cached)

    def _hold(self, slot: int, tokens: list[int], num_valid: int) -> None:
        held = self._slots[slot]
        kept = num_valid // self.room.block_tokens
        for node in reversed(held.path[kept:]):
            self._tree.remove(node, slot)
        del held.path[kept:]
        held.tokens = tokens
        self.computed(slot, num_valid)

    def _reclaim(self, num_blocks: int, spare: int = -1) -> bool:
        """See that ``num_blocks`` have no memory behind them, taking it from idle slots other than ``spare``."""
        for slot in [s for s in self._idle if s != spare]:
            if self.room.num_blocks - self._num_filled >= num_blocks:
                break
            self._empty(slot)
        return self.room.num_blocks - self._num_filled >= num_blocks

    def _empty(self, slot: int, *, keeps_memory: bool = False) -> None:
        held = self._slots[slot]
        self._hold(slot, [], 0)
        self._idle.pop(slot, None)
        if held.num_blocks and not keeps_memory:
            self.moves.append(Trim(slot, 0))
            self._set_blocks(slot, 0)

    def _set_blocks(self, slot: int, num_blocks: int) -> None:
        self._num_filled += num_blocks - self._slots[slot].num_blocks
        self._slots[slot].num_blocks = num_blocks

    # ---- for tests and the soak

    def check(self) -> None:
        """Raises `AssertionError` with a sentence if the books do not agree with one another."""
        free, taken = set(self._free), self.taken
        assert len(free) == len(self._free), "a slot is free twice"
        assert not free & taken, f"slots {free & taken} are free and taken"
        assert len(free | taken) == self.room.num_slots, "a slot is lost"
        assert set(self._idle) <= free, "an idle slot is taken"
        assert self._num_filled == sum(s.num_blocks for s in self._slots), "blocks are miscounted"
        assert not self.is_limited or self._num_filled <= self.room.num_blocks, "more blocks are filled than there are"
        for number, held in enumerate(self._slots):
            assert self._blocks(held.num_valid) <= held.num_blocks, f"slot {number} holds what has no memory"
            assert len(held.path) == held.num_valid // self.room.block_tokens, f"slot {number} is not in the tree"
        self._tree.check({number: s.path for number, s in enumerate(self._slots)})

    def check_held(self, slot: int, tokens: list[int], num_computed: int) -> None:
        """Raises `AssertionError` if ``slot`` does not hold just the first ``num_computed`` of ``tokens``."""
        held = self._slots[slot]
        assert held.num_valid == num_computed, f"slot {slot} holds {held.num_valid} tokens, not {num_computed}"
        assert held.tokens[:num_computed] == tokens[:num_computed], f"slot {slot} holds another sequence's tokens"


class _Tree:
    """Blocks of tokens as the edges of a tree, with who holds each. Node 0 is the root, held by nobody."""

    def __init__(self) -> None:
        self._children: dict[tuple[int, tuple[int, ...]], int] = {}
        self._edges: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._holders: dict[int, dict[int, None]] = {}
        self._next = 1

    def find(self, parent: int, block: Seq[int]) -> int | None:
        return self._children.get((parent, tuple(block)))

    def holders(self, node: int) -> Iterator[int]:
        return iter(self._holders[node])

    def add(self, parent: int, block: Seq[int], slot: int) -> int:
        """``slot`` holds ``block`` behind ``parent``: its node."""
        edge = parent, tuple(block)
        if (node := self._children.get(edge)) is None:
            node, self._next = self._next, self._next + 1
            self._children[edge], self._edges[node], self._holders[node] = node, edge, {}
        self._holders[node][slot] = None
        return node

    def remove(self, node: int, slot: int) -> None:
        """``slot`` holds it no longer; the last holder's leaving ends the node. Leaves first."""
        del self._holders[node][slot]
        if not self._holders[node]:
            del self._holders[node], self._children[self._edges.pop(node)]

    def check(self, paths: dict[int, list[int]]) -> None:
        held: dict[int, set[int]] = {}
        for slot, path in paths.items():
            for node in path:
                held.setdefault(node, set()).add(slot)
        assert held == {node: set(slots) for node, slots in self._holders.items()}, "the tree and the slots disagree"
        assert set(self._edges) == set(held) == set(self._children.values()), "a node is left that nobody holds"
