"""Traces on their way to a collector (Jaeger, Tempo, …) by OpenTelemetry's own SDK, the extra ``otel``.

A call is handed over once it has ended, with the times that it noted; what is not sampled costs one look. The SDK's
thread has `otlp_spans` draw up and encode the spans of many calls at once, sends them, and drops what a collector that
is away does not take. Its environment variables hold (OTEL_EXPORTER_OTLP_HEADERS for a collector's key, OTEL_BSP_*,
OTEL_SERVICE_NAME, OTEL_TRACES_SAMPLER, …).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import urlsplit

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    SpanContext,
    SpanKind,
    TraceFlags,
    TraceState,
    set_span_in_context,
)

from jupyter_dsserve import __version__
from jupyter_dsserve.fleet.tracing import Trace
from jupyter_dsserve.protocol.errors import InvalidRequest

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.sdk.trace.sampling import Sampler, SamplingResult

    from jupyter_dsserve.gateway.otlp_spans import Encoder

log = logging.getLogger(__name__)

_ENDPOINT_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOL_VARIABLES = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SENDERS = "opentelemetry.exporter.otlp.proto"
_GRPC_PORT = 4317  # which OTLP has for it; 4318 is for HTTP
_FAREWELL_S = 2.0  # for the last batch
_BATCH_VARIABLE = "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"
_BATCH_CALLS = 128  # in a message: a call has seven spans or so, and may have hundreds; collectors take 4 MiB
_MISSING = "traces are sent by OpenTelemetry's SDK, which is not installed: pip install 'jupyter_dsserve[otel]'"


class OtlpExporter:
    """Takes ended calls. ``endpoint`` empty is the environment's. ``sample`` is the share, 0 to 1, of those whose
    caller does not say whether they are traced; None is the environment's, or all.

    Raises `InvalidRequest` if the SDK is missing, or the endpoint is none.
    """

    def __init__(self, endpoint: str, sample: float | None) -> None:
        try:
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope

            from jupyter_dsserve.gateway.otlp_spans import Encoder, EndedCall

            resource = Resource.create({"service.version": __version__})
            if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
                resource = resource.merge(Resource({SERVICE_NAME: "jupyter_dsserve"}))
            sender = _sender(endpoint, Encoder(resource, InstrumentationScope("jupyter_dsserve", __version__)))
        except ImportError:
            raise InvalidRequest(_MISSING, param="otlp_endpoint") from None
        self._sampler: Sampler | None = None
        if sample is None:
            self._sampler = TracerProvider(resource=resource, shutdown_on_exit=False).sampler  # the environment's
        self._bound = round((sample or 0.0) * 2**64)
        self._ended: Callable[[Trace, str], Any] = EndedCall
        at_once = None if os.environ.get(_BATCH_VARIABLE) else _BATCH_CALLS
        self._processor = BatchSpanProcessor(sender, max_export_batch_size=at_once)

    def __call__(self, trace: Trace) -> None:
        """Hand over an ended call, if it is sampled."""
        if self._sampler:
            told = _told(self._sampler, trace)
            is_sampled, state = told.decision.is_sampled(), told.trace_state.to_header() if told.trace_state else ""
        else:  # as the SDK's sampler by shares, in a fifth of its time: most calls are not sampled
            is_sampled = trace.is_sampled if trace.parent_id else trace.trace_id % 2**64 < self._bound
            state = trace.trace_state
        if is_sampled:
            self._processor.on_end(self._ended(trace, state))

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


def _told(sampler: Sampler, trace: Trace) -> SamplingResult:
    above = Context()
    if trace.parent_id:
        flags = TraceFlags(TraceFlags.SAMPLED if trace.is_sampled else TraceFlags.DEFAULT)
        state = TraceState.from_header([trace.trace_state])
        caller = SpanContext(trace.trace_id, trace.parent_id, is_remote=True, trace_flags=flags, trace_state=state)
        above = set_span_in_context(NonRecordingSpan(caller), above)
    return sampler.should_sample(above, trace.trace_id, f"{trace.operation} {trace.model}", SpanKind.SERVER)


def _sender(endpoint: str, encoder: Encoder) -> SpanExporter:
    """What speaks OTLP with the endpoint: over gRPC or HTTP as the environment says, or as its port does."""
    from jupyter_dsserve.gateway.otlp_spans import sender_module

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
        of_grpc = sender_module(f"{_SENDERS}.grpc.trace_exporter", encoder)
        sender = of_grpc.OTLPSpanExporter(
            endpoint=endpoint or None, insecure=None if not endpoint else url.scheme == "http"
        )
    else:
        of_http = sender_module(f"{_SENDERS}.http.trace_exporter", encoder)
        # Given as a base, as in OTEL_EXPORTER_OTLP_ENDPOINT, or with the path of its own.
        whole = endpoint if url.path.strip("/") else f"{endpoint.rstrip('/')}/v1/traces"
        sender = of_http.OTLPSpanExporter(endpoint=whole if endpoint else None)
    return cast("SpanExporter", sender)
