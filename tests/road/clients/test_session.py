"""One server, and every client that README names, as people have them: unchanged, and all at once."""

from __future__ import annotations

import asyncio
import importlib.metadata
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import grpc
import httpx
import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
import yaml
from langchain_openai import ChatOpenAI
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol import inference_pb2 as pb
from jupyter_dsserve.protocol.inference_pb2_grpc import InferenceStub
from tests.road.clients.conftest import TIME
from tests.road.test_otlp import Collector
from tests.support import free_port, until

pytestmark = pytest.mark.asyncio(loop_scope="package")
README = (Path(__file__).parents[3] / "README.md").read_text()
CHAT: Any = {"messages": [{"role": "user", "content": "hello"}], "max_tokens": 60, "seed": 1}
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


class Mood(BaseModel):
    mood: Literal["good", "bad"]


def with_openai(served: Gateway) -> None:
    with OpenAI(base_url=f"{served.url}/v1", api_key=served.admin_key, max_retries=0) as client:
        assert "demo" in [model.id for model in client.models.list()]
        asked = client.chat.completions.create(model="hermes", tools=[TIME], tool_choice="required", **CHAT)  # type: ignore[call-overload]
        assert asked.choices[0].message.tool_calls[0].function.name == "get_time"
        mood = client.chat.completions.parse(model="demo", response_format=Mood, **CHAT).choices[0].message.parsed
        assert mood.mood in ("good", "bad")


async def with_openai_async(served: Gateway) -> None:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.admin_key, max_retries=0) as client:
        traced = {"traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
        stream = await client.completions.create(
            model="demo", prompt="def f(", max_tokens=5, stream=True, extra_headers=traced
        )
        assert "".join([event.choices[0].text async for event in stream])


def triton_asks(client: Any, module: Any, headers: dict[str, str]) -> None:
    text = module.InferInput("text_input", [1], "BYTES")
    text.set_data_from_numpy(np.array([b"def f("], dtype=object))
    answer = client.infer("demo", [text], headers=headers, parameters={"max_tokens": 5})
    assert answer.as_numpy("text_output").size == 1


def with_triton(served: Gateway) -> None:
    with tritonclient.http.InferenceServerClient(served.url.removeprefix("http://")) as client:
        triton_asks(client, tritonclient.http, {"Authorization": f"Bearer {served.admin_key}"})
    with tritonclient.grpc.InferenceServerClient(served.context.grpc_address) as client:
        triton_asks(client, tritonclient.grpc, {"authorization": f"Bearer {served.admin_key}"})


def with_a_stub(served: Gateway) -> None:
    with grpc.insecure_channel(served.context.grpc_address) as channel:
        request = pb.InferenceRequest(model="demo", input_text="def f(", max_length=5)
        metadata = [("authorization", f"Bearer {served.admin_key}")]
        assert InferenceStub(channel).Predict(request, metadata=metadata, timeout=60).version == "v1"


def with_langchain(served: Gateway) -> None:
    model = ChatOpenAI(model="demo", base_url=f"{served.url}/v1", api_key=served.admin_key, max_tokens=5)  # type: ignore[arg-type, call-arg]
    assert "".join(str(piece.content) for piece in model.stream("hello"))


def with_litellm(served: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # it would be downloaded
    import litellm

    where = {"api_base": f"{served.url}/v1", "api_key": served.admin_key}
    answer: Any = litellm.completion(model="openai/demo", **CHAT, **where)
    assert answer.choices[0].message.content


@pytest.fixture
def prometheus(served: Gateway, tmp_path: Path) -> Iterator[str]:
    """The URL of one that scrapes the gateway each second."""
    program = shutil.which("prometheus")
    if program is None:
        pytest.skip("Prometheus is not installed here: apt-get install prometheus")
    job = {
        "job_name": "dsserve",
        "scrape_interval": "1s",
        "authorization": {"credentials": served.admin_key},
        "static_configs": [{"targets": [served.url.removeprefix("http://")]}],
    }
    (tmp_path / "prometheus.yml").write_text(yaml.safe_dump({"scrape_configs": [job]}))
    at = f"127.0.0.1:{free_port()}"
    line = [program, f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/series"]
    process = subprocess.Popen(
        [*line, f"--web.listen-address={at}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    yield f"http://{at}"
    process.terminate()
    process.wait(10)


async def test_all_of_them_at_once(
    served: Gateway, collector: Collector, prometheus: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocking = [asyncio.to_thread(work, served) for work in (with_openai, with_triton, with_a_stub, with_langchain)]
    await asyncio.gather(with_openai_async(served), asyncio.to_thread(with_litellm, served, monkeypatch), *blocking)
    await until(lambda: collector.spans.get(TRACE_ID))
    async with httpx.AsyncClient(base_url=prometheus, trust_env=False) as asked:

        async def scraped() -> Any:
            try:
                return (await asked.get("/api/v1/query", params={"query": '{deployment="demo"}'})).json()["data"][
                    "result"
                ]
            except (httpx.HTTPError, KeyError):  # it starts
                return None

        await until(scraped)


async def test_the_readme_names_them_with_the_versions_that_are_tested() -> None:
    named = dict(re.findall(r"^- `([a-z-]+)` (\d+)\.", README, re.MULTILINE))
    assert named.keys() == {"openai", "langchain-openai", "litellm", "tritonclient", "grpcio", "opentelemetry-sdk"}
    for name, major in named.items():
        assert importlib.metadata.version(name).split(".")[0] == major, f"{name}: change the list in README"
