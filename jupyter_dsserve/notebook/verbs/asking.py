"""Verbs that ask models."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike, NDArray

from jupyter_dsserve.notebook.answers import (
    Prompt,
    Texts,
    answer_of,
    asked,
    classes_of,
    outputs_of,
    tensor_asked,
    vectors_of,
)
from jupyter_dsserve.notebook.verbs.talk import Talk, Talking
from jupyter_dsserve.notebook.views import Answer, Classified, Models


class Asking(Talking):
    """What models answer."""

    def models(self) -> Talk[Models]:
        """The deployments that this key may ask, of those with a READY version."""
        found = yield from self.send("GET", "/v1/models", start=False)
        return Models(self.url, [each["id"] for each in found.json()["data"]])

    def generate(
        self,
        /,
        model: str,
        prompt: Prompt,
        *,
        max_tokens: int = 128,
        temperature: float | None = None,
        top_p: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        stop: str | Sequence[str] | None = None,
        user: str | None = None,
        **fields: Any,
    ) -> Talk[Answer]:
        """The whole answer of ``model``: a deployment (``demo``) or one version of it (``demo@v2``).

        ``prompt`` is a text, token ids, or a chat (``[{"role": "user", "content": "…"}]``). ``user`` keeps their
        version while the weights stand. ``fields`` are whatever else the route takes, such as
        ``structured_outputs={"regex": "[0-9]+"}``, ``min_p``, ``priority`` or ``timeout_s``. For several choices or
        logprobs use ``OpenAI(base_url=f"{client.url}/v1", …)``: an `Answer` holds one text.
        """
        options = {"max_tokens": max_tokens, "temperature": temperature, "top_p": top_p, "top_k": top_k}
        path, body = asked(model, prompt, options | {"seed": seed, "stop": stop, "user": user} | fields)
        response = yield from self.send("POST", path, body)
        return answer_of(response, model)

    def embed(
        self, model: str, texts: Texts, *, dimensions: int | None = None, user: str | None = None
    ) -> Talk[NDArray[np.float32]]:
        """The vector of a text, ``[size]``, or of each of several texts, ``[texts, size]``; token ids stand for a text
        too, as a list each.

        ``dimensions`` keeps the first numbers of each vector and scales it to length 1.
        """
        body: dict[str, Any] = {"model": model, "input": _texts(texts), "encoding_format": "base64"}
        given = {"dimensions": dimensions, "user": user}
        body |= {key: value for key, value in given.items() if value is not None}
        return vectors_of((yield from self.send("POST", "/v1/embeddings", body)), isinstance(texts, str))

    def classify(
        self, model: str, texts: Texts | Sequence[tuple[str, str]], *, user: str | None = None
    ) -> Talk[list[Classified]]:
        """The class of each text, or of each pair of texts (``[("premise", "hypothesis"), …]``), with the score of
        every label."""
        body = {"model": model, "input": _texts(texts)} | ({} if user is None else {"user": user})
        return classes_of((yield from self.send("POST", "/v1/classify", body)))

    def infer(self, model: str, inputs: Mapping[str, ArrayLike]) -> Talk[dict[str, NDArray[Any]]]:
        """The outputs of an exported program, by name. Inputs that are no arrays yet are taken as the numbers that the
        program says it wants."""
        path = f"/v2/models/{quote(model, safe='@')}"
        wanted = {} if all(isinstance(v, np.ndarray) for v in inputs.values()) else (yield from self._datatypes(path))
        body = {"inputs": [tensor_asked(name, value, wanted.get(name)) for name, value in inputs.items()]}
        return outputs_of((yield from self.send("POST", f"{path}/infer", body)))

    def _datatypes(self, path: str) -> Talk[dict[str, str]]:
        response = yield from self.send("GET", path)
        return {each["name"]: each["datatype"] for each in response.json()["inputs"]}


def _texts(texts: Texts | Sequence[tuple[str, str]]) -> str | list[Any]:
    return texts if isinstance(texts, str) else [t if isinstance(t, str) else list(t) for t in texts]
