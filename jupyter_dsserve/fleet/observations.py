"""What a rollout sees of requests: `Observation`, one ended request, and `Block`, those of a stretch of time by strata.

Two versions are compared over the same seconds, and within strata of what a request could not help meeting: the size of
the batches it ran in, and the length of its prompt.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from jupyter_dsserve.fleet.router import estimated_tokens
from jupyter_dsserve.fleet.sequential import Array
from jupyter_dsserve.protocol.errors import DSServeError, EngineFailure, ReplicaLost
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Request

log = logging.getLogger(__name__)

# Half octaves of the mean batch: 1, 1.4, 2, 2.8, 4, …, 181 and more.
NUM_BATCHES = 16
# Tokens of the prompt, each up to this; more is the last stratum.
_PROMPTS = (64, 256, 1024, 4096)
NUM_PROMPTS = len(_PROMPTS) + 1
NUM_STRATA = NUM_BATCHES * NUM_PROMPTS
# An error may come before any step: errors are counted by what was on the replica already when the request came.
_IN_FLIGHT = (4, 16, 64)
NUM_ERROR_STRATA = (len(_IN_FLIGHT) + 1) * NUM_PROMPTS

_MAX_BEYOND = 4.0

StepTimes = Sequence[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Observation:
    """One ended request. ``at`` is when, in seconds since the epoch. ``first_token_s`` is from its arrival (the whole
    answer, for tasks without tokens), ``per_token_s`` the mean between tokens after the first; None without any.

    ``batch`` is how many sequences its steps had on average (0: unknown), ``in_flight`` how many requests were on its
    replica when it came. ``prompt_tokens`` are those that had to be computed: a version with little traffic has seen
    fewer of the prompts' beginnings. ``prompt_estimate`` is of all of them, known before any step. ``is_error``: by the
    replica's own fault; a request whose caller left or whose time was up is no observation at all. ``is_mirrored``: a
    copy, whose answer nobody got.
    """

    at: float
    first_token_s: float | None
    per_token_s: float | None
    batch: float
    in_flight: int
    prompt_tokens: int
    prompt_estimate: int
    is_error: bool
    is_mirrored: bool = False


MIRRORED = "mirror-"  # begins the id of a copy


class Watch:
    """Sees a request's chunks pass, and makes an `Observation` of them. ``started`` is monotonic seconds."""

    __slots__ = ("_done", "_first_token_at", "_in_flight", "_started", "_texts", "request")

    def __init__(self, request: Request, in_flight: int, started: float, done: Done, *, keeps_text: bool) -> None:
        self.request = request
        self._in_flight = in_flight
        self._started = started
        self._done = done
        self._first_token_at: float | None = None
        self._texts: list[str] | None = [] if keeps_text else None

    def see(self, chunk: Chunk, now: float) -> None:
        """``now`` is monotonic seconds. ``done`` is told once the last chunk has come, unless that says nothing of the
        version."""
        if chunk.num_tokens and self._first_token_at is None:
            self._first_token_at = now
        if self._texts is not None:
            self._texts.append(chunk.text)
        if chunk.finish_reason and (observation := self._observed(chunk, now)):
            try:
                self._done(self, observation)
            except Exception:  # whoever watches must not fail what is watched
                log.exception("what was seen of %s is lost", self.request.id)

    @property
    def text(self) -> str:
        """The answer's, if it is kept."""
        return "".join(self._texts or ())

    def _observed(self, last: Chunk, now: float) -> Observation | None:
        is_error = _is_own_fault(last.error)
        if last.finish_reason is FinishReason.ABORT or (last.error and not is_error):
            return None
        estimate = estimated_tokens(self.request)[0]
        num_after = last.usage.completion_tokens - 1 if last.usage else 0
        first = now if self._first_token_at is None else self._first_token_at
        after_s = max(now - first, _between_s(last))
        return Observation(
            time.time(),
            None if is_error else first - self._started,
            after_s / num_after if num_after > 0 and after_s > 0 else None,
            last.batch,
            self._in_flight,
            last.usage.prompt_tokens - last.usage.cached_tokens if last.usage else estimate,
            estimate,
            is_error,
            self.request.id.startswith(MIRRORED),
        )


Done = Callable[[Watch, Observation], None]


