"""Step times are measured with steps of the size they are told for, and cost a slow model little."""

from __future__ import annotations

from dataclasses import replace

from jupyter_dsserve.engine.runner import Step
from jupyter_dsserve.engine.step_times import measured_steps
from jupyter_dsserve.engine.toy import ToyLogits, ToyRunner
from jupyter_dsserve.protocol.toy import ToySettings


class Clocked(ToyRunner):
    """A toy whose steps move a clock instead of sleeping; the first step of a size takes ten times as long."""

    def __init__(self, step_s: float, per_seq_s: float, num_slots: int = 64) -> None:
        super().__init__(ToySettings(), 0)
        self.room = replace(self.room, num_slots=num_slots)
        self._step_s, self._per_seq_s = step_s, per_seq_s
        self._sizes: set[int] = set()
        self.now = 0.0

    def forward(self, step: Step) -> ToyLogits:
        size = len(step.spans)
        self.now += (self._step_s + self._per_seq_s * size) * (1 if size in self._sizes else 10)
        self._sizes.add(size)
        return ToyLogits()

    def clock(self) -> float:
        return self.now


def measured(runner: Clocked) -> dict[int, float]:
    return {batch: round(seconds, 6) for batch, seconds in measured_steps(runner, runner.clock)}


def test_a_steps_time_is_that_of_its_size_without_what_the_first_call_pays() -> None:
    assert measured(Clocked(0.001, 0.0001)) == {1: 0.0011, 2: 0.0012, 4: 0.0014, 8: 0.0018, 16: 0.0026}


def test_no_batch_is_larger_than_the_runner_has_slots() -> None:
    assert measured(Clocked(0.001, 0.0, num_slots=5)) == {1: 0.001, 2: 0.001, 4: 0.001}


def test_a_slow_model_is_measured_in_few_sizes() -> None:
    runner = Clocked(0.15, 0.0)
    assert measured(runner) == {1: 0.15}
    assert runner.now < 2


def test_what_else_ran_meanwhile_does_not_count() -> None:
    """A step of one sequence is known to take no longer than one of two."""

    class Disturbed(Clocked):
        def forward(self, step: Step) -> ToyLogits:
            self.now += 0.02 if len(step.spans) == 1 else 0.0
            return super().forward(step)

    assert measured(Disturbed(0.001, 0.0)) == dict.fromkeys((1, 2, 4, 8, 16), 0.001)
