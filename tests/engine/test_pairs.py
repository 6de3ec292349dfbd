"""Pairs of texts are read as transformers' and sentence-transformers' own classes read them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import CrossEncoder
from transformers import pipeline

from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Pair, Request, Texts
from tests.engine.tiny_encoders import answer, load, save_encoder, save_pair_classifier

PAIRS = (
    ("a cat sat", "an animal sat"),
    ("x", ""),
    ("short", "much longer than the first of the two, so that it is cut " * 3),
    ("both of them are long, " * 4, "and both are cut to the same length " * 4),
)


def named(name: str, folder: Path) -> Path:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"sentence_transformers": {"activation_fn": name}}))
    return folder


def test_a_classifier_says_of_pairs_and_of_texts_beside_them_what_the_pipeline_says(tmp_path: Path) -> None:
    labels = {0: "entailment", 1: "neutral", 2: "contradiction"}
    runner = load(save_pair_classifier(tmp_path, id2label=labels), "classify")
    theirs = pipeline("text-classification", str(tmp_path), device="cpu", top_k=None)
    pairs = [pair for pair in PAIRS if pair[1]]  # with an empty second text the pipeline takes the first one alone
    asked: list[Any] = [{"text": first, "text_pair": second} for first, second in pairs] + ["alone"]
    said = [{each["label"]: each["score"] for each in rows} for rows in theirs(asked, truncation=True, max_length=64)]
    found = answer(runner, *(Pair(*pair) for pair in pairs), "alone")
    assert np.abs(found - [[one[label] for label in labels.values()] for one in said]).max() < 1e-5
    swapped = answer(runner, *(Pair(second, first) for first, second in pairs))
    assert np.abs(found[0] - swapped[0]).max() > 1e-3  # which of the two is the first one counts


@pytest.mark.parametrize("activation", ["", "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Sigmoid"])
def test_a_reranker_scores_as_sentence_transformers_does(activation: str, tmp_path: Path) -> None:
    save_pair_classifier(tmp_path, num_labels=1)
    if activation:
        named(activation, tmp_path)
    theirs = CrossEncoder(str(tmp_path), device="cpu", max_length=64).predict(list(PAIRS))
    found = answer(load(tmp_path, "classify"), *(Pair(*pair) for pair in PAIRS))
    assert np.abs(found[:, 0] - theirs).max() < 1e-5


def test_a_score_that_is_made_in_another_way_is_refused(tmp_path: Path) -> None:
    named("torch.nn.modules.activation.Softplus", save_pair_classifier(tmp_path, num_labels=1))
    with pytest.raises(InvalidRequest, match="makes its score by Softplus"):
        load(tmp_path, "classify")


def test_a_model_without_token_types_reads_pairs_too(tmp_path: Path) -> None:
    settings = {"max_position_embeddings": 257 + 64, "type_vocab_size": 1}
    save_pair_classifier(tmp_path / "tokenizer")
    save_encoder("RobertaForSequenceClassification", tmp_path, **settings)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / name).write_bytes((tmp_path / "tokenizer" / name).read_bytes())
    assert answer(load(tmp_path, "classify"), Pair("a", "b")).shape == (1, 2)


def test_a_model_that_embeds_takes_no_pairs(tmp_path: Path) -> None:
    runner = load(save_encoder("BertModel", tmp_path))
    with pytest.raises(InvalidRequest, match="send pairs to one of the task classify"):
        runner.prepare(Request("a", Texts((Pair("a", "b"),))))
