"""Prompts of 4,096 tokens beside short ones: nobody waits for them longer than a step of the budget's length."""

from __future__ import annotations

import pytest

from jupyter_dsserve.engine.loop import Engine
from jupyter_dsserve.engine.ragged import RaggedRunner
from jupyter_dsserve.engine.runner import Step
from jupyter_dsserve.engine.sampling import TorchLogits
from jupyter_dsserve.engine.sequence import Sequence
from jupyter_dsserve.protocol.request import Chunk, SamplingParams
from tests.engine import tiny_models

LONG, SHORT = 4096, 64
BUDGET = 256
NUM_SHORT, NUM_LONG = 6, 2


@pytest.fixture(scope="module")
def runner(tmp_path_factory: pytest.TempPathFactory) -> RaggedRunner:
    folder = tmp_path_factory.mktemp("long")
    tiny_models.save_architecture("llama", folder, num_hidden_layers=2, max_position_embeddings=LONG + 64)
    return tiny_models.load(folder, max_step_tokens=BUDGET, max_sequences=8)


class Watched:
    """An engine turned by hand that notes what each step computed, and which step gave whom a token."""

    def __init__(self, runner: RaggedRunner, monkeypatch: pytest.MonkeyPatch) -> None:
        self.work: list[dict[str, int]] = []  # of each step: tokens computed, by sequence
        self.tokens: dict[str, list[int]] = {}  # by sequence: the steps that gave it one
        self.sequences: dict[str, Sequence] = {}
        self.ended: set[str] = set()
        self.engine = Engine(runner, self._hear)
        forward = RaggedRunner.forward

        def noted(own: RaggedRunner, step: Step) -> TorchLogits:
            self.work.append({span.sequence.id: span.num_tokens for span in step.spans})
            return forward(own, step)

        monkeypatch.setattr(RaggedRunner, "forward", noted)

    def post(self, id: str, prompt: list[int], num_output: int) -> None:
        self.sequences[id] = Sequence(id, list(prompt), SamplingParams(max_tokens=num_output, ignore_eos=True))
        self.engine.post(self.sequences[id])

    def turn_until(self, *ids: str, num_tokens: int = 0) -> None:
        """Until all of them have ended, or have so many tokens."""
        for _ in range(2000):
            if all(id in self.ended or 0 < num_tokens <= len(self.tokens.get(id, ())) for id in ids):
                return
            self.engine.turn()
        raise AssertionError(f"not ended: {set(ids) - self.ended}")

    def answer(self, id: str) -> list[int]:
        return self.sequences[id].tokens[self.sequences[id].num_prompt :]

    def _hear(self, chunks: list[Chunk]) -> None:
        for chunk in chunks:
            self.tokens.setdefault(chunk.request_id, []).extend([len(self.work)] * chunk.num_tokens)
            if chunk.finish_reason:
                assert chunk.error is None, chunk.error
                self.ended.add(chunk.request_id)


def test_long_prompts_take_no_step_from_who_decodes_and_are_not_held_up_by_them(
    runner: RaggedRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    short = {f"short{i}": p for i, p in enumerate(tiny_models.random_prompts([SHORT] * NUM_SHORT))}
    long = {f"long{i}": p for i, p in enumerate(tiny_models.random_prompts([LONG] * NUM_LONG, seed=6))}
    watched = Watched(runner, monkeypatch)
    for id, prompt in short.items():
        watched.post(id, prompt, 40)
    watched.turn_until(*short, num_tokens=1)
    begun = len(watched.work)
    for id, prompt in long.items():
        watched.post(id, prompt, 8)
    watched.turn_until(*short, *long)

    for id in short:
        steps = watched.tokens[id]
        assert steps == list(range(steps[0], steps[0] + 40)), f"{id} had to wait"
    most = max(sum(step.values()) for step in watched.work)
    assert most <= BUDGET, "a step did more than the budget allows, so somebody waited longer for a token"
    # What decoding leaves of the budget goes to the long ones, all of it.
    chunks = [sum(n for id, n in step.items() if id in long) for step in watched.work[begun:]]
    num_needed = -(-NUM_LONG * LONG // (BUDGET - NUM_SHORT))
    assert sum(chunks[: num_needed + NUM_LONG]) >= NUM_LONG * LONG

    for id, prompt in (short | long).items():
        alone = Watched(runner, monkeypatch)
        alone.post(id, prompt, len(watched.answer(id)))
        alone.turn_until(id)
        assert alone.answer(id) == watched.answer(id), f"{id} is answered differently in company"


def test_a_short_prompt_behind_long_ones_has_its_first_token_after_a_step_or_two(
    runner: RaggedRunner, monkeypatch: pytest.MonkeyPatch
) -> None:
    watched = Watched(runner, monkeypatch)
    first, second = tiny_models.random_prompts([LONG] * 2, seed=8)
    watched.post("long0", first, 1)
    watched.post("long1", second, 1)
    watched.engine.turn()
    for number, prompt in enumerate(tiny_models.random_prompts([SHORT] * 6, seed=9)):
        come = len(watched.work)
        watched.post(f"short{number}", prompt, 2)
        watched.turn_until(f"short{number}", num_tokens=1)
        assert watched.tokens[f"short{number}"][0] <= come + 2
    watched.turn_until("long0", "long1")
    # Only what the short ones took, and a token of each, was taken from the long ones.
    assert len(watched.work) <= -(-(2 * LONG + 6 * (SHORT + 2)) // BUDGET) + 2
