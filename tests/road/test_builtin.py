"""The built-in models under DeepSpeed, through the whole road."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import httpx
import jsonschema
import pytest
import pytest_asyncio
from openai import AsyncOpenAI, BadRequestError

from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.protocol.config import GatewayConfig
from tests.support import Caller, until


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def served(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Gateway]:
    """demo@v1 and demo@v2, both READY: loaded once for all tests here."""
    gateway = Gateway(GatewayConfig(tmp_path_factory.mktemp("data"), port=0, drain_s=20))
    await gateway.start()
    async with Caller(gateway.url, gateway.admin_key) as caller:
        for version in ("v1", "v2"):
            model = f"builtin:demo-{version}"
            await caller.load("demo", version, model, wait=False, num_threads=1, dtype="fp32")
        for version in ("v1", "v2"):
            loaded = await caller.settled("demo", version, timeout_s=150)
            assert loaded["state"] == "READY", loaded["reason"]
        await caller.put("/api/deployments/demo/route", json={"weights": {"v1": 100}})
    yield gateway
    await gateway.stop()


@pytest_asyncio.fixture(loop_scope="module")
async def client(served: Gateway) -> AsyncIterator[AsyncOpenAI]:
    async with AsyncOpenAI(base_url=f"{served.url}/v1", api_key=served.admin_key, max_retries=0) as client:
        yield client


@pytest.mark.asyncio(loop_scope="module")
async def test_a_prompt_that_was_computed_before_is_not_computed_again(served: Gateway, client: AsyncOpenAI) -> None:
    """Asked twice: the same answer, and the usage and the stats say what came from the cache."""
    version = served.fleet.deployment("demo").versions["v1"]
    assert "KV cache for 64 sequences" in version.info.note
    prompt = "import collections\n\n\nclass Counter:\n    def __init__(self, words):\n" * 3
    first, second = [
        await client.completions.create(model="demo@v1", prompt=prompt, max_tokens=8, temperature=0) for _ in range(2)
    ]
    assert first.choices[0].text == second.choices[0].text
    assert second.usage is not None
    assert second.usage.prompt_tokens_details is not None
    assert second.usage.prompt_tokens_details.cached_tokens == second.usage.prompt_tokens - 1
    await until(lambda: version.stats(100, 0.0, 0.0).prefix_hits > 0.1)


pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest.mark.parametrize("model", ["demo@v1", "demo@v2"])
async def test_a_completion_looks_like_python(client: AsyncOpenAI, model: str) -> None:
    answer = await client.completions.create(model=model, prompt="def fibonacci(n):\n", max_tokens=60, temperature=0)
    text = answer.choices[0].text
    assert any(word in text for word in ("return ", "if ", "for ", "self", '"""')), text
    assert "    " in text, text


async def test_it_chats_and_streams_the_same_words(client: AsyncOpenAI) -> None:
    ask = {
        "model": "demo@v2",
        "messages": [{"role": "user", "content": "What does os.path.join do?"}],
        "max_tokens": 40,
        "temperature": 0,
    }
    whole = await client.chat.completions.create(**ask)  # type: ignore[call-overload]
    stream = await client.chat.completions.create(**ask, stream=True)  # type: ignore[call-overload]
    text = "".join([c.choices[0].delta.content or "" async for c in stream])
    assert text == whole.choices[0].message.content
    assert len(text.split()) > 3


async def test_a_seed_gives_the_same_answer_in_whatever_company(client: AsyncOpenAI) -> None:
    async def ask(prompt: str, seed: int) -> str:
        answer = await client.completions.create(
            model="demo@v1", prompt=prompt, max_tokens=24, temperature=0.8, top_p=0.9, seed=seed
        )
        return answer.choices[0].text

    alone = await ask("import os\n", 5)
    among = await asyncio.gather(ask("import os\n", 5), *(ask(f"class A{i}:", i) for i in range(7)))
    assert among[0] == alone
    assert await ask("import os\n", 6) != alone


