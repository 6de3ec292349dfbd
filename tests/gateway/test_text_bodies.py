"""How much a body of pairs may ask for, and in which pieces it goes to the workers."""

from __future__ import annotations

from jupyter_dsserve.gateway.text_bodies import EmbeddingsBody, RerankBody
from jupyter_dsserve.protocol.request import Pair, Texts, text_size


def test_a_request_to_a_worker_has_few_texts_and_few_characters() -> None:
    query, documents = "q" * 20_000, [f"document {i}" for i in range(100)]
    requests = RerankBody(model="m", query=query, documents=documents).requests()
    parts = [r.prompt.texts for r in requests if isinstance(r.prompt, Texts)]
    assert [text for part in parts for text in part] == [Pair(query, document) for document in documents]
    assert {len(part) for part in parts[:-1]} == {13}  # of 20 011 characters and more, below 262 144
    long = EmbeddingsBody(model="m", input=["a", "b" * 300_000, "c", "d"]).requests()
    sizes = [list(map(text_size, r.prompt.texts)) for r in long if isinstance(r.prompt, Texts)]
    assert sizes == [[1], [300_000], [1, 1]]
    assert len(EmbeddingsBody(model="m", input=["a"] * 2048).requests()) == 64
