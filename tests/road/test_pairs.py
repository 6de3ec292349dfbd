"""Pairs of texts through the whole road, with a tiny reranker of random weights: each face gives the model's score."""

from __future__ import annotations

from pathlib import Path

import pytest
from sentence_transformers import CrossEncoder

from jupyter_dsserve import AsyncClient
from jupyter_dsserve.gateway.server import Gateway
from tests.engine.tiny_encoders import save_pair_classifier
from tests.support import Caller

QUERY = "where did the cat sit"
DOCUMENTS = ["on the mat", "a dog barked", "nobody knows", ""]


async def test_every_face_takes_pairs_and_gives_the_score_of_the_model(
    gateway: Gateway, caller: Caller, tmp_path: Path
) -> None:
    pairs = [(QUERY, document) for document in DOCUMENTS]
    model = save_pair_classifier(tmp_path, num_labels=1)
    await caller.load("rank", "v1", str(model), task="classify", num_threads=1)
    expected = CrossEncoder(str(model), device="cpu", max_length=64).predict(pairs).tolist()

    ours = AsyncClient(gateway.url, gateway.admin_key)
    try:
        classes = await ours.classify("rank", pairs)
    finally:
        await ours.aclose()
    assert [found.scores["LABEL_0"] for found in classes] == pytest.approx(expected, abs=1e-5)

    body: dict[str, object] = {"model": "rank", "text_1": QUERY, "text_2": DOCUMENTS}
    scored = (await caller.post("/v1/score", json=body)).json()
    assert [found["score"] for found in scored["data"]] == pytest.approx(expected, abs=1e-5)
    assert scored["usage"]["prompt_tokens"] == sum(3 + len(a) + len(b) for a, b in pairs)
    several = {"model": "rank", "text_1": ["a", "b"], "text_2": ["c", "d"]}
    assert len((await caller.post("/v1/score", json=several)).json()["data"]) == 2

    best = sorted(range(len(DOCUMENTS)), key=lambda index: -expected[index])
    body = {"model": "rank", "query": QUERY, "documents": DOCUMENTS, "top_n": 3}
    ranked = (await caller.post("/v1/rerank", json=body)).json()["results"]
    assert [found["index"] for found in ranked] == best[:3]
    assert [found["document"]["text"] for found in ranked] == [DOCUMENTS[index] for index in best[:3]]
    assert [found["relevance_score"] for found in ranked] == pytest.approx([expected[i] for i in best[:3]], abs=1e-5)
    bare = (await caller.post("/v1/rerank", json=body | {"top_n": 0, "return_documents": False})).json()["results"]
    assert [sorted(found) for found in bare] == [["index", "relevance_score"]] * 4

    tensors = [
        {"name": "text_input", "shape": [4], "datatype": "BYTES", "data": [QUERY] * 4},
        {"name": "text_pair", "shape": [4], "datatype": "BYTES", "data": DOCUMENTS},
    ]
    probs, _label = (await caller.post("/v2/models/rank/infer", json={"inputs": tensors})).json()["outputs"]
    assert probs["data"] == pytest.approx(expected, abs=1e-5)
    told = (await caller.get("/v2/models/rank/config")).json()["input"]
    assert [(each["name"], each.get("optional", False)) for each in told] == [
        ("text_input", False),
        ("text_pair", True),
    ]

    for path, wrong, param in (
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, "text_1"),
        ("/v1/score", {"text_1": "a", "text_2": []}, "text_2"),
        ("/v1/rerank", {"query": "a", "documents": "b"}, "documents"),
        ("/v1/rerank", {"query": "a", "documents": ["b"], "top_n": -1}, "top_n"),
        ("/v1/classify", {"input": [["a", "b", "c"]]}, "input"),
        ("/v1/classify", {"input": [["a"], "b"]}, "input"),
    ):
        refused = await caller.post(path, json={"model": "rank", **wrong})
        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["param"].partition(".")[0] == param, refused.text


async def test_a_short_body_that_asks_for_much_is_refused(caller: Caller) -> None:
    """Limit of bodies here: 100 000 bytes."""
    text, others = "q" * 1000, ["d"] * 100
    for path, body in (
        ("/v1/rerank", {"model": "rank", "query": text, "documents": others}),
        ("/v1/score", {"model": "rank", "text_1": [text], "text_2": others}),
    ):
        answer = await caller.post(path, json=body)
        assert answer.status_code == 413
        message = answer.json()["error"]["message"]
        assert "the pairs have 100100 characters together, over the limit of 100000" in message
        few = {name: given[:90] if given is others else given for name, given in body.items()}
        assert (await caller.post(path, json=few)).status_code == 404  # there is no such model
