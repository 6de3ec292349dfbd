"""The engine: one thread that goes schedule → forward → sample → update until it is told to stop."""

from __future__ import annotations

import heapq
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice

from jupyter_dsserve.engine.faults import is_device_lost
from jupyter_dsserve.engine.logprobs import HeldLogprobs
from jupyter_dsserve.engine.runner import Runner, Span, Step
from jupyter_dsserve.engine.scheduler import Scheduler
from jupyter_dsserve.engine.sequence import Likelihood, Sequence
from jupyter_dsserve.engine.tokenizer import Detokenizer, StopStrings
from jupyter_dsserve.protocol.errors import DeadlineExceeded, DSServeError, EngineFailure, InvalidRequest
from jupyter_dsserve.protocol.request import Chunk, FinishReason, SamplingParams, Usage

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Answer:
    """A sequence with what turns its tokens into text.

    ``num_read`` characters came of its tokens so far, ``num_sent`` of them were sent.
    """

    sequence: Sequence
    detokenizer: Detokenizer
    stop: StopStrings
    logprobs: HeldLogprobs
    num_read: int = 0
    num_sent: int = 0

    def read(self, token: int, likelihood: Likelihood | None, shows_special: bool = False) -> str:
        """The text that ``token`` completes."""
        text = self.detokenizer.push(token, shows_special=shows_special)
        if likelihood:
            self.logprobs.push(token, likelihood, self.num_read, self.num_read + len(text))
        self.num_read += len(text)
        return text


@dataclass(frozen=True, slots=True)
class Load:
    """A glance at the engine for heartbeats. The counts go up from the start; ``num_cached`` of the ``num_prompt``
    tokens of prompts did not have to be computed."""

    num_steps: int
    running: int
    waiting: int
    kv_used: float
    num_prompt: int = 0
    num_cached: int = 0
    num_preempted: int = 0
    padding: float = 0.0  # share of computed tokens that filled up rows


