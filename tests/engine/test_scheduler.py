"""The scheduler's claims, without a model."""

from __future__ import annotations

from jupyter_dsserve.engine.runner import KVRoom, Step
from jupyter_dsserve.engine.scheduler import Scheduler, shares
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.request import SamplingParams


def scheduler_of(num_slots: int, max_step_tokens: int) -> Scheduler:
    """With memory for all, and no block that ever fills: nothing is used again."""
    return Scheduler(KVRoom(num_slots, max_context=1024, num_blocks=num_slots, block_tokens=1024), max_step_tokens)


def sequence(name: str, num_prompt: int) -> Sequence:
    return Sequence(name, list(range(num_prompt)), SamplingParams())


def running(scheduler: Scheduler, *sequences: Sequence) -> None:
    for s in sequences:
        scheduler.add(s)
        assert scheduler.admit() is s


def do(scheduler: Scheduler) -> Step:
    """One step, as the engine does it: every sampled sequence gets a token."""
    step = scheduler.schedule()
    assert step is not None
    scheduler.advance(step)
    for s in step.sampled:
        s.tokens.append(0)
    return step


def shape(step: Step) -> list[tuple[str, int, int, bool]]:
    return [(s.sequence.id, s.start, s.num_tokens, s.is_sampled) for s in step.spans]


def test_nothing_to_do_is_no_step() -> None:
    assert scheduler_of(4, 16).schedule() is None


def test_a_long_prompt_is_cut_into_chunks_and_only_its_last_row_is_sampled() -> None:
    scheduler = scheduler_of(4, 16)
    running(scheduler, sequence("a", 35))
    steps = [shape(do(scheduler)) for _ in range(4)]
    assert steps == [[("a", 0, 16, False)], [("a", 16, 16, False)], [("a", 32, 3, True)], [("a", 35, 1, True)]]


def test_decoding_goes_first_and_prompts_share_what_is_left_of_the_budget_oldest_first() -> None:
    scheduler = scheduler_of(4, 16)
    running(scheduler, sequence("a", 2))
    do(scheduler)
    running(scheduler, sequence("b", 10), sequence("c", 10))
    step = do(scheduler)
    assert shape(step) == [("a", 2, 1, True), ("b", 0, 10, True), ("c", 0, 5, False)]
    assert step.num_decoding == 1


def told(*missing: int, budget: int, priorities: tuple[int, ...] = ()) -> list[tuple[int, int]]:
    """Which prompts get how many tokens, by their place."""
    prompts = [sequence("s", num) for num in missing]
    for one, priority in zip(prompts, priorities, strict=False):
        one.priority = priority
    return [(prompts.index(one), num) for one, num in shares(prompts, budget)]


def test_short_prompts_pass_a_long_one_on_half_of_the_budget_the_shortest_first() -> None:
    assert told(4096, 64, budget=128) == [(1, 64), (0, 64)]
    assert told(4096, 10, budget=128) == [(1, 10), (0, 118)]
    assert told(4096, 100, 20, budget=128) == [(2, 20), (1, 44), (0, 64)]
    assert told(4096, 50, 60, budget=128, priorities=(0, 1, 0)) == [(2, 60), (1, 4), (0, 64)]
    assert told(4096, 4096, 64, budget=128) == [(2, 64), (0, 64)]
    assert told(10, 4096, 8, budget=64) == [(0, 10), (2, 8), (1, 46)]


def test_but_none_passes_that_is_nearly_as_long_or_one_that_ends_in_this_step() -> None:
    assert told(4096, 4096, budget=128) == [(0, 128)]
    assert told(200, 64, budget=128) == [(0, 128)]
    assert told(100, 20, 20, budget=128) == [(0, 100), (1, 20), (2, 8)]
    assert told(128, 1, budget=128) == [(0, 128)]


def test_a_step_for_one_token_of_a_prompt_is_the_oldests() -> None:
    assert told(4096, 1, budget=1) == [(0, 1)]


def test_prompts_move_on_even_when_decoding_fills_the_budget() -> None:
    scheduler = scheduler_of(16, 8)
    running(scheduler, *(sequence(f"d{i}", 1) for i in range(8)))
    do(scheduler)
    running(scheduler, sequence("late", 100))
    assert ("late", 0, 6, False) in shape(do(scheduler))


def test_decoding_sequences_stand_in_the_order_of_their_slots() -> None:
    scheduler = scheduler_of(3, 16)
    a, b, c = (sequence(name, 1) for name in "abc")
    running(scheduler, a, b)
    do(scheduler)
    scheduler.remove(a)
    running(scheduler, c)  # takes a's slot 0
    do(scheduler)
    assert [s.sequence.id for s in do(scheduler).spans] == ["c", "b"]


def test_slots_are_given_lowest_first_and_come_back() -> None:
    scheduler = scheduler_of(2, 16)
    a, b, c = (sequence(name, 1) for name in "abc")
    running(scheduler, a, b)
    scheduler.add(c)
    assert scheduler.admit() is None
    scheduler.remove(a)
    assert scheduler.admit() is c
    assert c.slot == 0


def test_a_waiting_sequence_can_be_taken_out() -> None:
    scheduler = scheduler_of(1, 16)
    a, b = sequence("a", 1), sequence("b", 1)
    running(scheduler, a)
    scheduler.add(b)
    scheduler.remove(b)
    scheduler.remove(a)
    assert scheduler.admit() is None
    assert scheduler.schedule() is None
