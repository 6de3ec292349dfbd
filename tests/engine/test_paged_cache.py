"""Keys and values in blocks: a GPU's way, here on the CPU."""

from __future__ import annotations

from itertools import chain
from pathlib import Path

import pytest
import torch

from jupyter_dsserve.engine import attention
from jupyter_dsserve.engine.attention import split
from jupyter_dsserve.engine.paged_cache import PagedCache
from jupyter_dsserve.engine.ragged import Plan, RaggedRunner
from jupyter_dsserve.engine.runner import Copy, KVRoom, Trim
from jupyter_dsserve.engine.scheduler import Scheduler
from tests.engine import tiny_models

CPU = torch.device("cpu")
ROOM = KVRoom(num_slots=16, max_context=256, num_blocks=6, block_tokens=64)


def cache_of(num_blocks: int, block_tokens: int) -> PagedCache:
    """Of one layer with two heads, 4 numbers in a key and 6 in a value."""
    room = KVRoom(num_slots=3, max_context=64, num_blocks=num_blocks, block_tokens=block_tokens)
    return PagedCache(room, {0: (torch.empty(2, 1, 1, 4), torch.empty(2, 1, 1, 6))}, CPU)


def written(cache: PagedCache, slot: int, start: int, end: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random K and V of these positions, and put where they belong."""
    key, value = torch.rand(2, end - start, 4), torch.rand(2, end - start, 6)
    cache.write(0, torch.tensor(cache.places(slot, start, end)), key, value)
    return key, value


def read(cache: PagedCache, slot: int, low: int, high: int) -> tuple[torch.Tensor, torch.Tensor]:
    where, keys = cache.seen([slot], low, high)
    group = attention.Group(slice(0, 1), where, keys, None)
    k, v = (group.of(kept)[0] for kept in cache._layers[0])
    return k, v


def test_what_is_written_is_read_again_wherever_its_blocks_lie() -> None:
    cache = cache_of(num_blocks=6, block_tokens=4)
    one, two = written(cache, 0, 0, 3), written(cache, 2, 0, 5)
    more = written(cache, 0, 3, 10)
    assert cache.num_free == 6 - 3 - 2
    for found, first, later in zip(read(cache, 0, 2, 10), one, more, strict=True):
        torch.testing.assert_close(found, torch.cat([first[:, 2:], later], 1))
    for found, whole in zip(read(cache, 2, 4, 5), two, strict=True):
        torch.testing.assert_close(found, whole[:, 4:])


def test_a_copy_brings_the_beginning_and_a_trim_gives_back_the_blocks_behind_it() -> None:
    cache = cache_of(num_blocks=6, block_tokens=4)
    whole = written(cache, 1, 0, 10)
    cache.do(Copy(source=1, target=0, num_tokens=6))
    assert cache.num_free == 6 - 3 - 2
    cache.do(Trim(slot=1, num_tokens=0))
    assert cache.num_free == 4
    written(cache, 2, 0, 16)  # over what slot 1 had
    for found, was in zip(read(cache, 0, 0, 6), whole, strict=True):
        torch.testing.assert_close(found, was[:, :6])
    cache.do(Trim(slot=2, num_tokens=9))
    assert cache.num_free == 1


def test_sequences_of_unlike_length_are_found_together_and_the_shorter_repeats_itself() -> None:
    cache = cache_of(num_blocks=6, block_tokens=4)
    written(cache, 0, 0, 10)
    short, _ = written(cache, 1, 0, 3)
    where, keys = cache.seen([1, 0], 1, 10)
    assert (where.shape, keys) == ((2, 3), slice(1, 10))
    assert where[0].unique().numel() == 1
    found = attention.Group(slice(0, 2), where, keys, None).of(cache._layers[0][0])
    torch.testing.assert_close(found[0, :, :2], short[:, 1:])


def in_blocks(folder: Path, monkeypatch: pytest.MonkeyPatch) -> RaggedRunner:
    """A runner whose sequences attend as on a GPU, over what is copied together, and have six blocks in all."""
    monkeypatch.setattr(attention, "can_decode", lambda *_: False)
    monkeypatch.setattr(attention, "split", lambda rows, window, *_: split(rows, window, 1_000_000, 1_000_000))
    runner = tiny_models.load(folder)
    runner.check()
    runner._sorts_by_length = True
    runner._make_cache(ROOM)
    return runner


@pytest.mark.parametrize("name", ["llama", "qwen2-window", "gemma2", "gpt-oss"])
def test_many_sequences_share_a_memory_that_holds_the_context_of_one(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some are driven out and computed again, beginnings are found and copied, answers stay, the books are right."""
    folder = tiny_models.save_architecture(name, tmp_path)
    beginning, *ends = tiny_models.random_prompts([70, 57, 55, 1, 58, 30, 56])
    prompts = [beginning + end for end in ends]
    plain = tiny_models.load(folder)
    expected = [tiny_models.answers(plain, asked, 80) for asked in (prompts, prompts[::-1])]
    runner = in_blocks(folder, monkeypatch)
    scheduler, cache, compute = Scheduler(ROOM, runner.max_step_tokens), runner._cache, runner.compute
    assert isinstance(cache, PagedCache)

    def looked(plan: Plan) -> torch.Tensor:
        logits = compute(plan)
        scheduler.check()
        held = [len(blocks) for blocks in cache._blocks]
        assert all(num <= slot.num_blocks for num, slot in zip(held, scheduler.slots._slots, strict=True))
        assert sorted([*cache._free, *chain(*cache._blocks)]) == list(range(ROOM.num_blocks))
        return logits

    monkeypatch.setattr(runner, "compute", looked)
    assert [tiny_models.answers(runner, asked, 80, scheduler) for asked in (prompts, prompts[::-1])] == expected
    assert scheduler.num_preempted > 0
    assert scheduler.num_cached > 60