class Engine:
    """Owns the sequences. `post` and `abort` may be called from any thread; all else happens in `run`'s.

    ``emit`` is called with all chunks of a step at once, in the engine's thread. ``clock`` gives monotonic seconds.
    """

    def __init__(
        self, runner: Runner, emit: Callable[[list[Chunk]], None], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.runner = runner
        self.scheduler = Scheduler(runner.room, runner.max_step_tokens)
        self._max_context = runner.room.max_context
        self._emit = emit
        self._clock = clock
        self._deadlines: list[tuple[float, str]] = []  # a heap; those of ended sequences stay until their time
        self._inbox: queue.SimpleQueue[Sequence | str | None] = queue.SimpleQueue()
        self._answers: dict[str, _Answer] = {}
        self._num_steps = 0
        self.num_running = 0  # sequences in the last step; for `emit`, which is called right after it
        self._stopped = threading.Event()

    # ---- from any thread

    def post(self, sequence: Sequence) -> None:
        """Put a sequence in line."""
        self._inbox.put(sequence)

    def abort(self, sequence_id: str) -> None:
        """Forget a sequence before the next step. Unknown or ended ones are ignored."""
        self._inbox.put(sequence_id)

    def stop(self) -> None:
        """End `run` after the current step."""
        self._stopped.set()
        self._inbox.put(None)

    def load(self) -> Load:
        scheduler = self.scheduler
        return Load(
            self._num_steps,
            len(scheduler.running),
            len(scheduler.waiting) + self._inbox.qsize(),
            scheduler.slots.used,
            scheduler.num_prompt,
            scheduler.num_cached,
            scheduler.num_preempted,
        )

    # ---- in the engine's thread

    def run(self) -> None:
        """Serve until `stop`. A failing step ends the sequences in it with an error, not the engine; but it raises what
        took the device away, after which every step would fail."""
        while not self._stopped.is_set():
            self.turn()

    def turn(self) -> None:
        """Take in what was posted (waiting for it if nothing runs), do one step, emit what it gave."""
        for work in (self._take_in, self._expire, self.step):
            if chunks := work():
                self._emit(chunks)

    def step(self) -> list[Chunk]:
        """schedule → forward → sample → update; the chunks it gave. Empty when nothing runs."""
        chunks = self._admit()
        step = self.scheduler.schedule()
        if step is None:
            return chunks
        self.num_running = len(step.spans)
        try:
            logits = self.runner.forward(step)
            tokens = logits.sample(step.sampled)
            likelihoods = logits.likelihoods(step.sampled, tokens)
            if scoring := step.scoring:
                _note(scoring, logits.prompt_likelihoods(scoring))
        except Exception as fault:
            log.exception("step %d failed", self._num_steps)
            if is_device_lost(fault):
                raise
            return chunks + self._fail(step, fault)
        self._num_steps += 1
        for span in step.spans:
            span.sequence.num_steps += 1
        self.scheduler.advance(step)
        chunks += [self._echo(s) for s in step.sampled if s.sampling.echo and not s.num_output]
        return chunks + [self._update(*sampled) for sampled in zip(step.sampled, tokens, likelihoods, strict=True)]

    def _take_in(self) -> list[Chunk]:
        """Empty the inbox; with nothing to do, wait for something first. Gives the chunks of those that end at once."""
        chunks: list[Chunk] = []
        block = not self._answers
        while block or not self._inbox.empty():
            item = self._inbox.get()
            block = False
            if isinstance(item, Sequence):
                chunks += self._accept(item)
            elif isinstance(item, str) and item in self._answers:
                chunks.append(self._end(self._answers[item], "", FinishReason.ABORT))
        return chunks

    def _accept(self, sequence: Sequence) -> list[Chunk]:
        if refusal := self._refusal(sequence):
            return [Chunk(sequence.id, finish_reason=FinishReason.ERROR, error=refusal)]
        tokenizer = self.runner.tokenizer
        self._answers[sequence.id] = _Answer(
            sequence,
            tokenizer.detokenizer(
                sequence.tokens[-1] if sequence.continues and not sequence.sampling.echo else None,
                keeps_markers=sequence.keeps_markers,
            ),
            StopStrings(sequence.sampling.stop),
            HeldLogprobs(tokenizer.token_bytes),
        )
        self.scheduler.add(sequence)
        if sequence.deadline_s < math.inf:
            heapq.heappush(self._deadlines, (sequence.deadline_s, sequence.id))
        return []

    def _expire(self) -> list[Chunk]:
        """End what is past its deadline: it is not computed any further."""
        chunks = []
        while self._deadlines and self._deadlines[0][0] <= self._clock():
            _, sequence_id = heapq.heappop(self._deadlines)
            if answer := self._answers.get(sequence_id):
                error = DeadlineExceeded(
                    f"the request's time limit has passed after {answer.sequence.num_output} tokens: "
                    "give it a longer timeout_s, or ask for fewer tokens"
                )
                chunks.append(self._end(answer, "", FinishReason.ERROR, error))
        return chunks

    def _refusal(self, sequence: Sequence) -> InvalidRequest | None:
        if not sequence.tokens:
            return InvalidRequest("the prompt is empty: send at least one token", param="prompt")
        room, asked = self._max_context - sequence.num_prompt, sequence.sampling.max_tokens
        if room < (asked != 0):
            return InvalidRequest(
                f"the prompt has {sequence.num_prompt} tokens, but this version's context is "
                f"{self._max_context} tokens, answer included: shorten the prompt",
                param="prompt",
            )
        if asked is not None and asked > room:
            return InvalidRequest(
                f"max_tokens is {asked}, but after a prompt of {sequence.num_prompt} tokens only {room} of the "
                f"context of {self._max_context} are left: ask for at most {room}",
                param="max_tokens",
            )
        vocab_size = self.runner.tokenizer.vocab_size
        if not 0 <= min(sequence.tokens) <= max(sequence.tokens) < vocab_size:
            return InvalidRequest(
                f"the prompt has a token id outside 0 to {vocab_size - 1}: send ids of this model's vocabulary",
                param="prompt",
            )
        return _unfit(sequence.sampling, vocab_size)

    def _admit(self) -> list[Chunk]:
        chunks: list[Chunk] = []
        while sequence := self.scheduler.admit():
            sequence.admitted_s = sequence.admitted_s or self._clock()  # one that comes back was admitted before
            try:
                self.runner.begin(sequence)
            except DSServeError as refusal:
                chunks.append(self._end(self._answers[sequence.id], "", FinishReason.ERROR, refusal))
        return chunks

    def _echo(self, sequence: Sequence) -> Chunk:
        """The prompt as text, with its logprobs if they are asked for. Stop strings do not look at it.

        Special tokens are part of it, but for those that only the tokenizer has put before it.
        """
        answer = self._answers[sequence.id]
        likelihoods: Iterable[Likelihood | None] = sequence.prompt_likelihoods or [None] * sequence.num_prompt
        text = "".join(
            answer.read(token, likelihood, place >= sequence.num_added)
            for place, (token, likelihood) in enumerate(zip(sequence.tokens, likelihoods, strict=True))
        )
        answer.num_sent += len(text)
        return Chunk(sequence.id, text, logprobs=answer.logprobs.sent(answer.num_sent))

    def _update(self, sequence: Sequence, token: int, likelihood: Likelihood | None) -> Chunk:
        """Add a token to its sequence; the chunk says what it means for the reader."""
        answer = self._answers[sequence.id]
        if sequence.sampling.max_tokens == 0:
            return self._end(answer, "", FinishReason.LENGTH)
        sequence.tokens.append(token)
        sequence.first_token_s = sequence.first_token_s or self._clock()
        is_over = sequence.matcher is not None and sequence.matcher.has_ended(sequence)
        if sequence.matcher and (failure := sequence.matcher.failure):
            return self._end(answer, "", FinishReason.ERROR, failure)
        if self._is_end(sequence.sampling, token):
            return self._end(answer, "", FinishReason.STOP, num_tokens=1)
        text, is_stopped = answer.stop.push(answer.read(token, likelihood))
        if is_stopped:
            return self._end(answer, text, FinishReason.STOP, num_tokens=1, is_cut=True)
        if is_over:
            return self._end(answer, text, FinishReason.STOP, num_tokens=1)
        if self._is_full(sequence):
            return self._end(answer, text, FinishReason.LENGTH, num_tokens=1)
        answer.num_sent += len(text)
        return Chunk(sequence.id, text, 1, logprobs=answer.logprobs.sent(answer.num_sent))

    def _is_end(self, sampling: SamplingParams, token: int) -> bool:
        is_eos = token in self.runner.tokenizer.eos_ids and not sampling.ignore_eos
        return is_eos or token in sampling.stop_token_ids

    def _is_full(self, sequence: Sequence) -> bool:
        asked = sequence.sampling.max_tokens
        return len(sequence.tokens) >= self._max_context or (asked is not None and sequence.num_output >= asked)

    def _end(
        self,
        answer: _Answer,
        text: str,
        reason: FinishReason,
        error: DSServeError | None = None,
        *,
        num_tokens: int = 0,
        is_cut: bool = False,
    ) -> Chunk:
        """Take the sequence out and write its last chunk; held-back text comes with it unless a stop string cut it."""
        sequence = answer.sequence
        del self._answers[sequence.id]
        self.scheduler.remove(sequence)
        if not is_cut:
            last, is_cut = answer.stop.push(answer.detokenizer.flush())
            text += last if is_cut else last + answer.stop.flush()
        usage = Usage(sequence.num_prompt, sequence.num_output, sequence.num_cached)
        logprobs = answer.logprobs.ended(answer.num_sent + len(text), is_cut=is_cut)
        times = sequence.times(self._clock())
        return Chunk(sequence.id, text, num_tokens, reason, usage, error, logprobs=logprobs, times=times)

    def _fail(self, step: Step, fault: Exception) -> list[Chunk]:
        """End every sequence of a step that raised: their KV may be half written."""
        error = EngineFailure(f"the model step failed: {type(fault).__name__}: {fault}")
        chunks = [self._end(self._answers[span.sequence.id], "", FinishReason.ERROR, error) for span in step.spans]
        self.scheduler.forget()
        return chunks


def _note(scoring: Iterable[Span], likelihoods: Iterable[Likelihood]) -> None:
    """Give each sequence what is known of its prompt now."""
    told = iter(likelihoods)
    for span in scoring:
        span.sequence.prompt_likelihoods += islice(told, len(span.scored))


def _unfit(sampling: SamplingParams, vocab_size: int) -> InvalidRequest | None:
    """Why this model cannot sample so, if it cannot."""
    if sampling.max_tokens is not None and sampling.min_tokens > sampling.max_tokens:
        return InvalidRequest(
            f"min_tokens is {sampling.min_tokens}, and max_tokens only {sampling.max_tokens}: ask for fewer",
            param="min_tokens",
        )
    named = {"logit_bias": [token for token, _ in sampling.logit_bias], "stop_token_ids": sampling.stop_token_ids}
    for name, tokens in named.items():
        if tokens and max(tokens) >= vocab_size:
            return InvalidRequest(
                f"{name} names token {max(tokens)}: this model has those from 0 to {vocab_size - 1}", param=name
            )
    return None
