"""What a trace looks like from outside: `TraceSummary`, a call in a line, and `TraceRecord`, with its spans."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Attribute = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of a call. ``start_s`` and ``duration_s`` are seconds, the first from when the call came.

    ``span_id`` and ``parent_id`` are 16 hexadecimal digits; the first span's parent is the caller's span, or empty.
    ``attributes`` have the names of OpenTelemetry's conventions for generative AI where it has one.
    """

    name: str
    span_id: str
    parent_id: str
    start_s: float
    duration_s: float
    attributes: Mapping[str, Attribute] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """A call of a model. ``id`` is the answer's ``X-Request-Id``, ``trace_id`` 32 hexadecimal digits, ``at`` seconds
    since the epoch.

    ``outcome`` is as in the metrics, and ``running`` before its end. ``num_attempts`` counts requests on replicas: a
    call for several choices makes several, and one whose replica was lost is asked again.
    """

    id: str
    trace_id: str
    at: float
    operation: str
    model: str
    deployment: str
    version: str
    outcome: str
    duration_s: float
    first_token_s: float | None
    input_tokens: int
    output_tokens: int
    num_attempts: int


@dataclass(frozen=True, slots=True)
class TraceRecord(TraceSummary):
    spans: list[Span] = field(default_factory=list)
