"""One server for all tests of clients: the shipped model as it is, and with chat templates that know functions."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
import pytest_asyncio
from openai import AsyncOpenAI
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc as services

from jupyter_dsserve.demo import builtin_path
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import GatewayConfig
from tests.road.test_otlp import Collector
from tests.support import Caller

# In the manner of Qwen's: functions in the system's turn, calls and their results in turns of their own.
HERMES = """{% if tools %}{{ '<|system|>Functions: ' + (tools | tojson) + ' Call one as \
<tool_call>{"name": ..., "arguments": ...}</tool_call><|end|>' }}{% endif %}\
{% for message in messages %}{{ '<|' + message.role + '|>' + message.content }}\
{% for call in message.tool_calls %}{{ '<tool_call>' + (call.function | tojson) + '</tool_call>' }}{% endfor %}\
{{ '<|end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"""
MISTRAL = HERMES.replace("<tool_call>", "[TOOL_CALLS] [").replace("</tool_call>", "]")


def with_template(path: Path, template: str, **tokens: str) -> Path:
    """A copy of the shipped model with another chat template, and with other names for some special tokens."""
    shutil.copytree(builtin_path("demo-v1"), path)
    (path / "chat_template.jinja").write_text(template)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        text = (path / name).read_text()
        for old, new in tokens.items():
            text = text.replace(json.dumps(f"<|{old}|>"), json.dumps(new))
        (path / name).write_text(text)
    return path


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def collector() -> AsyncIterator[Collector]:
    """Of OTLP over gRPC; the gateway sends it the calls of those who want theirs to be traced."""
    found = Collector()
    server = grpc.aio.server()
    services.add_TraceServiceServicer_to_server(found, server)
    found.url = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    await server.start()
    yield found
    await server.stop(0)


@pytest_asyncio.fixture(scope="package", loop_scope="package")
async def served(tmp_path_factory: pytest.TempPathFactory, collector: Collector) -> AsyncIterator[Gateway]:
    """demo, hermes, mistral (whose mark of calls is a special token); a toy that embeds, embed, and a slow one."""
    folder = tmp_path_factory.mktemp("models")
    models = {
        "demo": "builtin:demo-v1",
        "hermes": str(with_template(folder / "hermes", HERMES)),
        "mistral": str(with_template(folder / "mistral", MISTRAL, pad="[TOOL_CALLS]")),
    }
    config = GatewayConfig(
        tmp_path_factory.mktemp("data"), port=0, grpc_port=0, drain_s=20, otlp_endpoint=collector.url, trace_sample=0.0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OTEL_BSP_SCHEDULE_DELAY", "30")
        patch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
        gateway = Gateway(config)
    await gateway.start()
    async with Caller(gateway.url, gateway.admin_key) as caller:
        await caller.load("embed", "v1", "toy:step_s=0", task="embed", wait=False)
        await caller.load("slow", "v1", "toy:step_s=0.02", wait=False)
        for name, model in models.items():
            await caller.load(name, "v1", model, wait=False, num_threads=1, dtype="fp32")
        settled = (caller.settled(name, "v1", timeout_s=150) for name in ["embed", "slow", *models])
        for loaded in await asyncio.gather(*settled):
            assert loaded["state"] == "READY", loaded["reason"]
    yield gateway
    await gateway.stop()


@pytest_asyncio.fixture(loop_scope="package")
async def client(served: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.admin_key, max_retries=0) as client:
        yield client


@pytest_asyncio.fixture(loop_scope="package")
async def caller(served: Gateway) -> AsyncIterator[Caller]:
    async with Caller(served.url, served.admin_key) as caller:
        yield caller


def function(name: str, **properties: Any) -> dict[str, Any]:
    """A tool whose arguments a small model can write in few tokens."""
    parameters = {"type": "object", "properties": properties, "required": list(properties)}
    return {"type": "function", "function": {"name": name, "description": "It knows.", "parameters": parameters}}


WEATHER = function("get_weather", city={"$ref": "#/$defs/city"}, days={"type": "integer", "minimum": 1, "maximum": 9})
WEATHER["function"]["parameters"]["$defs"] = {"city": {"enum": ["Köln", "Paris"]}}
TIME = function("get_time", zone={"enum": ["UTC", "CET"]})
