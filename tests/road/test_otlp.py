"""Traces arrive at a real OTLP collector, over gRPC and over HTTP: whole, in order, and below the caller's span."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services
from opentelemetry.proto.trace.v1 import trace_pb2 as spans_pb
from tornado.httpserver import HTTPServer
from tornado.netutil import bind_sockets
from tornado.web import Application, RequestHandler

from jupyter_dsserve.gateway.otlp import otlp_exporter
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import GatewayConfig
from jupyter_dsserve.protocol.errors import InvalidRequest
from tests.support import Caller, free_port, until

TRACE_ID, PARENT_ID = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

pytestmark = pytest.mark.asyncio(loop_scope="module")


class Collector(services.TraceServiceServicer):
    """What a collector's door is: keeps the spans of each trace as they came, and the names of who sent them."""

    url = ""  # where it listens

    def __init__(self) -> None:
        self.spans: dict[str, list[Any]] = {}
        self.services: set[str] = set()
        self.keys: list[str] = []  # that came with each message over HTTP

    async def Export(self, request: pb.ExportTraceServiceRequest, context: Any) -> pb.ExportTraceServiceResponse:  # noqa: N802
        self.take(request)
        return pb.ExportTraceServiceResponse()

    def take(self, request: pb.ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            named = {a.key: a.value.string_value for a in resource.resource.attributes}
            self.services.add(named["service.name"])
            for scope in resource.scope_spans:
                for span in scope.spans:
                    self.spans.setdefault(span.trace_id.hex(), []).append(span)


class HttpDoor(RequestHandler):
    def initialize(self, collector: Collector) -> None:
        self.collector = collector

    def post(self) -> None:
        self.collector.keys.append(self.request.headers.get("X-Collector-Key", ""))
        self.collector.take(pb.ExportTraceServiceRequest.FromString(self.request.body))
        self.finish(pb.ExportTraceServiceResponse().SerializeToString())


@pytest.fixture(scope="module", autouse=True)
def soon() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "30")
        yield


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def collector() -> AsyncIterator[tuple[Collector, str, str]]:
    """It, and where it takes OTLP over gRPC and over HTTP."""
    collector = Collector()
    server = grpc.aio.server()
    services.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    sockets = bind_sockets(0, "127.0.0.1")
    http = HTTPServer(Application([(r"/v1/traces", HttpDoor, {"collector": collector})]), decompress_request=True)
    http.add_sockets(sockets)
    yield collector, f"http://127.0.0.1:{port}", f"http://127.0.0.1:{sockets[0].getsockname()[1]}"
    http.stop()
    await server.stop(0)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def caller(
    collector: tuple[Collector, str, str], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Caller]:
    """Of a gateway that sends over gRPC, half of what nobody has decided on."""
    path: Path = tmp_path_factory.mktemp("otlp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        gateway = Gateway(
            GatewayConfig(path / "data", port=0, drain_s=1, traces=40, otlp_endpoint=collector[1], trace_sample=0.5)
        )
    await gateway.start()
    async with Caller(gateway.url, gateway.admin_key) as caller:
        await caller.load("demo", "v1", "toy:step_s=0.02")
        yield caller
    await gateway.stop()


async def asked(caller: Caller, flags: str = "01", trace_id: str = TRACE_ID, **fields: Any) -> Any:
    headers = {"traceparent": f"00-{trace_id}-{PARENT_ID}-{flags}", "tracestate": "vendor=x"}
    body = {"model": "demo", "prompt": "a secret", "max_tokens": 5, **fields}
    return await caller.post("/v1/completions", json=body, headers=headers)