async def test_penalties_bias_and_lengths_reach_the_model(client: AsyncOpenAI) -> None:
    """Each by an effect that nothing else has, greedily."""
    fixed: dict[str, Any] = {"model": "demo@v1", "prompt": "def f(x):\n", "temperature": 0}

    async def ask(**options: Any) -> Any:
        answer = await client.completions.create(**{**fixed, "max_tokens": 40, **options})
        return answer.choices[0]

    plain = (await ask()).text
    biased = await ask(logit_bias={"300": 100}, max_tokens=4)
    assert biased.text == biased.text[: len(biased.text) // 4] * 4, "one token, four times"
    words = [len(set(text.split())) / len(text.split()) for text in (plain, (await ask(frequency_penalty=2)).text)]
    assert words[1] > words[0], "nothing is repeated less"
    assert (await ask(presence_penalty=2)).text != plain
    assert (await ask(extra_body={"repetition_penalty": 2.0})).text != plain
    assert (await ask(extra_body={"min_p": 1.0}, temperature=1.0)).text == plain, "only the likeliest is left"
    stopped = await ask(extra_body={"stop_token_ids": list(range(1, 64))})
    assert stopped.finish_reason == "stop"
    assert len(stopped.text) < len(plain)
    at_least = await client.completions.create(
        **fixed, max_tokens=20, extra_body={"stop_token_ids": list(range(1, 64)), "min_tokens": 15}
    )
    assert at_least.usage.completion_tokens >= 15  # type: ignore[union-attr]


async def test_n_choices_have_seeds_of_their_own_and_each_is_what_its_seed_alone_gives(client: AsyncOpenAI) -> None:
    fixed: dict[str, Any] = {"model": "demo@v1", "prompt": "import os\n", "max_tokens": 20, "temperature": 0.9}
    several = await client.completions.create(**fixed, n=3, seed=5)
    alone = [(await client.completions.create(**fixed, seed=seed)).choices[0].text for seed in (5, 6, 7)]
    assert [c.text for c in several.choices] == alone
    assert len(set(alone)) == 3


async def test_answers_have_the_form_that_is_asked_for(client: AsyncOpenAI) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 10}, "ok": {"type": "boolean"}},
        "required": ["name", "ok"],
        "additionalProperties": False,
    }
    ask: dict[str, Any] = {
        "model": "demo@v2",
        "messages": [{"role": "user", "content": "What does os.path.join do?"}],
        "max_tokens": 60,
        "seed": 1,
        "n": 3,
        "response_format": {"type": "json_schema", "json_schema": {"name": "it", "schema": schema, "strict": True}},
    }
    whole = await client.chat.completions.create(**ask)
    for choice in whole.choices:
        jsonschema.validate(json.loads(choice.message.content or ""), schema)
        assert choice.finish_reason == "stop"
    texts = dict.fromkeys(range(3), "")
    async for chunk in await client.chat.completions.create(**ask, stream=True):
        texts[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert list(texts.values()) == [choice.message.content for choice in whole.choices]

    async def complete(**options: Any) -> str:
        answer = await client.completions.create(
            model="demo@v1", prompt="x = ", max_tokens=30, extra_body={"structured_outputs": options}
        )
        return answer.choices[0].text

    assert re.fullmatch(r"[A-F]\d{3}", await complete(regex=r"[A-F]\d{3}"))
    assert await complete(choice=["red", "green"]) in ("red", "green")
    assert await complete(grammar='start: "a" "b"') == "ab"
    assert json.loads(await complete(json={"enum": [[1, 2]]})) == [1, 2]
    with pytest.raises(BadRequestError, match="unclosed character class") as refused:
        await complete(regex="[a-z")
    assert refused.value.param == "structured_outputs"


async def test_a_prompt_longer_than_the_context_is_refused_with_both_lengths(served: Gateway) -> None:
    async with Caller(served.url, served.admin_key) as caller:
        answer = await caller.complete("demo@v1", prompt="def f(x):\n    return x\n" * 2000)
    assert answer.status_code == 400
    assert "1024" in answer.json()["error"]["message"]


async def test_200_requests_at_32_concurrency_survive_a_swap(served: Gateway) -> None:
    async with Caller(served.url, served.admin_key) as caller:
        limit = asyncio.Semaphore(32)
        answers: list[httpx.Response] = []

        async def ask(number: int) -> None:
            async with limit:
                prompt = f"def function_{number}(self):\n"
                answers.append(await caller.complete(prompt=prompt, max_tokens=16, ignore_eos=True, temperature=0))

        asking = asyncio.gather(*(ask(number) for number in range(200)))
        await until(lambda: len(answers) >= 60, timeout_s=100)
        swapped = await caller.post("/api/deployments/demo/activate", json={"version": "v2"})
        assert swapped.status_code == 200
        await asking
        assert Counter(a.status_code for a in answers) == {200: 200}
        assert Counter(a.json()["usage"]["completion_tokens"] for a in answers) == {16: 200}
        assert Counter(a.headers["X-DSServe-Version"] for a in answers).keys() == {"v1", "v2"}
        assert (await caller.settled("demo", "v1", "STOPPED"))["weight"] == 0
