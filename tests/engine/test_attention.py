"""What attends to what, and what the ragged attention refuses."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import pytest
import torch

from jupyter_dsserve.engine import attention
from jupyter_dsserve.engine.attention import NotRagged, Rows, ragged_attention, ragged_mask, split
from jupyter_dsserve.engine.kv_cache import KVCache
from jupyter_dsserve.engine.memory import held_bytes
from jupyter_dsserve.engine.runner import Copy, Trim
from jupyter_dsserve.protocol.errors import InvalidRequest
from tests.engine import tiny_models

CPU = torch.device("cpu")


def decoding(*sequences: tuple[int, int]) -> list[Rows]:
    """Decoding sequences by (slot, position), one row each."""
    return [Rows(slot, position, first, 1) for first, (slot, position) in enumerate(sequences)]


def slots(runs: list[list[Rows]]) -> list[list[int]]:
    return [[row.slot for row in run] for run in runs]


class TestSplit:
    """Decoding sequences share a call where that is cheaper than another call."""

    def test_neighbours_of_like_length_attend_together(self) -> None:
        rows = decoding((0, 50), (1, 60), (2, 55))
        assert slots(split(rows, None, call_cost=80, most_copied=0)) == [[0, 1, 2]]

    def test_a_much_longer_neighbour_attends_alone(self) -> None:
        rows = decoding((0, 50), (1, 60), (2, 1000), (3, 40))
        assert slots(split(rows, None, call_cost=80, most_copied=0)) == [[0, 1], [2], [3]]

    def test_a_free_slot_between_them_parts_two_unless_copying_is_cheap(self) -> None:
        rows = decoding((0, 50), (2, 50))
        assert slots(split(rows, None, call_cost=80, most_copied=0)) == [[0], [2]]
        assert slots(split(rows, None, call_cost=80, most_copied=10_000)) == [[0, 2]]

    def test_no_more_is_copied_together_than_may_be(self) -> None:
        rows = decoding(*[(2 * n, 99) for n in range(5)])
        assert slots(split(rows, None, call_cost=10_000, most_copied=250)) == [[0, 2], [4, 6], [8]]

    def test_chunks_of_prompts_join_nobody(self) -> None:
        rows = [*decoding((0, 10), (1, 10)), Rows(2, 0, 2, 8), Rows(3, 0, 10, 8)]
        assert slots(split(rows, None, call_cost=10_000, most_copied=10_000)) == [[0, 1], [2], [3]]

    def test_a_window_parts_sequences_that_stand_at_different_places(self) -> None:
        """Both see 16 keys; together they would have to look at 916."""
        rows = decoding((0, 100), (1, 1000))
        assert slots(split(rows, 16, call_cost=80, most_copied=0)) == [[0], [1]]


def test_rows_see_their_past_and_themselves_up_to_the_window() -> None:
    chunk = Rows(slot=0, start=10, first=0, num_rows=5)
    assert chunk.keys_seen(None) == (0, 15)
    assert chunk.keys_seen(4) == (7, 15)
    assert chunk.keys_seen(100) == (0, 15)


@pytest.mark.parametrize("name", ["llama", "qwen2-window", "gemma2", "gpt-oss"])
def test_any_grouping_gives_the_same_answers(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each sequence in a call of its own; or, as on a GPU, ordered by length and in one call over copied K and V."""
    runner = tiny_models.load(tiny_models.save_architecture(name, tmp_path))
    prompts = tiny_models.random_prompts()

    def grouped(call_cost: int, most_copied: int) -> list[list[int]]:
        runner._sorts_by_length = most_copied > 0
        monkeypatch.setattr(attention, "split", lambda rows, window, *_: split(rows, window, call_cost, most_copied))
        return tiny_models.answers(runner, prompts, 16)

    apart = grouped(0, 0)
    assert grouped(1_000_000, 1_000_000) == apart
    assert grouped(80, 0) == apart


