"""``/v1/embeddings`` as OpenAI's clients expect it, and ``/v1/classify``: texts in, numbers out."""

from __future__ import annotations

import base64
import time
import uuid
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jupyter_dsserve.gateway import answers
from jupyter_dsserve.gateway.bodies import Priority
from jupyter_dsserve.gateway.describe import INFERENCE_ERRORS, describes
from jupyter_dsserve.gateway.generate import PRIORITY_HEADER, collect, start
from jupyter_dsserve.gateway.handlers import Handler, until_caller_leaves
from jupyter_dsserve.gateway.openai import OpenAIHandler
from jupyter_dsserve.gateway.text_bodies import ClassifyBody, EmbeddingsBody
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Chunk

Rows = NDArray[np.float32]


class Embeddings(OpenAIHandler):
    @describes(
        "Vectors of texts.",
        {200: answers.Embeddings},
        body=EmbeddingsBody,
        example={"model": "demo", "input": ["a text", "another"]},
        headers={PRIORITY_HEADER: Priority},
        errors=INFERENCE_ERRORS,
    )
    @until_caller_leaves
    async def post(self) -> None:
        body = self.body(EmbeddingsBody)
        answering = await start(self, body.model, body.requests(), body.user, "embed")
        chunks = await collect(answering.chunks)
        rows = shortened(rows_of(chunks), body.dimensions)
        encoded = map(_base64, rows) if body.encoding_format == "base64" else rows.tolist()
        data = [{"object": "embedding", "index": index, "embedding": row} for index, row in enumerate(encoded)]
        self.answer({"object": "list", "data": data, "model": body.model, "usage": usage_of(chunks)})


class Classify(OpenAIHandler):
    @describes(
        "Labels of texts or of pairs of texts, with the scores of all classes.",
        {200: answers.Classes},
        body=ClassifyBody,
        example={"model": "demo", "input": "a text"},
        headers={PRIORITY_HEADER: Priority},
        errors=INFERENCE_ERRORS,
    )
    @until_caller_leaves
    async def post(self) -> None:
        body = self.body(ClassifyBody)
        answering = await start(self, body.model, body.requests(), body.user, "classify")
        assert answering.version  # only text that is generated can be the policy's own
        labels = answering.version.info.labels
        chunks = await collect(answering.chunks)
        data = [
            {"index": index, "label": labels[int(row.argmax())], "probs": row.tolist(), "num_classes": len(row)}
            for index, row in enumerate(rows_of(chunks))
        ]
        self.answer(
            {
                "id": f"classify-{uuid.uuid4().hex}",
                "object": "list",
                "created": int(time.time()),
                "model": body.model,
                "data": data,
                "labels": labels,
                "usage": usage_of(chunks),
            }
        )


def shortened(rows: Rows, size: int | None) -> Rows:
    """The first ``size`` numbers of each row, scaled to length 1. Raises `InvalidRequest` if there are fewer."""
    if size is None:
        return rows
    if size > rows.shape[1]:
        raise InvalidRequest(
            f"dimensions is {size}, but this model's vectors have {rows.shape[1]}: ask for at most that",
            param="dimensions",
        )
    kept = rows[:, :size]
    lengths = np.linalg.norm(kept, axis=1, keepdims=True)
    return kept / np.maximum(lengths, np.finfo(np.float32).tiny)


def rows_of(chunks: Sequence[Chunk]) -> Rows:
    return np.concatenate([np.asarray(chunk.tensors[0].array(), np.float32) for chunk in chunks])


def _base64(row: Rows) -> str:
    return base64.b64encode(row.astype("<f4", copy=False).tobytes()).decode()


def usage_of(chunks: Sequence[Chunk]) -> dict[str, Any]:
    num_tokens = sum(chunk.usage.prompt_tokens for chunk in chunks if chunk.usage)
    return {"prompt_tokens": num_tokens, "total_tokens": num_tokens}


ROUTES: list[tuple[str, type[Handler]]] = [(r"/v1/embeddings", Embeddings), (r"/v1/classify", Classify)]
