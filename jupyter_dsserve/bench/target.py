"""A server that speaks OpenAI's API, asked over HTTP."""

from __future__ import annotations

import asyncio
import json
import random
import time
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from yarl import URL

from jupyter_dsserve.bench.outcome import Json, Outcome, Reading, message_in
from jupyter_dsserve.bench.workload import Scale, Task, text_of
from jupyter_dsserve.protocol.errors import DSServeError, InvalidRequest, Unavailable, error_with, no_answer

_CONNECT_S = 10.0
# A prompt of so many words: enough to weigh a word, and far below any context.
_FEW, _MANY = 16, 80
_LOOPBACK = ("127.0.0.1", "localhost", "::1")


@dataclass(frozen=True, slots=True)
class Target:
    """Where, who asks, and what is asked for. ``url`` ends in /v1. ``model`` empty is the only one there is."""

    url: str
    key: str = field(default="", repr=False)
    model: str = ""

    @staticmethod
    def at(url: str, key: str = "", model: str = "") -> Target:
        """Raises `InvalidRequest` for what can be no URL. /v1 may be left out."""
        parsed = urlsplit(url)
        if parsed.scheme not in ("http", "https") or not parsed.hostname:
            raise InvalidRequest(f"URL {url!r}: give one such as http://127.0.0.1:8899/v1")
        base = url.rstrip("/")
        return Target(base if base.endswith("/v1") else f"{base}/v1", key.strip(), model)


@dataclass(frozen=True, slots=True)
class Found:
    """What was learnt of the server before it is pressed. ``is_ours``: it says so itself."""

    model: str
    scale: Scale
    is_ours: bool


class Server:
    """Connections to a `Target`, as many as there are requests. Made within the running loop; ``async with``."""

    def __init__(self, target: Target) -> None:
        is_near = urlsplit(target.url).hostname in _LOOPBACK
        self._target = target
        self._is_ours = False
        self._session = aiohttp.ClientSession(
            # On this machine a server may have made its own certificate, and no proxy stands in between.
            connector=aiohttp.TCPConnector(limit=0, ssl=not is_near),
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=_CONNECT_S),
            headers={"Authorization": f"Bearer {target.key}"} if target.key else {},
            trust_env=not is_near,
        )

    async def __aenter__(self) -> Server:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._session.close()

    async def look(self, chat: bool, limit_s: float) -> Found:
        """Ask twice for one token, to see that it answers and what a word weighs. Raises `DSServeError` if not."""
        try:
            return await asyncio.wait_for(self._look(chat), limit_s)
        except asyncio.TimeoutError:
            raise Unavailable(
                f"{self._target.url} did not answer with one token within {limit_s:g} s (drain_s): if it is only slow "
                "to start, ask it something first"
            ) from None

    async def _look(self, chat: bool) -> Found:
        model = self._target.model or await self._only_model()
        weighed: list[tuple[int, int]] = []
        for words in (_FEW, _MANY):
            task = Task(text_of(words, random.Random(words)), 1)
            body = request_body(model, task, chat=chat, ignore_eos=False)
            outcome = await self.ask(body, chat, time.monotonic(), Reading())
            if outcome.error:
                raise _fault(self._target.url, outcome)
            if outcome.prompt_tokens:
                weighed.append((words, outcome.prompt_tokens))
        scale = Scale.measured(*weighed) if len(weighed) == 2 else Scale()
        return Found(model, scale, self._is_ours)

    async def _only_model(self) -> str:
        """Of those it lists. Raises `InvalidRequest` if there is not just one."""
        try:
            async with self._session.get(self._at("models")) as response:
                raw = await response.read()
                if response.status != 200:
                    raise error_with(response.status, f"{self._target.url}/models: {_said(raw)}")
                names = [str(model["id"]) for model in json.loads(raw)["data"]]
        except (aiohttp.ClientError, OSError) as fault:
            raise no_answer(self._target.url, _words(fault)) from None
        except (ValueError, KeyError, TypeError):
            raise Unavailable(
                f"what answers at {self._target.url} does not speak OpenAI's API: give the URL of a server that does"
            ) from None
        if len(names) != 1:
            raise InvalidRequest(f"name the model: {self._target.url} has {', '.join(names) or 'none yet'}")
        return names[0]

    async def ask(self, body: Json, chat: bool, asked_s: float, reading: Reading) -> Outcome:
        """One request to its end, whatever the end; what came is in ``reading``, also if it is cancelled."""
        try:
            return await self._ask(body, chat, asked_s, reading)
        except (asyncio.TimeoutError, aiohttp.ServerTimeoutError) as fault:
            return reading.outcome(asked_s, time.monotonic(), "timeout", _words(fault))
        except (aiohttp.ClientConnectorError, aiohttp.InvalidURL) as fault:
            return reading.outcome(asked_s, time.monotonic(), "no connection", _words(fault))
        except (aiohttp.ClientError, OSError) as fault:
            return reading.outcome(asked_s, time.monotonic(), "broken off", _words(fault))
        except (ValueError, AttributeError, TypeError) as fault:
            return reading.outcome(asked_s, time.monotonic(), "not understood", _words(fault))

    async def _ask(self, body: Json, chat: bool, asked_s: float, reading: Reading) -> Outcome:
        path = "chat/completions" if chat else "completions"
        async with self._session.post(self._at(path), json=body, allow_redirects=False) as response:
            self._is_ours = "X-DSServe-Version" in response.headers
            if response.status != 200:
                said = _said(await response.read())
                return reading.outcome(asked_s, time.monotonic(), f"HTTP {response.status}", said)
            async for line in response.content:
                reading.feed(line, time.monotonic())
        return reading.outcome(asked_s, time.monotonic())

    def _at(self, path: str) -> URL:
        """As it was given: a JupyterHub's ``/user/a%40b/`` is another place than ``/user/a@b/``."""
        return URL(f"{self._target.url}/{path}", encoded=True)


def request_body(model: str, task: Task, *, chat: bool, ignore_eos: bool) -> Json:
    """A streamed request for ``task``. What not every server knows is only in it if it is asked for."""
    prompt: Json = {"messages": [{"role": "user", "content": task.prompt}]} if chat else {"prompt": task.prompt}
    extra = {"ignore_eos": True} if ignore_eos else {}
    stream = {"stream": True, "stream_options": {"include_usage": True}}
    return {"model": model, **prompt, "max_tokens": task.max_tokens, "temperature": 0, **stream, **extra}


def _fault(url: str, outcome: Outcome) -> DSServeError:
    kind, _, status = outcome.error.partition("HTTP ")
    if not kind:
        return error_with(int(status), f"{url} answers HTTP {status}: {outcome.detail}")
    if outcome.error == "no connection":
        return no_answer(url, outcome.detail)
    return Unavailable(f"{url} cannot be measured ({outcome.error}): {outcome.detail}")


def _said(raw: bytes) -> str:
    try:
        return message_in(json.loads(raw))
    except ValueError:
        return raw[:200].decode(errors="replace")


def _words(fault: Any) -> str:
    if isinstance(fault, aiohttp.ClientConnectorError):
        fault = fault.os_error  # without what aiohttp says of TLS
    return str(fault) or type(fault).__name__
