"""Which sequences run and which of their tokens go into the next step: continuous batching with chunked prefill.

Every running sequence that decodes gets its one token; what is left of the step's token budget goes to prompts, the
oldest first, cut into chunks (Sarathi-Serve, Agrawal et al. 2024): a long prompt never stalls the others' tokens for
longer than one step of the budget's length, nor does it keep short prompts behind it waiting (`shares`). When the KV
cache is full the last in line among the running leaves, and is computed again later (recomputation, as in vLLM): its
answer is the same.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence as Seq

from jupyter_dsserve.engine.runner import KVRoom, Span, Step
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.engine.slots import Slots

# A sequence that has waited so long goes before one of the next better priority that comes now: none waits for ever.
AGEING_S = 10.0
# A prompt passes a long one that needs so many times as many tokens.
_WORTH_PASSING = 4
# Blocks of a prompt that another sequence is about to compute, for which it is worth waiting.
_WORTH_WAITING = 2


class Scheduler:
    """Gives slots to waiting sequences and cuts steps. Knows neither text nor tensors, nor the time."""

    def __init__(self, room: KVRoom, max_step_tokens: int) -> None:
        self.room = room
        self.max_step_tokens = max_step_tokens
        self.waiting: list[Sequence] = []  # the next in line first
        self.running: list[Sequence] = []
        self.slots = Slots(room)
        self.num_prompt = self.num_cached = self.num_preempted = 0  # tokens, tokens, sequences since the start

    def add(self, sequence: Sequence) -> None:
        bisect.insort(self.waiting, sequence, key=_line)

    def admit(self) -> Sequence | None:
        """Give the next in line its slot and return it; None if none waits or none fits.

        One whose prompt is about to be computed for another waits for that, and lets others pass.
        """
        if not self.slots.has_free:
            return None
        for place, sequence in enumerate(self.waiting):
            if sequence.reuses_prefix and self._is_being_computed(sequence):
                continue
            grant = self.slots.take(sequence.tokens, len(self.running), reuse=sequence.reuses_prefix)
            if grant is None:
                return None
            del self.waiting[place]
            sequence.slot, sequence.num_computed = grant.slot, grant.num_cached
            if not sequence.was_admitted:  # one that comes back was counted before
                sequence.was_admitted = True
                sequence.num_cached = grant.num_cached
                self.num_prompt += len(sequence.tokens)
                self.num_cached += grant.num_cached
            self.running.append(sequence)
            return sequence
        return None

    def remove(self, sequence: Sequence) -> None:
        """Take a sequence out, wherever it stands; its slot is free for the next step."""
        if sequence.slot < 0:
            self.waiting.remove(sequence)
            return
        self.running.remove(sequence)
        self.slots.release(sequence.slot)
        sequence.slot = -1

    def forget(self) -> None:
        """After a step that raised, the sequences in it removed: nobody knows what stands where, so all is computed
        again."""
        for sequence in list(self.running):
            self._preempt(sequence)
        self.slots.forget()

    def schedule(self) -> Step | None:
        """The next step, or None if nothing runs. The sequences' ``num_computed`` is moved on by `advance`."""
        self._make_room()
        decoding = sorted((s for s in self.running if s.is_decoding), key=_slot)
        spans = [Span(s, s.num_computed, 1, True) for s in decoding]
        # However many decode, prompts come in as fast as answers end, or a full house would wait for newcomers.
        budget = max(self.max_step_tokens - len(spans), self.max_step_tokens * 3 // 4, 1)
        prompts = [s for s in self.running if not s.is_decoding]
        spans += [Span(s, s.num_computed, num, num == _missing(s)) for s, num in shares(prompts, budget)]
        if not spans:
            return None
        moves, self.slots.moves = tuple(self.slots.moves), []
        return Step(spans, len(decoding), moves)

    def advance(self, step: Step) -> None:
        """After the forward pass: what the step held is in the KV cache."""
        for span in step.spans:
            span.sequence.num_computed += span.num_tokens
            self.slots.computed(span.sequence.slot, span.sequence.num_computed)

    def _is_being_computed(self, sequence: Sequence) -> bool:
        """Whether a running sequence still computes the beginning of a prompt that ``sequence`` shares."""
        size, there = self.room.block_tokens, self.slots.num_cached(sequence.tokens) // self.room.block_tokens
        for other in self.running:
            if other.num_computed < other.num_prompt - 1:
                # More than what the other has, and more than what stands somewhere already.
                worth = (max(other.num_computed // size, there) + _WORTH_WAITING) * size
                if worth < len(sequence.tokens) and other.tokens[:worth] == sequence.tokens[:worth]:
                    return True
        return False

    def _make_room(self) -> None:
        """See that every running sequence has memory for all its tokens, at the cost of the last in line."""
        if not self.slots.is_limited:
            return
        for sequence in sorted(self.running, key=_line):
            while sequence.slot >= 0 and not self.slots.grow(sequence.slot, len(sequence.tokens)):
                self._preempt(max(self.running, key=_line))

    def _preempt(self, sequence: Sequence) -> None:
        self.running.remove(sequence)
        self.slots.drop(sequence.slot)
        sequence.slot, sequence.num_computed = -1, 0
        self.num_preempted += 1
        self.add(sequence)

    def check(self) -> None:
        """Raises `AssertionError` with a sentence if sequences, slots and blocks do not agree with one another."""
        self.slots.check()
        assert not {*self.waiting} & {*self.running}, "a sequence waits and runs"
        assert self.waiting == sorted(self.waiting, key=_line), "the line is out of order"
        assert all(s.slot < 0 and s.num_computed == 0 for s in self.waiting), "a waiting sequence has a slot"
        slots = [s.slot for s in self.running]
        assert len({*slots}) == len(slots), "two sequences have one slot"
        assert set(slots) == self.slots.taken, f"slots {self.slots.taken ^ set(slots)} belong to nobody"
        for s in self.running:
            assert s.num_computed < len(s.tokens), f"sequence {s.id} has nothing left to compute"
            self.slots.check_held(s.slot, s.tokens, s.num_computed)


def shares(prompts: Seq[Sequence], budget: int) -> list[tuple[Sequence, int]]:
    """How many tokens of which ``prompts``, the oldest first, go into a step that has room for ``budget`` of them.

    The oldest goes first. But one that needs several steps leaves up to half of each to those that need at most a
    quarter of what it still does: so a short prompt gets its first token after a step or two, and a long one takes
    twice as long at most, however many short ones pass.
    """
    found: list[tuple[Sequence, int]] = []
    for place, sequence in enumerate(prompts):
        missing = _missing(sequence)
        if missing > budget:
            left = budget - budget // 2
            short = [s for s in prompts[place + 1 :] if _WORTH_PASSING * _missing(s) <= missing]
            for passing in sorted(short, key=lambda s: (s.priority, _missing(s))):
                num_tokens = min(_missing(passing), budget - left)
                if num_tokens:
                    found.append((passing, num_tokens))
                    budget -= num_tokens
            return [*found, (sequence, budget)] if budget else found
        found.append((sequence, missing))
        budget -= missing
        if not budget:
            break
    return found


def _missing(sequence: Sequence) -> int:
    return len(sequence.tokens) - sequence.num_computed


def _line(sequence: Sequence) -> tuple[float, float]:
    """Where it stands in line. All age alike, so that priority and arrival together say it for good."""
    return sequence.arrived_s + AGEING_S * sequence.priority, sequence.arrived_s


def _slot(sequence: Sequence) -> int:
    return sequence.slot