def _between_s(last: Chunk) -> float:
    """Seconds from the first token to the end as the worker counts them; 0 if it does not say. Where the gateway or the
    machine was held up, what came meanwhile is read at once: in next to no time, whose logarithm outweighs all others.
    """
    times = last.times
    return times.ended_s - times.first_token_s if times and times.first_token_s else 0.0


def _is_own_fault(error: DSServeError | None) -> bool:
    """Whether the replica itself failed; a full line, a deadline or a bad request says nothing of it."""
    return isinstance(error, EngineFailure | ReplicaLost) or type(error) is DSServeError


@dataclass(frozen=True, slots=True)
class Block:
    """The requests of a stretch of time, stable's first: numbers and sums, ``[…, 2, strata]``.

    ``first`` and ``tokens`` are sums of logarithms of seconds; ``tokens`` in units of the candidate's own step time at
    the request's batch, where that is known. What is left over so can be compared across batches too: it is ``moved``,
    ``[…, 2, prompts]``. ``requests`` and ``errors`` have the strata of errors.
    """

    num_first: Array
    first: Array
    num_tokens: Array
    tokens: Array
    num_moved: Array
    moved: Array
    requests: Array
    errors: Array

    @staticmethod
    def empty() -> Block:
        sizes = (NUM_STRATA,) * 4 + (NUM_PROMPTS,) * 2 + (NUM_ERROR_STRATA,) * 2
        return Block(*(np.zeros((2, size)) for size in sizes))

    @staticmethod
    def of(stable: Iterable[Observation], candidate: Iterable[Observation], step_times: StepTimes) -> Block:
        """``step_times`` are the candidate's; none are known if empty."""
        block = Block.empty()
        for side, observations in enumerate((stable, candidate)):
            for seen in observations:
                block._add(side, seen, step_times)
        return block

    def _add(self, side: int, seen: Observation, step_times: StepTimes) -> None:
        where = side, error_stratum(seen.in_flight, seen.prompt_estimate)
        self.requests[where] += 1
        self.errors[where] += seen.is_error
        if seen.is_error:  # its latency says nothing about a good answer's
            return
        where = side, stratum(seen.batch, seen.prompt_tokens)
        if seen.first_token_s:
            self.num_first[where] += 1
            self.first[where] += math.log(seen.first_token_s)
        if seen.per_token_s:
            left_over = math.log(seen.per_token_s) - log_step_s(step_times, seen.batch)
            self.num_tokens[where] += 1
            self.tokens[where] += left_over
            if step_times and seen.batch:
                self.num_moved[side, where[1] % NUM_PROMPTS] += 1
                self.moved[side, where[1] % NUM_PROMPTS] += left_over


def stratum(batch: float, prompt_tokens: int) -> int:
    half_octave = math.floor(2 * math.log2(batch)) if batch > 1 else 0
    return min(half_octave, NUM_BATCHES - 1) * NUM_PROMPTS + _bin(_PROMPTS, prompt_tokens)


def error_stratum(in_flight: int, prompt_estimate: int) -> int:
    return _bin(_IN_FLIGHT, in_flight) * NUM_PROMPTS + _bin(_PROMPTS, prompt_estimate)


def by_prompt(counts: Array) -> Array:
    """Counts or sums over strata, added up over all but the prompt's length."""
    return np.asarray(counts.reshape(*counts.shape[:-1], -1, NUM_PROMPTS).sum(axis=-2))


def log_step_s(step_times: StepTimes, batch: float) -> float:
    """The logarithm of a step's seconds at a batch: on straight lines between the measured ones, on the last of them up
    to four times the largest; 0 if none were measured."""
    if not step_times:
        return 0.0
    sizes, seconds = zip(*step_times, strict=True)
    beyond = min(batch, _MAX_BEYOND * sizes[-1]) - sizes[-1]
    if beyond <= 0 or len(sizes) == 1:
        return math.log(np.interp(batch, sizes, seconds))
    slope = max(0.0, (seconds[-1] - seconds[-2]) / (sizes[-1] - sizes[-2]))
    return math.log(seconds[-1] + slope * beyond)


def _bin(ends: Sequence[int], value: float) -> int:
    return next((index for index, end in enumerate(ends) if value <= end), len(ends))
