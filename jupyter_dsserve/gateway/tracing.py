"""The traces of a gateway: each call of a model has one, whichever face it came through; the last of them are kept."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping

from opentelemetry.trace import get_current_span
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from jupyter_dsserve.fleet.tracing import MAX_MODEL, Trace, new_trace_id
from jupyter_dsserve.protocol.errors import NotFound
from jupyter_dsserve.protocol.request import Features, Message, Request, Texts
from jupyter_dsserve.protocol.spec import Task
from jupyter_dsserve.protocol.traces import Attribute, TraceRecord, TraceSummary

_W3C = TraceContextTextMapPropagator()
KEPT = 200


class Traces:
    """Keeps the last ``max_kept`` calls; 0 keeps none. ``export`` gets each call that has ended."""

    def __init__(self, max_kept: int = KEPT, export: Callable[[Trace], None] | None = None) -> None:
        self._kept: deque[Trace] = deque(maxlen=max_kept)
        self._export = export

    def begin(
        self,
        model: str,
        request: Request,
        task: Task = "generate",
        *,
        traceparent: str = "",
        tracestate: str = "",
        passed_s: float = 0.0,
        deployment: str = "",
    ) -> Trace | None:
        """The trace of a call that came ``passed_s`` seconds ago, to be ended in any case; None if nobody wants any.

        ``request`` is its first; hand the trace on in `fleet.road.Call`. ``traceparent`` and ``tracestate`` are as
        W3C's Trace Context has them (headers of HTTP, metadata of gRPC): what can not be read is as if it was not
        there, as the standard asks. ``deployment`` is the one that is asked, empty if there is none of the name.
        """
        if not self._kept.maxlen and not self._export:
            return None
        trace_id, parent_id, is_sampled, state = 0, 0, None, ""
        if traceparent:
            carrier = {"traceparent": traceparent, "tracestate": tracestate}
            caller = get_current_span(_W3C.extract(carrier)).get_span_context()
            if caller.is_valid:
                trace_id, parent_id = caller.trace_id, caller.span_id
                is_sampled, state = caller.trace_flags.sampled, caller.trace_state.to_header()
        trace = Trace(
            request.id,
            trace_id or new_trace_id(),
            parent_id,
            is_sampled,
            model[:MAX_MODEL],
            operation_of(task, request),
            time.monotonic() - passed_s,
            time.time() - passed_s,
            state,
            deployment,
        )
        self._kept.append(trace)
        return trace

    def end(
        self,
        trace: Trace,
        outcome: str,
        *,
        version: str = "",
        error: str = "",
        attributes: Mapping[str, Attribute] | None = None,
    ) -> None:
        """``outcome`` as `calls.outcome_of` says it, ``version`` the bare name of the one that answered, ``error`` the
        class of what it ended with. ``attributes`` are more of the call, never its words."""
        trace.ended_s = time.monotonic()
        trace.outcome, trace.version, trace.error = outcome, version, error
        if attributes:
            trace.attributes |= attributes
        if self._export:
            self._export(trace)

    def last(self, deployment: str = "", limit: int = KEPT) -> list[TraceSummary]:
        """The newest first, running ones too."""
        now = time.monotonic()
        found = (t for t in reversed(self._kept) if deployment in ("", t.deployment))
        return [trace.summary(now) for trace, _ in zip(found, range(limit), strict=False)]

    def find(self, id: str) -> TraceRecord:
        """By the id of the request or of the trace; of several with one trace id the newest. Raises `NotFound`."""
        for trace in reversed(self._kept):
            if id in (trace.id, f"{trace.trace_id:032x}"):
                return trace.record(time.monotonic())
        raise NotFound(
            f"there is no trace {id[:64]!r}: of all calls the last {self._kept.maxlen} are kept; their ids are the "
            "X-Request-Id of the answers",
            param="id",
        )


def operation_of(task: Task, request: Request) -> str:
    """``gen_ai.operation.name`` of OpenTelemetry's conventions, or the task's own word where they have none."""
    prompt = request.prompt
    if isinstance(prompt, Features):
        return "infer"
    if isinstance(prompt, Texts):
        return "embeddings" if task == "embed" else "classify"
    return "chat" if prompt and isinstance(prompt[0], Message) else "text_completion"
