"""Slots, prefix reuse, preemption and order, on a cache that remembers which token stands where."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from jupyter_dsserve.engine.runner import Copy, KVRoom, Step
from jupyter_dsserve.engine.scheduler import AGEING_S, Scheduler
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.request import SamplingParams

BLOCK = 4
CONTEXT = 64


class PaperCache:
    """Token by slot and position. A step may read only what was written there, for just that sequence."""

    def __init__(self) -> None:
        self.slots: dict[int, list[int]] = {}

    def compute(self, step: Step) -> None:
        for move in step.moves:
            if isinstance(move, Copy):
                assert len(self.slots[move.source]) >= move.num_tokens, "copies what is not there"
                target = self.slots.setdefault(move.target, [])
                target[: move.num_tokens] = self.slots[move.source][: move.num_tokens]
            else:
                del self.slots.setdefault(move.slot, [])[move.num_tokens :]
        for span in step.spans:
            held, tokens = self.slots.setdefault(span.sequence.slot, []), span.sequence.tokens
            assert held[: span.start] == tokens[: span.start], f"{span.sequence.id} reads what is not its own"
            held[span.start : span.start + span.num_tokens] = tokens[span.start : span.start + span.num_tokens]

    @property
    def num_blocks(self) -> int:
        return sum(-(-len(held) // BLOCK) for held in self.slots.values())


class Machine:
    """A scheduler and its paper cache, stepped by hand. A token is a formula of those before it."""

    def __init__(self, num_slots: int = 4, num_blocks: int = 64, max_step_tokens: int = 16) -> None:
        self.cache = PaperCache()
        self.scheduler = Scheduler(KVRoom(num_slots, CONTEXT, num_blocks, BLOCK), max_step_tokens)
        self.num_computed = 0
        self.num_forgotten = 0  # bystanders of steps that failed, who count as preempted

    def add(self, tokens: list[int], num_output: int = 4, **fields: float) -> Sequence:
        sequence = Sequence("s", list(tokens), SamplingParams(max_tokens=num_output), **fields)  # type: ignore[arg-type]
        self.scheduler.add(sequence)
        return sequence

    def step(self) -> list[Sequence]:
        """One step; those that ended with it."""
        while self.scheduler.admit():
            pass
        if (step := self.scheduler.schedule()) is None:
            return []
        self.cache.compute(step)
        self.num_computed += sum(span.num_tokens for span in step.spans)
        self.scheduler.advance(step)
        for s in step.sampled:
            s.tokens.append(answer_token(s.tokens))
        ended = [s for s in step.sampled if s.num_output == s.sampling.max_tokens]
        for s in ended:
            self.scheduler.remove(s)
        self.scheduler.check()
        return ended

    def fail(self, *, with_moves: bool) -> None:
        """A step that raises, before or after its moves: who was in it ends, the others start again."""
        while self.scheduler.admit():
            pass
        if (step := self.scheduler.schedule()) is None:
            return
        if with_moves:
            self.cache.compute(replace(step, spans=[]))
        for sequence in {span.sequence for span in step.spans}:
            self.scheduler.remove(sequence)
        self.num_forgotten += len(self.scheduler.running)
        self.scheduler.forget()
        self.cache.compute(Step([], 0, tuple(self.scheduler.slots.moves)))
        self.scheduler.slots.moves = []
        assert not any(self.cache.slots.values()), "memory is left that no book counts"
        self.scheduler.check()

    def run(self) -> list[Sequence]:
        """All there is to do; in the order of their ends."""
        ended = []
        while self.scheduler.waiting or self.scheduler.running:
            ended += self.step()
        return ended


def answer_token(tokens: list[int]) -> int:
    return (31 * sum(tokens[-5:]) + len(tokens)) % 97


def expected(prompt: list[int], num_output: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(num_output):
        tokens.append(answer_token(tokens))
    return tokens


def numbers(start: int, count: int) -> list[int]:
    return list(range(start, start + count))


class TestPrefix:
    def test_a_second_turn_of_a_chat_computes_only_what_is_new(self) -> None:
        machine = Machine()
        first = machine.add(numbers(0, 10))
        machine.run()
        before = machine.num_computed
        machine.add([*first.tokens, 7, 8, 9])
        machine.run()
        # The last token of the first answer was never computed; three new ones, and three of the four of the answer.
        assert machine.num_computed - before == 1 + 3 + 3
        assert machine.scheduler.num_cached == 13

    def test_prompts_with_one_beginning_share_it_though_they_come_together(self) -> None:
        machine = Machine()
        system = numbers(0, 32)
        sequences = [machine.add([*system, 50 + i], 1) for i in range(4)]
        machine.run()
        assert machine.num_computed == 32 + 4
        assert [s.tokens for s in sequences] == [expected([*system, 50 + i], 1) for i in range(4)]

    def test_one_that_waits_for_a_beginning_lets_others_pass(self) -> None:
        machine = Machine()
        machine.add(numbers(0, 40), 1)
        machine.step()
        machine.add([*numbers(0, 30), 99], 1)
        other = machine.add(numbers(60, 3), 1)
        machine.step()
        assert other.slot >= 0 or other.num_output

    def test_the_whole_prompt_again_still_computes_its_last_token(self) -> None:
        machine = Machine()
        machine.add(numbers(0, 16), 1)
        machine.run()
        machine.add(numbers(0, 16), 1)
        assert [s.tokens for s in machine.run()] == [expected(numbers(0, 16), 1)]
        assert machine.scheduler.num_cached == 15

    def test_who_wants_no_reuse_computes_all(self) -> None:
        machine = Machine()
        machine.add(numbers(0, 16), 1)
        machine.run()
        again = machine.add(numbers(0, 16), 1)
        again.reuses_prefix = False
        machine.run()
        assert machine.scheduler.num_cached == 0

    def test_what_others_leave_behind_moves_out_of_the_way_while_there_is_room(self) -> None:
        """The lowest slot is used again and again; four different prompts are all remembered, in four slots."""
        machine = Machine(num_slots=5)
        prompts = [numbers(100 * i, 12) for i in range(4)]
        for prompt in prompts:
            machine.add(prompt, 1)
            machine.run()
        for prompt in prompts:
            before = machine.scheduler.num_cached
            machine.add([*prompt, 99], 1)
            machine.run()
            assert machine.scheduler.num_cached - before == 12

    @pytest.mark.parametrize(("which", "num_cached"), [(0, 0), (1, 12), (2, 12), (3, 12)])
    def test_the_longest_unused_is_forgotten_first(self, which: int, num_cached: int) -> None:
        machine = Machine(num_slots=3)
        for i in range(4):
            machine.add(numbers(100 * i, 12), 1)
            machine.run()
        machine.add([*numbers(100 * which, 12), 99], 1)
        machine.run()
        assert machine.scheduler.num_cached == num_cached


class TestPreemption:
    def test_the_last_in_line_leaves_when_memory_ends_and_its_answer_is_the_same(self) -> None:
        machine = Machine(num_slots=3, num_blocks=18, max_step_tokens=64)
        prompts = [numbers(100 * i, 12) for i in range(3)]
        sequences = [machine.add(prompt, 24, arrived_s=float(i)) for i, prompt in enumerate(prompts)]
        ended = machine.run()
        assert machine.scheduler.num_preempted > 0
        assert [s.tokens for s in sequences] == [expected(prompt, 24) for prompt in prompts]
        assert ended[0] is sequences[0]

    def test_a_better_priority_keeps_its_memory(self) -> None:
        machine = Machine(num_slots=2, num_blocks=17, max_step_tokens=64)
        first = machine.add(numbers(0, 20), 24, arrived_s=0.0, priority=5)
        second = machine.add(numbers(100, 20), 24, arrived_s=1.0, priority=0)
        assert machine.run() == [second, first]
        assert machine.scheduler.num_preempted > 0

    def test_idle_memory_is_used_before_anybody_is_sent_away(self) -> None:
        machine = Machine(num_slots=3, num_blocks=17)
        machine.add(numbers(0, 40), 1)
        machine.run()
        machine.add(numbers(100, 40), 20)
        machine.run()
        assert machine.scheduler.num_preempted == 0

    def test_memory_never_exceeds_the_pool(self) -> None:
        machine = Machine(num_slots=4, num_blocks=20)
        draw = random.Random(1)
        for i in range(40):
            machine.add(
                [draw.randrange(5) for _ in range(draw.randint(1, 30))], draw.randint(1, 30), arrived_s=float(i)
            )
        while machine.scheduler.waiting or machine.scheduler.running:
            machine.step()
            assert machine.cache.num_blocks <= 20


class TestLine:
    def test_priority_goes_before_arrival(self) -> None:
        machine = Machine(num_slots=1)
        late = machine.add(numbers(0, 3), 1, arrived_s=5.0, priority=-1)
        early = machine.add(numbers(10, 3), 1, arrived_s=0.0)
        assert machine.run() == [late, early]

    def test_waiting_makes_up_for_priority(self) -> None:
        machine = Machine(num_slots=1)
        low = machine.add(numbers(0, 3), 1, arrived_s=0.0, priority=1)
        high = machine.add(numbers(10, 3), 1, arrived_s=AGEING_S + 1, priority=0)
        assert machine.run() == [low, high]


class TestFailure:
    def test_after_a_failed_step_nothing_of_it_is_used_again(self) -> None:
        machine = Machine(num_slots=4)
        machine.add(numbers(0, 16), 1)
        machine.run()
        machine.add([*numbers(0, 16), 1, 2], 4)
        bystander = machine.add(numbers(50, 30), 4)
        while machine.scheduler.admit():
            pass
        step = machine.scheduler.schedule()  # with moves that are never done
        assert step is not None
        for sequence in {span.sequence for span in step.spans}:
            machine.scheduler.remove(sequence)
        machine.scheduler.forget()
        machine.cache.slots = {slot: [-1] * len(held) for slot, held in machine.cache.slots.items()}
        machine.scheduler.check()
        again = machine.add([*numbers(0, 16), 1, 2], 4)
        machine.run()
        assert again.tokens == expected([*numbers(0, 16), 1, 2], 4)
        assert bystander.num_output in (0, 4)


@pytest.mark.parametrize("num_blocks", [64, 24, 17])
def test_ten_thousand_random_steps_keep_the_books(num_blocks: int) -> None:
    """Prompts with common beginnings, aborts and failures at random: every answer is right, every book agrees."""
    draw = random.Random(num_blocks)
    machine = Machine(num_slots=4, num_blocks=num_blocks)
    beginnings = [numbers(100 * i, 24) for i in range(3)]
    prompts: dict[Sequence, list[int]] = {}
    num_steps = num_right = 0
    while num_steps < 3400:
        if len(machine.scheduler.waiting) < 6 and draw.random() < 0.3:
            own = [draw.randrange(9) for _ in range(draw.randint(1, 9))]
            prompt = draw.choice(beginnings)[: draw.randint(0, 24)] + own
            length = draw.randint(1, CONTEXT - len(prompt))
            prompts[machine.add(prompt, length, arrived_s=float(num_steps), priority=draw.randint(-1, 1))] = prompt
        everyone = [*machine.scheduler.waiting, *machine.scheduler.running]
        if everyone and draw.random() < 0.02:
            machine.scheduler.remove(draw.choice(everyone))
        if draw.random() < 0.01:
            machine.fail(with_moves=draw.random() < 0.5)
        for s in machine.step():
            assert s.tokens == expected(prompts.pop(s), s.sampling.max_tokens or 0)
            num_right += 1
        num_steps += 1
    assert num_right > 100
    assert machine.scheduler.num_cached > 500
    assert (machine.scheduler.num_preempted > machine.num_forgotten) == (num_blocks < 64)


def test_trims_name_what_is_kept() -> None:
    """A short sequence in a slot that a long one left gives back what it does not need, where memory is scarce."""
    machine = Machine(num_slots=2, num_blocks=20)
    machine.add(numbers(0, 40), 1)
    machine.run()
    machine.add(numbers(100, 60), 1)
    machine.step()
    machine.add(numbers(200, 3), 1)
    machine.run()
    assert machine.cache.num_blocks <= 20


def test_who_finds_its_beginning_complete_waits_for_nobody_that_computes_it_again() -> None:
    """Scoring requests compute everything: a line of them with one beginning would hold up all others that have it."""
    machine = Machine()
    beginning = numbers(0, 40)
    machine.add([*beginning, 1], 1)
    machine.run()
    scoring = machine.add([*beginning, 2], 1)
    scoring.reuses_prefix = False
    machine.step()
    victim = machine.add([*beginning, 3], 1)
    machine.step()
    assert victim.slot >= 0 or victim.num_output


def test_a_prompt_counts_once_however_often_it_had_to_leave() -> None:
    machine = Machine()
    machine.add(numbers(0, 40), 1)
    machine.step()
    machine.scheduler.forget()  # everybody starts again
    machine.run()
    assert machine.scheduler.num_preempted == 1
    assert machine.scheduler.num_prompt == 40
