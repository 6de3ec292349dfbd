"""Ended calls as the protobuf of OTLP, for the SDK's senders; of the extra ``otel``.

The SDK's own encoder goes over an object for each span and sorts them by what sent them, which costs five times as much
and holds up the loop as long: its thread and the loop take turns.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec, module_from_spec
from typing import Any, ClassVar

from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import ScopeSpans, Span, SpanFlags, Status
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, TraceFlags

from jupyter_dsserve.fleet.tracing import Trace, spans_of
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.traces import Attribute

_KINDS = {"replica": Span.SPAN_KIND_CLIENT}
_LOCAL = SpanFlags.SPAN_FLAGS_CONTEXT_HAS_IS_REMOTE_MASK
_REMOTE = _LOCAL | SpanFlags.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK


@dataclass(frozen=True, slots=True)
class EndedCall:
    """One that is to be sent, in the SDK's queue in place of its spans. ``state`` is W3C's of the trace."""

    trace: Trace
    state: str
    context: ClassVar[SpanContext] = SpanContext(1, 1, False, TraceFlags(TraceFlags.SAMPLED))  # or it is not queued


class Encoder:
    """Makes a message of `EndedCall`s, as sent by ``resource`` and ``scope``."""

    def __init__(self, resource: Resource, scope: InstrumentationScope) -> None:
        named = ReadableSpan("", EndedCall.context, resource=resource, instrumentation_scope=scope)
        self._empty = encode_spans([named])
        del self._empty.resource_spans[0].scope_spans[0].spans[:]

    def __call__(self, calls: Iterable[EndedCall]) -> ExportTraceServiceRequest:
        made = ExportTraceServiceRequest()
        made.CopyFrom(self._empty)
        of_scope = made.resource_spans[0].scope_spans[0]
        for call in calls:
            _add_spans(of_scope, call)
        return made


def sender_module(name: str, encoder: Encoder) -> Any:
    """A copy of the SDK's module that sends spans, of which the senders use ``encoder``; the module that others
    import stays as it is. Raises `ImportError` if there is none, `InvalidRequest` if it encodes in another way."""
    spec = find_spec(name)
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "encode_spans"):
        raise InvalidRequest(
            f"traces can not be sent with this release of OpenTelemetry's SDK ({name} has no encode_spans): install an "
            "older one",
            param="otlp_endpoint",
        )
    module.encode_spans = encoder  # type: ignore[attr-defined]
    return module


def _add_spans(of_scope: ScopeSpans, call: EndedCall) -> None:
    trace = call.trace
    trace_id, began = trace.trace_id.to_bytes(16, "big"), int(trace.at * 1e9)
    for number, span in enumerate(spans_of(trace, trace.ended_s)):
        start = began + int(span.start_s * 1e9)
        made = of_scope.spans.add(
            trace_id=trace_id,
            span_id=bytes.fromhex(span.span_id),
            parent_span_id=bytes.fromhex(span.parent_id),
            trace_state=call.state,
            name=span.name,
            kind=_KINDS.get(span.name, Span.SPAN_KIND_INTERNAL) if number else Span.SPAN_KIND_SERVER,
            start_time_unix_nano=start,
            end_time_unix_nano=start + int(span.duration_s * 1e9),
            flags=_LOCAL if number or not trace.parent_id else _REMOTE,
        )
        _add_attributes(made, span.attributes)
        if not number and trace.outcome in ("error", "timeout"):
            made.status.code, made.status.message = Status.STATUS_CODE_ERROR, trace.error


def _add_attributes(span: Span, attributes: Mapping[str, Attribute]) -> None:
    for key, value in attributes.items():
        said = span.attributes.add(key=key).value
        if isinstance(value, str):
            said.string_value = value
        elif isinstance(value, bool):
            said.bool_value = value
        elif isinstance(value, int):
            said.int_value = value
        else:
            said.double_value = value
