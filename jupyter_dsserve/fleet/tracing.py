"""`Trace`: what happened to a call of a model, noted as it happens and drawn up as spans when somebody asks.

A call notes a few times and nothing else; `spans_of` makes the tree of them:

    chat demo           the whole call, from its head's arrival to the end of the answer
    ├─ route            its body, limits, the choice of a version
    ├─ queue            in line for a replica, if there was one
    └─ replica          from Submit to the last chunk, once for each request and each replica that was asked
       ├─ tokenize      in the worker; with the compiling of a grammar
       ├─ schedule      until its first step begins
       ├─ prefill       until the first token
       └─ decode        until the last one; a task without tokens has one span ``forward`` in place of the two

Times are monotonic seconds. A worker's clock is the gateway's, because both run on one machine; `_shift_of` moves what
another clock said to where it can have been. Nothing of a prompt or an answer is ever noted.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field

from jupyter_dsserve.protocol.request import Chunk, Times, Usage
from jupyter_dsserve.protocol.traces import Attribute, Span, TraceRecord, TraceSummary

# Of a call for very many choices, whose record would be large.
MAX_ATTEMPTS = 64
MAX_MODEL = 128  # characters of what was asked for that are kept: it may be anything
_NO_USAGE = Usage(0, 0)


@dataclass(slots=True, eq=False)
class Attempt:
    """One request, from when a version was asked to its last chunk from one replica; times that never came are 0."""

    request_id: str
    version: str
    begun_s: float
    replica: str = ""
    asked_s: float = 0.0
    first_token_s: float = 0.0
    ended_s: float = 0.0
    end: str = ""  # the finish reason; "lost" if another replica was asked
    error: str = ""  # its class
    batch: float = 0.0
    usage: Usage = _NO_USAGE
    times: Times | None = None

    def see_last(self, chunk: Chunk, now: float, end: str) -> None:
        self.ended_s, self.end = now, end
        self.error = type(chunk.error).__name__ if chunk.error else ""
        self.batch, self.times = chunk.batch, chunk.times
        self.usage = chunk.usage or _NO_USAGE


@dataclass(slots=True, eq=False)
class Trace:
    """A call of ``model``. ``parent_id`` is the caller's span, 0 is none; ``is_sampled`` what the caller says of it
    (None: nothing). ``at`` is ``begun_s`` in seconds since the epoch."""

    id: str
    trace_id: int
    parent_id: int
    is_sampled: bool | None
    model: str
    operation: str
    begun_s: float
    at: float
    trace_state: str = ""
    deployment: str = ""
    version: str = ""
    outcome: str = ""  # empty while it runs
    error: str = ""  # its class
    ended_s: float = 0.0
    attributes: dict[str, Attribute] = field(default_factory=dict)
    attempts: list[Attempt] = field(default_factory=list)
    num_attempts: int = 0
    span_id: int = field(default_factory=lambda: random.getrandbits(63) | 1 << 63)

    def attempt(self, request_id: str, version: str, now: float) -> Attempt:
        made = Attempt(request_id, version, now)
        self.num_attempts += 1
        if len(self.attempts) < MAX_ATTEMPTS:
            self.attempts.append(made)
        return made

    @property
    def first_token_s(self) -> float | None:
        """Seconds from the call's arrival."""
        first = min((a.first_token_s for a in self.attempts if a.first_token_s), default=0.0)
        return first - self.begun_s if first else None

    def summary(self, now: float) -> TraceSummary:
        """``now`` is monotonic seconds. Tokens are added up over requests, as in the metrics: a prompt of several
        choices counts for each."""
        last = self.attempts[-1].version if self.attempts else ""
        return TraceSummary(
            id=self.id,
            trace_id=f"{self.trace_id:032x}",
            at=self.at,
            operation=self.operation,
            model=self.model,
            deployment=self.deployment,
            version=self.version if self.outcome else last,
            outcome=self.outcome or "running",
            duration_s=(self.ended_s or now) - self.begun_s,
            first_token_s=self.first_token_s,
            input_tokens=sum(a.usage.prompt_tokens for a in self.attempts),
            output_tokens=sum(a.usage.completion_tokens for a in self.attempts),
            num_attempts=self.num_attempts,
        )

    def record(self, now: float) -> TraceRecord:
        return TraceRecord(**asdict(self.summary(now)), spans=list(spans_of(self, now)))


def new_trace_id() -> int:
    return random.getrandbits(128) | 1


