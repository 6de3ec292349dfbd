"""Traces on their way to a collector (Jaeger, Tempo, …) by OpenTelemetry's own SDK, the extra ``otel``.

A call is handed over once it has ended, with the times that it noted; what is not sampled costs one look. The SDK's
thread sends in batches, and drops what a collector that is away does not take. Its environment variables hold
(OTEL_EXPORTER_OTLP_HEADERS for a collector's key, OTEL_BSP_*, OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, …).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from jupyter_dsserve import __version__
from jupyter_dsserve.fleet.tracing import Trace, spans_of
from jupyter_dsserve.protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

log = logging.getLogger(__name__)

_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_GRPC_PORT = 4317  # which OTLP has for it; 4318 is for HTTP
_FAREWELL_S = 2.0  # for the last batch
_KINDS = {"replica": SpanKind.CLIENT}
_MISSING = "traces are sent by OpenTelemetry's SDK, which is not installed: pip install 'jupyter_dsserve[otel]'"


class OtlpExporter:
    """Takes ended calls. ``endpoint`` empty is the environment's. ``sample`` is the share, 0 to 1, of those whose
    caller does not say whether they are traced; None is the environment's, or all.

    Raises `InvalidRequest` if the SDK is missing, or the endpoint is none.
    """

    def __init__(self, endpoint: str, sample: float | None) -> None:
        try:
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.trace.sampling import ParentBasedTraceIdRatio
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope

            exporter = _sender(endpoint)
        except ImportError:
            raise InvalidRequest(_MISSING, param="otlp_endpoint") from None
        resource = Resource.create({"service.version": __version__})
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "jupyter_dsserve"}))
        # It reads the environment's sampler.
        provider = TracerProvider(
            sampler=None if sample is None else ParentBasedTraceIdRatio(sample),
            resource=resource,
            shutdown_on_exit=False,
        )
        self._sampler = provider.sampler
        self._processor = BatchSpanProcessor(exporter)
        # Ended spans are made as they are handed over: to begin each and end it, as a tracer does, takes five times as
        # long, and gives them other ids than those that people find at the gateway.
        scope = InstrumentationScope("jupyter_dsserve", __version__)
        self._ended = partial(ReadableSpan, resource=resource, instrumentation_scope=scope)

    def __call__(self, trace: Trace) -> None:
        """Hand over an ended call, if it is sampled."""
        parent = _callers(trace)
        above = set_span_in_context(NonRecordingSpan(parent), Context()) if parent else Context()
        name = f"{trace.operation} {trace.model}"
        told = self._sampler.should_sample(above, trace.trace_id, name, SpanKind.SERVER)
        if not told.decision.is_sampled():
            return
        began = int(trace.at * 1e9)
        contexts: dict[str, SpanContext] = {}
        for span in spans_of(trace, trace.ended_s):
            is_call = not contexts
            own = SpanContext(
                trace.trace_id, int(span.span_id, 16), False, TraceFlags(TraceFlags.SAMPLED), told.trace_state
            )
            contexts[span.span_id] = own
            start = began + int(span.start_s * 1e9)
            has_failed = is_call and trace.outcome in ("error", "timeout")
            self._processor.on_end(
                self._ended(
                    name=span.name,
                    context=own,
                    parent=parent if is_call else contexts[span.parent_id],
                    attributes=span.attributes,
                    kind=SpanKind.SERVER if is_call else _KINDS.get(span.name, SpanKind.INTERNAL),
                    status=Status(StatusCode.ERROR, trace.error) if has_failed else Status(),
                    start_time=start,
                    end_time=start + int(span.duration_s * 1e9),
                )
            )

    async def close(self) -> None:
        """Send what is left, for at most some seconds: a collector that is away must not hold up the stop."""
        loop, done = asyncio.get_running_loop(), asyncio.Event()

        def close() -> None:
            self._processor.shutdown()
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(done.set)

        threading.Thread(target=close, name="otlp-farewell", daemon=True).start()
        with contextlib.suppress(asyncio.TimeoutError):
            await asyncio.wait_for(done.wait(), _FAREWELL_S)


def otlp_exporter(endpoint: str, sample: float | None) -> OtlpExporter | None:
    """None if neither ``endpoint`` nor the environment names a collector, or the environment switches it off. Raises as
    `OtlpExporter` does, but where only the environment names one and the SDK is missing this is said in the log: it may
    be meant for others."""
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    if endpoint:
        return OtlpExporter(endpoint, sample)
    if not any(os.environ.get(name) for name in _ENDPOINT_VARIABLES):
        return None
    try:
        return OtlpExporter("", sample)
    except InvalidRequest as fault:
        log.warning("%s names a collector, but %s", _ENDPOINT_VARIABLES[1], fault.message)
        return None


def _callers(trace: Trace) -> SpanContext | None:
    """The caller's span, if there is one."""
    if not trace.parent_id:
        return None
    flags = TraceFlags(TraceFlags.SAMPLED if trace.is_sampled else TraceFlags.DEFAULT)
    state = TraceState.from_header([trace.trace_state])
    return SpanContext(trace.trace_id, trace.parent_id, is_remote=True, trace_flags=flags, trace_state=state)


def _sender(endpoint: str) -> SpanExporter:
    """What speaks OTLP with the endpoint: over gRPC or HTTP as the environment says, or as its port does."""
    named = endpoint or next(os.environ[name] for name in _ENDPOINT_VARIABLES if os.environ.get(name))
    try:
        url = urlsplit(named)
        is_fit, port = url.scheme in ("http", "https") and bool(url.hostname), url.port
    except ValueError:
        is_fit, port = False, None
    if not is_fit:
        raise InvalidRequest(
            "the OTLP endpoint is no URL: give one such as http://127.0.0.1:4317", param="otlp_endpoint"
        )
    protocol = next((os.environ[name] for name in _PROTOCOL_VARIABLES if os.environ.get(name)), "")
    if protocol == "grpc" or (not protocol and port == _GRPC_PORT):
        from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter as GrpcExporter

        return GrpcExporter(endpoint=endpoint or None, insecure=None if not endpoint else url.scheme == "http")
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter as HttpExporter

    # Given as a base, as in OTEL_EXPORTER_OTLP_ENDPOINT, or with the path of its own.
    whole = endpoint if url.path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
    return HttpExporter(endpoint=whole if endpoint else None)
