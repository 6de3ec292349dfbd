"""Vectors and classes are those of sentence-transformers and of transformers' own forward pass, alone or in a batch."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from deepspeed.inference.engine import InferenceEngine
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
from torch import nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from jupyter_dsserve.engine.encoder import EncoderRunner
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Request, Texts
from jupyter_dsserve.protocol.tensors import TensorInfo
from tests.engine.tiny_encoders import MINILM, TEXTS, answer, load, save_encoder


@pytest.fixture(scope="module")
def minilm() -> EncoderRunner:
    return load(MINILM)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder("BertModel", tmp_path_factory.mktemp("bert"))


def cosines(a: Any, b: Any) -> Any:
    return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)


class TestMiniLM:
    def test_its_vectors_are_those_of_sentence_transformers(self, minilm: EncoderRunner) -> None:
        theirs = SentenceTransformer(MINILM, device="cpu").encode(list(TEXTS), convert_to_numpy=True)
        ours = answer(minilm, *TEXTS)
        assert cosines(ours, theirs).min() > 0.9999
        assert np.abs(ours - theirs).max() < 1e-4  # the same length too

    def test_it_runs_under_deepspeed(self, minilm: EncoderRunner) -> None:
        assert isinstance(minilm._engine, InferenceEngine)
        minilm.check()

    def test_it_says_what_it_gives_and_how(self, minilm: EncoderRunner) -> None:
        assert minilm.info.outputs == (TensorInfo("embedding", "FP32", (-1, 384)),)
        assert minilm.info.note == "mean pooling, normalised, as the model's files say; at most 256 tokens a text"

    def test_texts_are_cut_to_the_length_its_files_name(self, minilm: EncoderRunner) -> None:
        work = minilm.prepare(Request("a", Texts((TEXTS[-1], "short"))))
        assert [item.length for item in work.items] == [256, 3]
        assert work.num_tokens == 259

    def test_token_ids_stand_for_a_text_and_too_many_are_refused(self, minilm: EncoderRunner) -> None:
        ids = tuple(AutoTokenizer.from_pretrained(MINILM)("a cat sat on the mat")["input_ids"])
        assert cosines(answer(minilm, ids), answer(minilm, "a cat sat on the mat")).min() > 0.9999
        for wrong, words in (((5,) * 257, "257 token ids"), ((30522,), "0 to 30521"), ((), "empty")):
            with pytest.raises(InvalidRequest, match=words):
                minilm.prepare(Request("a", Texts((wrong,))))

    def test_another_tasks_prompt_is_refused(self, minilm: EncoderRunner) -> None:
        with pytest.raises(InvalidRequest, match="embeds or classifies"):
            minilm.prepare(Request("a", "go on"))


class TestPooling:
    @pytest.mark.parametrize(
        "modes", ["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ("cls", "mean")]
    )
    def test_every_kind_is_sentence_transformers(self, modes: Any, bert: Path, tmp_path: Path) -> None:
        stages = [Transformer(str(bert), max_seq_length=24), Pooling(32, modes)]
        theirs = SentenceTransformer(modules=stages, device="cpu")
        theirs.save(str(tmp_path))
        texts = ["a", "bcd efg", "hij " * 5, "is cut " * 9]
        ours = answer(load(tmp_path), *texts)
        assert np.abs(ours - theirs.encode(texts)).max() < 1e-4

    @pytest.mark.parametrize("activation", [nn.Tanh(), nn.Identity(), nn.GELU()])
    def test_dense_layers_after_it_are_computed(self, activation: nn.Module, bert: Path, tmp_path: Path) -> None:
        stages = [Transformer(str(bert)), Pooling(32), Dense(32, 12, activation_function=activation), Normalize()]
        theirs = SentenceTransformer(modules=stages, device="cpu")
        theirs.save(str(tmp_path))
        runner = load(tmp_path)
        assert np.abs(answer(runner, "a", "bcd efg") - theirs.encode(["a", "bcd efg"])).max() < 1e-5
        assert runner.info.outputs == (TensorInfo("embedding", "FP32", (-1, 12)),)
        assert runner.info.note.startswith("mean pooling, a dense layer to 12, normalised, as the model's files say")

    def test_a_prompt_and_lower_case_are_honoured(self, bert: Path, tmp_path: Path) -> None:
        stages = [Transformer(str(bert), do_lower_case=True), Pooling(32), Normalize()]
        theirs = SentenceTransformer(
            modules=stages, device="cpu", prompts={"query": "Find: "}, default_prompt_name="query"
        )
        theirs.save(str(tmp_path))
        assert cosines(answer(load(tmp_path), "Abc"), theirs.encode(["Abc"])).min() > 0.9999
        assert cosines(answer(load(tmp_path), "Abc"), theirs.encode(["abd"])).max() < 0.9999

    def test_without_files_it_is_the_mean_and_says_so(self, bert: Path) -> None:
        runner = load(bert)
        hidden = runner._engine(input_ids=torch.tensor([[5, 6, 7]])).last_hidden_state[0]
        assert np.allclose(answer(runner, (5, 6, 7))[0], hidden.mean(dim=0).detach(), atol=1e-5)
        assert "mean pooling, not normalised: the model has no modules.json" in runner.info.note

    @pytest.mark.parametrize(
        ("kind", "settings", "words"),
        [
            ("models.CNN", {}, "has a CNN stage"),
            ("models.Dense", {}, "has a Dense stage after the transformer"),
            ("models.Pooling", {"pooling_mode": "median"}, r"median in 1_Next/config\.json"),
            ("models.Pooling", {}, "no mode in"),
        ],
    )
    def test_what_is_not_computed_is_refused_by_name(
        self, kind: str, settings: dict[str, Any], words: str, bert: Path, tmp_path: Path
    ) -> None:
        shutil.copytree(bert, tmp_path / "m")
        stages = [{"idx": 0, "path": "", "type": "models.Transformer"}, {"idx": 1, "path": "1_Next", "type": kind}]
        (tmp_path / "m/modules.json").write_text(json.dumps(stages))
        (tmp_path / "m/1_Next").mkdir()
        (tmp_path / "m/1_Next/config.json").write_text(json.dumps(settings))
        with pytest.raises(InvalidRequest, match=words):
            load(tmp_path / "m")


@pytest.mark.parametrize(
    ("class_name", "settings"),
    [
        ("BertModel", {}),
        ("RobertaModel", {"max_position_embeddings": 257 + 64}),
        ("MPNetModel", {"max_position_embeddings": 2 + 64}),  # whatever its padding token
        ("DistilBertModel", {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}),
        ("ElectraModel", {"embedding_size": 32}),
        ("ModernBertModel", {"eos_token_id": 1, "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 1}),
        ("Qwen3Model", {"num_key_value_heads": 2, "head_dim": 8}),
    ],
)
def test_a_neighbour_changes_no_answer(class_name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    runner = load(save_encoder(class_name, tmp_path, **settings))
    runner.check()
    texts = [tuple(range(3, 3 + length)) for length in (1, 7, 20, 64)]
    together = answer(runner, *texts)
    assert np.abs(together - np.concatenate([answer(runner, text) for text in texts])).max() < 1e-4
    with pytest.raises(InvalidRequest, match="65 token ids is longer than this model's 64"):
        runner.prepare(Request("a", Texts((tuple(range(65)),))))


class TestClassifier:
    LABELS = {0: "bad", 1: "fair", 2: "good"}

    @pytest.mark.parametrize(
        ("problem", "scores"),
        [
            (None, lambda logits: torch.softmax(logits, -1)),
            ("single_label_classification", lambda logits: torch.softmax(logits, -1)),
            ("multi_label_classification", torch.sigmoid),
            ("regression", lambda logits: logits),
        ],
    )
    def test_scores_follow_the_problem_type(self, problem: str | None, scores: Any, tmp_path: Path) -> None:
        save_encoder("BertForSequenceClassification", tmp_path, id2label=self.LABELS, problem_type=problem)
        runner = load(tmp_path, "classify")
        theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
        ids = [(5, 6, 7), (9, 8), tuple(range(40))]
        expected = torch.cat([scores(theirs(input_ids=torch.tensor([i])).logits) for i in ids])
        assert np.abs(answer(runner, *ids) - expected.detach().numpy()).max() < 1e-4
        assert runner.info.labels == ("bad", "fair", "good")
        assert runner.info.outputs == (TensorInfo("probs", "FP32", (-1, 3)),)

    def test_a_model_that_only_encodes_is_refused(self, bert: Path) -> None:
        with pytest.raises(InvalidRequest, match="is a BertModel, which classifies no texts"):
            load(bert, "classify")


class TestRefusals:
    def test_weights_that_are_missing(self, tmp_path: Path) -> None:
        save_encoder("BertModel", tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 3}))
        with pytest.raises(InvalidRequest, match=r"lacks \d+ weights, encoder\.layer\.2"):
            load(tmp_path)

    def test_but_not_those_of_a_pooler_that_nothing_uses(self, tmp_path: Path) -> None:
        load(save_encoder("BertForMaskedLM", tmp_path)).check()

    def test_an_encoder_with_a_decoder(self, tmp_path: Path) -> None:
        settings = {"decoder_start_token_id": 0, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1}
        heads = {"encoder_attention_heads": 4, "decoder_attention_heads": 4}
        save_encoder("BartModel", tmp_path, **settings, **heads)
        with pytest.raises(InvalidRequest, match="an encoder and a decoder"):
            load(tmp_path)

    def test_a_context_too_short_for_anything(self, bert: Path) -> None:
        with pytest.raises(InvalidRequest, match="max_context is 3: use 8"):
            load(bert, max_context=3)
