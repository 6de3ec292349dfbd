"""``/v1/score`` and ``/v1/rerank`` as vLLM has them: how well two texts go together, by a classifier with one label."""

from __future__ import annotations

import time
import uuid
from collections.abc import Sequence

from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.gateway import answers
from jupyter_dsserve.gateway.bodies import Priority
from jupyter_dsserve.gateway.describe import INFERENCE_ERRORS, describes
from jupyter_dsserve.gateway.generate import PRIORITY_HEADER, collect, start
from jupyter_dsserve.gateway.handlers import Handler, until_caller_leaves
from jupyter_dsserve.gateway.openai import OpenAIHandler
from jupyter_dsserve.gateway.text_bodies import RerankBody, ScoreBody
from jupyter_dsserve.gateway.texts import rows_of, usage_of
from jupyter_dsserve.protocol.errors import InvalidRequest, TooLarge
from jupyter_dsserve.protocol.request import Chunk, Request, Texts, text_size


class Score(OpenAIHandler):
    @describes(
        "How well texts go together, two by two.",
        {200: answers.Scores},
        body=ScoreBody,
        example={"model": "demo", "text_1": "a question", "text_2": ["a text", "another"]},
        headers={PRIORITY_HEADER: Priority},
        errors=INFERENCE_ERRORS,
    )
    @until_caller_leaves
    async def post(self) -> None:
        body = self.body(ScoreBody)
        chunks = await _asked(self, body)
        self.answer(
            {
                "id": f"score-{uuid.uuid4().hex}",
                "object": "list",
                "created": int(time.time()),
                "model": body.model,
                "data": [
                    {"index": index, "object": "score", "score": score} for index, score in enumerate(_scores(chunks))
                ],
                "usage": usage_of(chunks),
            }
        )


class Rerank(OpenAIHandler):
    @describes(
        "Documents by how well they go with a query, the best first.",
        {200: answers.Reranked},
        body=RerankBody,
        example={"model": "demo", "query": "a question", "documents": ["a text", "another"]},
        headers={PRIORITY_HEADER: Priority},
        errors=INFERENCE_ERRORS,
    )
    @until_caller_leaves
    async def post(self) -> None:
        body = self.body(RerankBody)
        chunks = await _asked(self, body)
        scores = _scores(chunks)
        best = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n or None]
        self.answer(
            {
                "id": f"rerank-{uuid.uuid4().hex}",
                "model": body.model,
                "usage": usage_of(chunks),
                "results": [
                    {"index": index, "relevance_score": scores[index]}
                    | ({"document": {"text": body.documents[index]}} if body.return_documents else {})
                    for index in best
                ],
            }
        )


async def _asked(handler: OpenAIHandler, body: ScoreBody | RerankBody) -> list[Chunk]:
    requests = body.requests()
    _check_size(requests, handler.context.max_body_bytes)
    answering = await start(handler, body.model, requests, body.user, "classify", _check_labels)
    return await collect(answering.chunks)


def _check_size(requests: Sequence[Request], limit: int) -> None:
    """Raises `TooLarge`. A text that goes with many others is read with each of them anew: a short body may ask for no
    more work than the longest one could that has all pairs in full."""
    num_chars = sum(text_size(text) for r in requests if isinstance(r.prompt, Texts) for text in r.prompt.texts)
    if num_chars > limit:
        raise TooLarge(
            f"the pairs have {num_chars} characters together, over the limit of {limit}: the text that goes with every "
            "other is counted with each of them: send it shorter, or fewer of the others at once"
        )


def _check_labels(version: Version) -> None:
    """Raises `InvalidRequest` for a version that is known to have several labels."""
    _check_num(len(version.info.labels) or 1)


def _check_num(num_labels: int) -> None:
    if num_labels != 1:
        raise InvalidRequest(
            f"this model has {num_labels} labels, and a score is that of the only one: ask it at /v1/classify, or load "
            "a reranker",
            param="model",
        )


def _scores(chunks: list[Chunk]) -> list[float]:
    rows = rows_of(chunks)
    _check_num(rows.shape[1])
    scores: list[float] = rows[:, 0].tolist()
    return scores


ROUTES: list[tuple[str, type[Handler]]] = [(r"/v1/score", Score), (r"/v1/rerank", Rerank)]
