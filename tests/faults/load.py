"""Load whose every request is accounted for: answered once and in full, or told why not."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.engine.test_loop import toy_text
from tests.support import Caller, until

# What a caller may be told instead of an answer, each with a message that names what happened.
TOLD = (429, 500, 503, 504)


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of one request: ``kind`` is ``answered``, ``told`` (``why`` has status and message), or ``cut``: the
    connection broke. ``seconds`` from asking to the end."""

    kind: str
    why: str
    version: str
    seconds: float


@dataclass(slots=True)
class Load:
    """``num_clients`` ask in turn until `stop`; every second request streams. Each prompt is asked once."""

    caller: Caller
    model: str = "demo"
    max_tokens: int = 12
    fates: list[Fate] = field(default_factory=list)
    num_asked: int = 0
    _is_over: bool = False

    @property
    def counts(self) -> Counter[str]:
        return Counter(fate.kind for fate in self.fates)

    def told(self) -> Counter[str]:
        """Why requests were not answered, and how often."""
        return Counter(fate.why for fate in self.fates if fate.kind == "told")

    def check(self) -> None:
        """Every request has exactly one fate, and none is a wrong or half answer (those raise where they are seen)."""
        assert len(self.fates) == self.num_asked
        assert self.counts["answered"] > 0

    @asynccontextmanager
    async def running(self, num_clients: int) -> AsyncIterator[Load]:
        """The load goes on inside the block; afterwards what was asked has ended."""
        clients = [asyncio.create_task(self._client()) for _ in range(num_clients)]
        try:
            yield self
        finally:
            self._is_over = True
            await asyncio.gather(*clients)

    async def answered(self, num_more: int, timeout_s: float = 30) -> None:
        """Wait until so many more were answered."""
        wanted = self.counts["answered"] + num_more
        await until(lambda: self.counts["answered"] >= wanted, timeout_s=timeout_s)

    async def _client(self) -> None:
        while not self._is_over:
            number, self.num_asked = self.num_asked, self.num_asked + 1
            begun = asyncio.get_running_loop().time()
            kind, why, version = await self._ask(f"request {number}", is_streamed=number % 2 == 1)
            self.fates.append(Fate(kind, why, version, asyncio.get_running_loop().time() - begun))
            if kind != "answered":
                await asyncio.sleep(0.05)  # a caller who was turned away does not hammer

    async def _ask(self, prompt: str, *, is_streamed: bool) -> tuple[str, str, str]:
        body = {"model": self.model, "prompt": prompt, "max_tokens": self.max_tokens, "stream": is_streamed}
        whole = toy_text(prompt, self.max_tokens)
        try:
            answer = await self.caller.post("/v1/completions", json=body)
        except httpx.TransportError as fault:
            return "cut", type(fault).__name__, ""
        version = answer.headers.get("X-DSServe-Version", "")
        if answer.status_code != 200:
            message = answer.json()["error"]["message"]
            assert answer.status_code in TOLD, (answer.status_code, message)
            assert message, "told nothing"
            return "told", f"{answer.status_code} {message}", version
        if not is_streamed:
            assert answer.json()["choices"][0]["text"] == whole
            return "answered", "", version
        return *_streamed(answer.text.splitlines(), whole), version


def _streamed(lines: Iterable[str], whole: str) -> tuple[str, str]:
    """The fate of a stream: all of its text once, or a beginning of it and then an error. Raises if it is neither."""
    data = [line.removeprefix("data: ") for line in lines if line.startswith("data: ")]
    assert data[-1] == "[DONE]", "the stream ended without its end"
    events: list[dict[str, Any]] = [json.loads(each) for each in data[:-1]]
    text = "".join(e["choices"][0]["text"] for e in events if e.get("choices"))
    errors = [e["error"]["message"] for e in events if "error" in e]
    if not errors:
        assert text == whole
        return "answered", ""
    assert len(errors) == 1
    assert whole.startswith(text), "what was answered is no beginning of the answer"
    return "told", f"mid-stream {errors[0]}"
