"""What is observed of a request as its chunks pass."""

from __future__ import annotations

import pytest

from jupyter_dsserve.fleet.observations import MIRRORED, Observation, Watch, error_stratum, stratum
from jupyter_dsserve.protocol.errors import (
    DeadlineExceeded,
    DSServeError,
    EngineFailure,
    InvalidRequest,
    ReplicaLost,
    Unavailable,
)
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Request, Times, Usage


def observed(*chunks: tuple[float, Chunk], id: str = "r", keeps_text: bool = False) -> tuple[list[Observation], Watch]:
    """Of a request that came at second 100, with the chunks at their seconds after that."""
    found: list[Observation] = []
    watch = Watch(Request(id, "x" * 400), 2, 100.0, lambda _, seen: found.append(seen), keeps_text=keeps_text)
    for after_s, chunk in chunks:
        watch.see(chunk, 100.0 + after_s)
    return found, watch


def answer(num_tokens: int, per_token_s: float, first_token_s: float = 0.5) -> list[tuple[float, Chunk]]:
    pieces = [(first_token_s + per_token_s * i, Chunk("r", "ab", 1)) for i in range(num_tokens - 1)]
    last = Chunk("r", "", 1, FinishReason.LENGTH, Usage(100, num_tokens, 10), batch=3.5)
    return [*pieces, (first_token_s + per_token_s * (num_tokens - 1), last)]


def test_longer_answers_are_not_slower_ones() -> None:
    (short,), _ = observed(*answer(5, 0.1))
    (long,), _ = observed(*answer(50, 0.1))
    assert short.per_token_s == pytest.approx(0.1)
    assert long.per_token_s == pytest.approx(0.1)
    assert (long.first_token_s, long.batch, long.in_flight, long.prompt_tokens) == (pytest.approx(0.5), 3.5, 2, 90)
    assert (long.is_error, long.is_mirrored) == (False, False)


def test_tokens_that_were_read_at_once_are_as_slow_as_they_were_made() -> None:
    made = Times(first_token_s=7.0, ended_s=7.4)
    last = Chunk("r", "", 1, FinishReason.LENGTH, Usage(100, 5, 10), batch=3.5, times=made)
    for first_at, ended_at, per_token_s in ((0.9, 0.900001, 0.1), (0.9, 0.9, 0.1), (0.5, 1.3, 0.2)):
        (seen,), _ = observed((first_at, Chunk("r", "ab", 1)), (ended_at, last))
        assert seen.per_token_s == pytest.approx(per_token_s)


def test_an_answer_without_tokens_is_all_first_token() -> None:
    (seen,), _ = observed((0.3, Chunk("r", finish_reason=FinishReason.STOP)))
    assert (seen.first_token_s, seen.per_token_s) == (pytest.approx(0.3), None)


@pytest.mark.parametrize("error", [EngineFailure("x"), ReplicaLost("x"), DSServeError("x")])
def test_the_replicas_own_faults_are_errors(error: DSServeError) -> None:
    (seen,), _ = observed((0.3, Chunk("r", finish_reason=FinishReason.ERROR, error=error)))
    assert seen.is_error
    assert seen.first_token_s is None


@pytest.mark.parametrize("error", [InvalidRequest("x"), DeadlineExceeded("x"), Unavailable("x")])
def test_callers_faults_and_deadlines_are_no_observations(error: DSServeError) -> None:
    assert observed((0.3, Chunk("r", finish_reason=FinishReason.ERROR, error=error)))[0] == []


def test_a_caller_who_leaves_is_no_observation() -> None:
    assert observed((0.1, Chunk("r", "a", 1)), (0.3, Chunk("r", finish_reason=FinishReason.ABORT)))[0] == []


def test_text_is_kept_only_if_somebody_wants_it() -> None:
    assert observed(*answer(4, 0.1), keeps_text=True)[1].text == "ababab"
    assert observed(*answer(4, 0.1))[1].text == ""


def test_copies_are_known_by_their_id() -> None:
    (seen,), _ = observed(*answer(4, 0.1), id=f"{MIRRORED}r")
    assert seen.is_mirrored


def test_strata_tell_batches_and_prompts_apart_and_have_an_end() -> None:
    batches = [stratum(batch, 10) for batch in (0.0, 1.0, 1.5, 2.0, 3.0, 4.0, 16.0, 1e9)]
    assert batches == sorted(batches)
    assert len(set(batches)) == 7  # unknown and 1 are one
    assert len({stratum(4, tokens) for tokens in (0, 64, 65, 300, 2000, 10**6)}) == 5
    assert len({error_stratum(num, 10) for num in (0, 4, 5, 16, 17, 64, 65, 1000)}) == 4