class TestRefusals:
    """An attention that we do not compute is refused, never computed as something else."""

    def attend(self, attention_mask: Any = None, **keywords: Any) -> None:
        head = torch.zeros(1, 2, 3, 4)
        ragged_attention(torch.nn.Identity(), head, head, head, attention_mask, **keywords)

    def test_an_unknown_keyword_is_refused_by_name(self) -> None:
        with pytest.raises(NotRagged, match="unknown argument position_bias"):
            self.attend(position_bias=torch.zeros(1))

    @pytest.mark.parametrize(
        ("keywords", "message"),
        [
            ({"is_causal": False}, "is not causal"),
            ({"dropout": 0.1}, "dropout of 0.1"),
            ({"attention_mask": torch.zeros(1, 1, 3, 3)}, "a mask of its own"),
            ({"sliding_window": 8}, "a window of 8, but its mask has none"),
            ({"attention_mask": 4, "sliding_window": 8}, "a window of 8, but its mask has 4"),
        ],
    )
    def test_what_would_change_the_numbers_is_refused(self, keywords: dict[str, Any], message: str) -> None:
        with pytest.raises(NotRagged, match=message):
            self.attend(**keywords)

    def test_a_mask_that_is_more_than_causal_is_refused(self) -> None:
        for asked in ({"use_vmap": True}, {"allow_is_causal_skip": False}, {"allow_is_bidirectional_skip": True}):
            with pytest.raises(NotRagged, match="more than causal"):
                ragged_mask(**asked)

    def test_the_self_check_of_a_model_with_an_unknown_keyword_fails(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        runner = tiny_models.load(tiny_models.save_architecture("llama", tmp_path))
        layer = runner._model.model.layers[0].self_attn
        plain = layer.forward
        monkeypatch.setattr(layer, "forward", lambda *args, **given: plain(*args, **given, alibi=torch.zeros(1)))
        with pytest.raises(NotRagged, match="LlamaAttention brings the unknown argument alibi"):
            runner.check()


class TestKVCache:
    def test_rows_land_at_their_slot_and_position_and_nowhere_else(self) -> None:
        cache = KVCache(num_slots=3, max_context=8, device=CPU)
        places = torch.tensor([*cache.places(2, 5, 6), *cache.places(0, 7, 8)])
        key, value = torch.rand(2, 2, 4), torch.rand(2, 2, 6)
        keys, values = cache.write(0, places, key, value)
        assert keys.shape == (2, 3, cache.stride, 4)
        assert values.shape == (2, 3, cache.stride, 6)
        torch.testing.assert_close(keys[:, 2, 5], key[:, 0])
        torch.testing.assert_close(values[:, 0, 7], value[:, 1])
        assert keys.count_nonzero() == key.count_nonzero()

    def test_room_that_nobody_uses_costs_no_memory(self) -> None:
        """Two GiB for a layer, of which one token is written."""
        before = held_bytes(CPU)
        cache = KVCache(num_slots=64, max_context=16384, device=CPU)
        keys, _ = cache.write(0, torch.tensor(cache.places(63, 9000, 9001)), torch.ones(4, 1, 64), torch.ones(4, 1, 64))
        assert keys.nbytes == 2**30
        assert held_bytes(CPU) - before < 2**25

    def test_a_copy_brings_the_beginning_of_a_slot_to_another(self) -> None:
        cache = KVCache(num_slots=3, max_context=8, device=CPU)
        places = torch.tensor(cache.places(2, 0, 3))
        keys, values = cache.write(0, places, torch.rand(2, 3, 4), torch.rand(2, 3, 4))
        cache.do(Copy(source=2, target=1, num_tokens=2))
        for tensor in (keys, values):
            assert torch.equal(tensor[:, 1, :2], tensor[:, 2, :2])
            assert not tensor[:, 1, 2].any()

    def test_what_is_trimmed_gives_its_memory_back_and_nothing_else_does(self) -> None:
        cache = KVCache(num_slots=4, max_context=4096, device=CPU)
        ones = torch.ones(4, 4 * 4096, 64)
        keys, values = cache.write(0, torch.arange(4 * 4096), ones, ones)
        gc.collect()  # else what another test left may go in between
        before = held_bytes(CPU)
        cache.do(Trim(slot=1, num_tokens=64))
        given_back = before - held_bytes(CPU)
        assert abs(given_back / (2 * 4 * (4096 - 64) * 64 * 4) - 1) < 0.1
        for tensor in (keys, values):
            assert not tensor[:, 1, 64:].any()
            assert tensor[:, 1, :64].all()
            assert tensor[:, [0, 2, 3]].all()

    def test_scarce_memory_is_counted_in_blocks_of_whole_pages(self) -> None:
        cache = KVCache(num_slots=4, max_context=256, device=CPU)
        cache.write(0, torch.tensor([0]), torch.ones(2, 1, 32), torch.ones(2, 1, 32))
        assert cache.token_bytes == 2 * 2 * 32 * 4
        assert cache.room(4, 256, 2**30).num_blocks == 4 * 256 // 16
        scarce = cache.room(4, 256, 300 * cache.token_bytes)
        assert (scarce.block_tokens * 32 * 4) % 4096 == 0
        assert scarce.num_blocks == 300 // scarce.block_tokens
        with pytest.raises(InvalidRequest, match="kv_bytes"):
            cache.room(4, 256, 200 * cache.token_bytes)
