"""Between OpenAI's JSON and `Answer`: what is asked, the whole answer, and one that comes in pieces."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx
import numpy as np
from numpy.typing import ArrayLike, NDArray

from jupyter_dsserve.notebook.views import Answer, Classified
from jupyter_dsserve.protocol.errors import EngineFailure, InvalidRequest, Unavailable
from jupyter_dsserve.protocol.tensors import DATATYPES, datatype_of

Texts = str | Sequence[str] | Sequence[Sequence[int]]
Prompt = str | Sequence[int] | Sequence[Mapping[str, str]]


def asked(model: str, prompt: Prompt, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Path and body of the request for ``prompt``. Options that are None are left out.

    Raises `InvalidRequest` for several choices: there would be no place for them.
    """
    if options.get("n", 1) != 1:
        raise InvalidRequest(f"n is {options['n']}, and an answer here has one text: ask again, or use OpenAI's client")
    given = {key: value for key, value in options.items() if value is not None}
    if not isinstance(prompt, str) and prompt and isinstance(prompt[0], Mapping):
        messages = [dict(m) for m in prompt if isinstance(m, Mapping)]
        return "/v1/chat/completions", {"model": model, "messages": messages, **given}
    return "/v1/completions", {"model": model, "prompt": prompt if isinstance(prompt, str) else list(prompt), **given}


def answer_of(response: httpx.Response, model: str) -> Answer:
    """The answer that came in one piece."""
    raw = response.json()
    choice = raw["choices"][0]
    return Answer(
        text=choice["message"]["content"] if "message" in choice else choice["text"],
        model=model,
        version=response.headers.get("X-DSServe-Version", ""),
        finish_reason=choice["finish_reason"],
        prompt_tokens=raw["usage"]["prompt_tokens"],
        completion_tokens=raw["usage"]["completion_tokens"],
        latency_s=response.elapsed.total_seconds(),
        request_id=response.headers.get("X-Request-Id", ""),
    )


def vectors_of(response: httpx.Response, is_one: bool) -> NDArray[np.float32]:
    """The embeddings that came as base64: a matrix, or with ``is_one`` its only row."""
    rows = [np.frombuffer(base64.b64decode(item["embedding"]), "<f4") for item in response.json()["data"]]
    return rows[0] if is_one else np.stack(rows)


def classes_of(response: httpx.Response) -> list[Classified]:
    raw = response.json()
    return [Classified(item["label"], dict(zip(raw["labels"], item["probs"], strict=True))) for item in raw["data"]]


def tensor_asked(name: str, value: ArrayLike, datatype: str | None) -> dict[str, Any]:
    """An input as the Open Inference Protocol's JSON has it. Raises `InvalidRequest` if it is no array of numbers."""
    try:
        array = np.asarray(value, DATATYPES[datatype] if datatype else None)
    except (ValueError, TypeError, OverflowError) as fault:
        raise InvalidRequest(f"input {name!r} is no array of {datatype or 'numbers'}: {fault}", param=name) from None
    own = datatype_of(array.dtype, name)
    return {"name": name, "shape": list(array.shape), "datatype": own, "data": array.ravel().tolist()}


def outputs_of(response: httpx.Response) -> dict[str, NDArray[Any]]:
    return {
        each["name"]: np.array(each["data"], DATATYPES[each["datatype"]]).reshape(each["shape"])
        for each in response.json()["outputs"]
    }


class Pieces:
    """Reads the lines of a streamed answer that came with ``headers``. Time is an argument: monotonic seconds."""

    def __init__(self, model: str, headers: Mapping[str, str], started: float) -> None:
        self._model, self._headers = model, headers
        self._started, self._last = started, started
        self._first: float | None = None
        self._texts: list[str] = []
        self._end = ""
        self._usage: Mapping[str, int] = {}

    def feed(self, line: str, now: float) -> str:
        """The text in one line, often none. Raises the error that ended the answer."""
        if not line.startswith("data: ") or line == "data: [DONE]":
            return ""
        raw = json.loads(line.removeprefix("data: "))
        if "error" in raw:
            raise EngineFailure(f"after {len(self.text)} characters: {raw['error']['message']}")
        self._usage = raw.get("usage") or self._usage
        text = ""
        for choice in raw["choices"]:
            text += (choice["delta"].get("content") or "") if "delta" in choice else choice["text"]
            self._end = choice["finish_reason"] or self._end
        if text:
            self._first = self._first or now
            self._texts.append(text)
        self._last = now
        return text

    @property
    def text(self) -> str:
        return "".join(self._texts)

    def broken_off(self, fault: Exception | None = None) -> Unavailable:
        """What to say when the end did not come."""
        why = str(fault) or type(fault).__name__ if fault else "the gateway ended"
        return Unavailable(f"the answer broke off after {len(self.text)} characters ({why}): ask again")

    def answer(self) -> Answer:
        """The whole of what came. Raises `Unavailable` if the end did not come."""
        if not self._end:
            raise self.broken_off()
        return Answer(
            text=self.text,
            model=self._model,
            version=self._headers.get("X-DSServe-Version", ""),
            finish_reason=self._end,
            prompt_tokens=self._usage.get("prompt_tokens", 0),
            completion_tokens=self._usage.get("completion_tokens", 0),
            latency_s=self._last - self._started,
            first_token_s=None if self._first is None else self._first - self._started,
            request_id=self._headers.get("X-Request-Id", ""),
        )