def spans_of(trace: Trace, now: float) -> Iterator[Span]:
    """The tree of a call's spans, parents first. ``now`` ends what still runs. Ids follow from the trace's own."""
    end = trace.ended_s or now
    root, number = trace.span_id, 0

    def span(name: str, parent: int, start: float, until: float, attributes: dict[str, Attribute]) -> Span:
        nonlocal number
        start = min(max(start, trace.begun_s), end)
        duration = max(0.0, min(until, end) - start)
        own, above = f"{_span_id(root, number):016x}", f"{parent:016x}" if parent else ""
        number += 1
        return Span(name, own, above, start - trace.begun_s, duration, attributes)

    yield span(f"{trace.operation} {trace.model}", trace.parent_id, trace.begun_s, end, _of_call(trace))
    routed = trace.attempts[0].begun_s if trace.attempts else end
    yield span("route", root, trace.begun_s, routed, {})
    for attempt in trace.attempts:
        of_attempt: dict[str, Attribute] = {
            "dsserve.version": attempt.version,
            "dsserve.request_id": attempt.request_id,
        }
        asked = attempt.asked_s or end
        if asked - attempt.begun_s > 0.0005 or not attempt.asked_s:  # else there was no line
            yield span("queue", root, attempt.begun_s, asked, of_attempt)
        if not attempt.asked_s:
            continue
        ended = attempt.ended_s or end
        replica = span("replica", root, asked, ended, of_attempt | _of_replica(attempt))
        yield replica
        for name, start, until, attributes in _in_worker(attempt, asked, ended):
            yield span(name, int(replica.span_id, 16), start, until, attributes)


def _span_id(root: int, number: int) -> int:
    """The root's own is first. Never 0, which is none: the highest bit of a root is set, and there are few spans."""
    return (root + number) % 2**64 or 1


def _of_call(trace: Trace) -> dict[str, Attribute]:
    summary = trace.summary(trace.ended_s or trace.begun_s)
    found: dict[str, Attribute] = {
        "gen_ai.operation.name": trace.operation,
        "gen_ai.provider.name": "jupyter_dsserve",
        "gen_ai.request.model": summary.model,
        "gen_ai.usage.input_tokens": summary.input_tokens,
        "gen_ai.usage.output_tokens": summary.output_tokens,
        "gen_ai.response.id": trace.id,
        "dsserve.deployment": trace.deployment,
        "dsserve.version": trace.version,
        "dsserve.request_id": trace.id,
        "dsserve.outcome": summary.outcome,
    }
    if trace.version:
        found["gen_ai.response.model"] = f"{trace.deployment}@{trace.version}"
    if summary.first_token_s is not None:
        found["dsserve.first_token_s"] = round(summary.first_token_s, 6)
    if trace.error:
        found["error.type"] = trace.error
    if trace.num_attempts > len(trace.attempts):
        found["dsserve.num_attempts"] = trace.num_attempts
    return found | trace.attributes


def _of_replica(attempt: Attempt) -> dict[str, Attribute]:
    found: dict[str, Attribute] = {"dsserve.replica": attempt.replica, "dsserve.end": attempt.end or "left"}
    if attempt.usage is not _NO_USAGE:
        found["gen_ai.usage.input_tokens"] = attempt.usage.prompt_tokens
        found["gen_ai.usage.output_tokens"] = attempt.usage.completion_tokens
        found["gen_ai.usage.cache_read.input_tokens"] = attempt.usage.cached_tokens
    if attempt.batch:
        found["dsserve.batch_sequences"] = round(attempt.batch, 2)
    if attempt.error:
        found["error.type"] = attempt.error
    return found


def _in_worker(
    attempt: Attempt, asked: float, ended: float
) -> Iterator[tuple[str, float, float, dict[str, Attribute]]]:
    """(name, start, end, attributes) of what the worker said it did; nothing if it said nothing."""
    times = attempt.times
    if times is None or not times.arrived_s:
        return
    shift = _shift_of(times, asked, ended)
    last = times.ended_s
    tokenized = times.tokenized_s or last
    admitted = times.admitted_s or last
    steps: dict[str, Attribute] = {"dsserve.num_steps": times.num_steps}
    yield "tokenize", times.arrived_s + shift, tokenized + shift, {}
    if times.tokenized_s:
        yield "schedule", tokenized + shift, admitted + shift, {}
    if times.admitted_s and times.first_token_s:
        yield "prefill", admitted + shift, times.first_token_s + shift, {}
        yield "decode", times.first_token_s + shift, last + shift, steps
    elif times.admitted_s:  # of another task; or it ended before its first token
        yield "forward", admitted + shift, last + shift, steps


def _shift_of(times: Times, asked: float, ended: float) -> float:
    """What a worker's seconds need to be the gateway's: 0 on one machine, where CLOCK_MONOTONIC is one for all. A
    worker elsewhere counts from another beginning: then its last moment is the gateway's."""
    is_same = asked <= times.arrived_s and times.ended_s <= ended and math.isfinite(times.ended_s)
    return 0.0 if is_same else ended - times.ended_s