async def test_a_call_arrives_below_its_callers_span_with_all_its_phases(
    caller: Caller, collector: tuple[Collector, str, str]
) -> None:
    answer = await asked(caller, max_tokens=60)
    spans = await until(lambda: collector[0].spans.get(TRACE_ID, []), lambda found: len(found) == 7)
    by_name = {span.name: span for span in spans}
    call, replica = by_name["text_completion demo"], by_name["replica"]
    assert call.parent_span_id.hex() == PARENT_ID
    assert {by_name[name].parent_span_id for name in ("route", "replica")} == {call.span_id}
    phases = [by_name[name] for name in ("tokenize", "schedule", "prefill", "decode")]
    assert {span.parent_span_id for span in phases} == {replica.span_id}
    for before, after in pairwise(phases):
        assert 0 <= after.start_time_unix_nano - before.end_time_unix_nano < 2_000  # rounded
    # The parts are the whole, but for the wire and the loop.
    whole_s = answer.elapsed.total_seconds()
    parts_s = sum(span.end_time_unix_nano - span.start_time_unix_nano for span in (by_name["route"], *phases)) / 1e9
    assert 1.2 <= parts_s <= whole_s
    assert whole_s - parts_s < 0.05 + 0.3 * whole_s
    said = {a.key: a.value for a in call.attributes}
    assert said["gen_ai.operation.name"].string_value == "text_completion"
    assert said["gen_ai.usage.output_tokens"].int_value == 60
    assert said["dsserve.version"].string_value == "v1"
    assert 0 < said["dsserve.first_token_s"].double_value < whole_s
    assert {span.trace_state for span in spans} == {"vendor=x"}
    # The caller's span is in another process, and no other span's parent is.
    assert [span.name for span in spans if span.flags & spans_pb.SPAN_FLAGS_CONTEXT_IS_REMOTE_MASK] == [call.name]
    assert (call.kind, replica.kind) == (call.SPAN_KIND_SERVER, call.SPAN_KIND_CLIENT)
    assert call.status.code == call.status.STATUS_CODE_UNSET
    assert collector[0].services == {"jupyter_dsserve"}
    assert "secret" not in str(spans)
    # What the gateway keeps has the same ids.
    kept = (await caller.get(f"/api/traces/{answer.headers['X-Request-Id']}")).json()
    assert {s["span_id"] for s in kept["spans"]} == {span.span_id.hex() for span in spans}


async def test_a_failed_call_is_an_error_there(caller: Caller, collector: tuple[Collector, str, str]) -> None:
    await asked(caller, trace_id="e" * 32, timeout_s=0.05, max_tokens=900)
    spans = await until(lambda: collector[0].spans.get("e" * 32, []))
    [call] = [span for span in spans if span.parent_span_id.hex() == PARENT_ID]
    assert call.status.code == call.status.STATUS_CODE_ERROR
    assert call.status.message == "DeadlineExceeded"


async def test_the_caller_decides_whether_it_is_sent_and_else_the_share_does(
    caller: Caller, collector: tuple[Collector, str, str]
) -> None:
    await asked(caller, "00", "d" * 32)
    answers = await asyncio.gather(*(caller.complete(max_tokens=1) for _ in range(30)))
    ids = [(await caller.get(f"/api/traces/{a.headers['X-Request-Id']}")).json()["trace_id"] for a in answers]
    await asked(caller, "01", "c" * 32)
    await until(lambda: "c" * 32 in collector[0].spans)  # it came after them
    num_sent = sum(id in collector[0].spans for id in ids)
    assert 2 < num_sent < 28  # of 30, a half: beyond it once in a million
    assert "d" * 32 not in collector[0].spans


async def test_over_http_by_the_environments_variables(
    collector: tuple[Collector, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector[2])
    monkeypatch.setenv("OTEL_SERVICE_NAME", "mine")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "x-collector-key=opens")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip")
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "60000")  # so that it is the end that sends it
    gateway = Gateway(GatewayConfig(tmp_path / "data", port=0, drain_s=1))
    await gateway.start()
    async with Caller(gateway.url, gateway.admin_key) as caller:
        assert (await asked(caller, trace_id="b" * 32)).status_code == 404
    await gateway.stop()
    spans = await until(lambda: collector[0].spans.get("b" * 32))  # its thread may be later than the stop
    assert {span.name for span in spans} == {"text_completion demo", "route"}
    assert "mine" in collector[0].services
    assert collector[0].keys == ["opens"]


async def test_a_collector_that_is_away_costs_no_call_and_no_long_stop(tmp_path: Path) -> None:
    config = GatewayConfig(tmp_path / "data", port=0, drain_s=1, otlp_endpoint=f"http://127.0.0.1:{free_port()}")
    gateway = Gateway(config)
    await gateway.start()
    async with Caller(gateway.url, gateway.admin_key) as caller:
        assert (await asked(caller)).status_code == 404
    before = asyncio.get_running_loop().time()
    await gateway.stop()
    assert asyncio.get_running_loop().time() - before < 8


@pytest.mark.parametrize("endpoint", ["localhost:4317", "ftp://x", "http://", "http://x:99999"])
async def test_an_endpoint_that_is_none_is_refused(endpoint: str) -> None:
    with pytest.raises(InvalidRequest, match="OTLP endpoint is no URL"):
        otlp_exporter(endpoint, None)


async def test_nothing_is_sent_unless_somebody_says_where(monkeypatch: pytest.MonkeyPatch) -> None:
    assert otlp_exporter("", 0.5) is None
    monkeypatch.setenv("OTEL_SDK_DISABLED", "true")
    assert otlp_exporter("http://127.0.0.1:4317", 0.5) is None
