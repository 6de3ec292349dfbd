"""What is exported to ONNX answers as torch does, loads again, and is not written if it differs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer

from jupyter_dsserve.content import content_of
from jupyter_dsserve.engine import onnx_export, pooling
from jupyter_dsserve.engine.onnx import OnnxProgram
from jupyter_dsserve.engine.onnx_export import export
from jupyter_dsserve.fleet.need import TORCH_BYTES, need_of
from jupyter_dsserve.fleet.source import model_path
from jupyter_dsserve.protocol.errors import EngineFailure, InvalidRequest
from jupyter_dsserve.protocol.export import Exported, ExportSpec
from jupyter_dsserve.protocol.request import Pair, Request, Texts
from jupyter_dsserve.protocol.spec import WorkerSpec
from jupyter_dsserve.protocol.tensors import TensorInfo
from tests.engine import tiny_programs
from tests.engine.tiny_encoders import answer, load, save_encoder, save_pair_classifier
from tests.engine.tiny_programs import Scorer, save_exported, save_scorer, scorer

TEXTS = ["a", "Bcd efg", "hij " * 5, "is cut " * 9]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With everything that its files may say: a prompt, lower case, a length, a dense layer."""
    folder = tmp_path_factory.mktemp("encoder")
    bert = Transformer(str(save_encoder("BertModel", folder / "bert")), max_seq_length=24, do_lower_case=True)
    stages = [bert, Pooling(32, "mean"), Dense(32, 12), Normalize()]
    model = SentenceTransformer(modules=stages, device="cpu", prompts={"q": "Find: "}, default_prompt_name="q")
    model.save(str(folder / "model"))
    return folder / "model"


@pytest.fixture(scope="module")
def embedding(encoder: Path, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return export(ExportSpec(str(encoder), str(tmp_path_factory.mktemp("onnx") / "new/enc")))


class TestAnEncoder:
    def test_says_what_it_takes_and_how_far_it_is_off(self, embedding: Exported) -> None:
        assert (embedding.task, embedding.inputs, embedding.outputs) == (
            "embed",
            ("input_ids", "attention_mask"),
            ("embedding",),
        )
        assert 0 < embedding.difference < 1e-5
        assert 0 < embedding.share < 1e-4
        assert embedding.num_checks == 4
        assert embedding.num_bytes == Path(embedding.path).stat().st_size
        assert "task embed: input_ids, attention_mask → embedding" in repr(embedding)
        assert Exported.from_json(embedding.to_json()) == embedding

    def test_loads_again_and_gives_the_vectors_of_sentence_transformers(
        self, encoder: Path, embedding: Exported
    ) -> None:
        folder = Path(embedding.path).parent
        theirs = SentenceTransformer(str(encoder), device="cpu").encode(TEXTS)
        runner = load(folder)
        runner.check()
        assert np.abs(answer(runner, *TEXTS) - theirs).max() < 1e-5
        assert runner.info.outputs == (TensorInfo("embedding", "FP32", (-1, 12)),)
        assert "by onnxruntime on cpu; at most 24 tokens a text" in runner.info.note
        with pytest.raises(InvalidRequest, match="25 token ids is longer than this model's 24"):
            runner.prepare(Request("a", Texts((tuple(range(25)),))))

    def test_is_a_program_of_named_tensors_whose_rows_share_calls(self, embedding: Exported) -> None:
        folder = str(Path(embedding.path).parent)
        assert model_path(folder, "program", "tensor") == embedding.path
        program = tiny_programs.load(Path(embedding.path))
        assert program.is_batched
        assert [info.shape for info in program.info.inputs] == [(-1, -1), (-1, -1)]

    def test_the_gateway_knows_what_it_is_before_it_loads(self, embedding: Exported) -> None:
        folder = str(Path(embedding.path).parent)
        assert model_path(folder, "encoder", "embed") == folder
        need = need_of(WorkerSpec(folder, task="embed", runner="encoder"), folder, on_gpu=False)
        assert need.least_bytes == TORCH_BYTES + embedding.num_bytes
        before = content_of(folder)
        beside = Path(f"{embedding.path}.data")
        beside.write_bytes(b"more weights")
        assert content_of(folder) != before
        beside.unlink()

    def test_of_another_task_is_refused(self, embedding: Exported) -> None:
        folder = Path(embedding.path).parent
        with pytest.raises(InvalidRequest, match="is a BertModel, which classifies no texts"):
            load(folder, "classify")
        with pytest.raises(InvalidRequest, match="dtype is bf16"):
            load(folder, dtype="bf16")

    def test_an_onnx_file_of_anothers_making_is_no_encoder(self, embedding: Exported, tmp_path: Path) -> None:
        for file in Path(embedding.path).parent.glob("*.json"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
        tiny_programs.save_onnx(tmp_path / "model.onnx")
        with pytest.raises(InvalidRequest, match="not made for the task embed: make it with jupyter dsserve export"):
            load(tmp_path)

    def test_a_classifier_keeps_its_labels_and_scores_and_tells_pairs_apart(self, tmp_path: Path) -> None:
        model = save_pair_classifier(tmp_path / "m", id2label={0: "bad", 1: "fair", 2: "good"})
        done = export(ExportSpec(str(model), str(tmp_path / "onnx")))
        assert (done.task, done.outputs) == ("classify", ("probs",))
        assert set(done.inputs) == {"input_ids", "attention_mask", "token_type_ids"}
        ours, theirs = load(tmp_path / "onnx", "classify"), load(model, "classify")
        ours.check()
        assert ours.info.labels == ("bad", "fair", "good")
        asked = (Pair("a cat sat", "an animal sat"), "alone", (5, 6, 7, 8))
        found = answer(ours, *asked)
        assert np.abs(found - answer(theirs, *asked)).max() < 1e-5
        assert np.abs(found[0] - answer(ours, Pair("an animal sat", "a cat sat"))[0]).max() > 1e-3
        assert np.abs(answer(ours, "alone") - found[1]).max() < 1e-5  # in a batch without any pair

    @pytest.mark.long
    @pytest.mark.parametrize(
        ("class_name", "settings"),
        [
            ("RobertaModel", {"max_position_embeddings": 257 + 64}),
            ("MPNetModel", {"max_position_embeddings": 2 + 64}),
            ("ElectraModel", {"embedding_size": 32}),
            ("ModernBertModel", {"eos_token_id": 1, "bos_token_id": 2, "cls_token_id": 2, "sep_token_id": 1}),
            ("Qwen3Model", {"num_key_value_heads": 2, "head_dim": 8}),
        ],
    )
    def test_of_many_families_answers_alike(self, class_name: str, settings: dict[str, Any], tmp_path: Path) -> None:
        model = save_encoder(class_name, tmp_path / "m", **settings)
        export(ExportSpec(str(model), str(tmp_path / "onnx")))
        texts = [tuple(range(3, 3 + length)) for length in (1, 7, 20, 64)]
        assert np.abs(answer(load(tmp_path / "onnx"), *texts) - answer(load(model), *texts)).max() < 1e-4

    @pytest.mark.long
    @pytest.mark.parametrize(
        "mode", ["cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken", ("cls", "mean")]
    )
    def test_every_pooling_answers_alike(self, mode: Any, tmp_path: Path) -> None:
        bert = save_encoder("BertModel", tmp_path / "bert")
        stages = [Transformer(str(bert)), Pooling(32, mode)]
        SentenceTransformer(modules=stages, device="cpu").save(str(tmp_path / "m"))
        export(ExportSpec(str(tmp_path / "m"), str(tmp_path / "onnx")))
        assert np.abs(answer(load(tmp_path / "onnx"), *TEXTS) - answer(load(tmp_path / "m"), *TEXTS)).max() < 1e-4


class TestAProgram:
    def test_keeps_names_shapes_and_answers(self, tmp_path: Path) -> None:
        path = save_scorer(tmp_path / "scorer.pt2", most=4)
        done = export(ExportSpec(str(path), str(tmp_path / "onnx"), allow_code=True))
        assert (done.task, done.inputs, done.outputs) == ("tensor", ("x", "ids"), ("score", "label"))
        assert model_path(str(tmp_path / "onnx"), "program", "tensor") == done.path
        x, ids = torch.randn(3, 4), torch.tensor([1, 9, 0])
        with torch.no_grad():
            theirs = scorer()(x, ids)
        found = OnnxProgram(done.path, "cpu", 1)({"x": x.numpy(), "ids": ids.numpy()})
        assert np.abs(found["score"] - theirs["score"].numpy()).max() < 1e-6
        assert found["label"].tolist() == theirs["label"].tolist()

    def test_is_tried_with_sizes_that_it_allows(self, tmp_path: Path) -> None:
        class Table(torch.nn.Module):
            def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
                return x.sum(-1) + y

        axes = {"x": {0: torch.export.Dim("rows", min=3, max=4), 1: torch.export.Dim("columns", min=6)}, "y": {}}
        path = save_exported(Table(), tmp_path / "table.pt2", (torch.randn(4, 8), torch.randn(1)), axes)
        done = export(ExportSpec(str(path), str(tmp_path / "onnx"), allow_code=True))
        assert done.num_checks == 3

    def test_that_answers_otherwise_in_onnx_is_not_written(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The reference has one weight that the file has not."""
        wrong = Scorer().eval()
        wrong.load_state_dict(scorer().state_dict())
        with torch.no_grad():
            wrong.linear.weight[0, 0] += 0.01
        inputs, batch = (torch.randn(2, 4), torch.zeros(2, dtype=torch.long)), torch.export.Dim("batch")
        other = save_exported(wrong, tmp_path / "other.pt2", inputs, {"x": {0: batch}, "ids": {0: batch}})
        reference = onnx_export.ExportedProgram
        monkeypatch.setattr(onnx_export, "ExportedProgram", lambda _path, *rest: reference(str(other), *rest))
        spec = ExportSpec(str(save_scorer(tmp_path / "scorer.pt2")), str(tmp_path / "onnx"), allow_code=True)
        with pytest.raises(EngineFailure, match=r"off by 0\.00\d+, 0\.00\d+ of the largest number, where 0\.0001"):
            export(spec)
        assert sorted(file.name for file in tmp_path.iterdir()) == ["other.pt2", "scorer.pt2"]
        assert export(ExportSpec(spec.model, spec.out, tolerance=0.5, allow_code=True)).share > 1e-4

    def test_large_weights_lie_beside_the_file_and_are_found(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(onnx_export, "_MAX_INSIDE_BYTES", 100)
        done = export(
            ExportSpec(str(save_scorer(tmp_path / "s.pt2")), str(tmp_path / "onnx"), "tensor", allow_code=True)
        )
        assert sorted(file.name for file in (tmp_path / "onnx").iterdir()) == ["model.onnx", "model.onnx.data"]
        assert done.num_bytes == sum(file.stat().st_size for file in (tmp_path / "onnx").iterdir())
        onnx.checker.check_model(done.path)


class TestRefusals:
    @pytest.mark.parametrize(
        ("model", "changes", "words"),
        [
            ("x.onnx", {}, "is an ONNX file already"),
            ("none.pt2", {}, r"is no \*\.pt2 file here"),
            ("full", {"task": "tensor"}, r"is no \*\.pt2 file here"),
            ("s.pt2", {}, "add --allow-code"),
            ("s.pt2", {"task": "embed"}, r"is no \*\.pt2 file here"),
            ("full", {"task": "generate"}, "task is generate"),
            ("/none/there", {}, "/none/there does not exist here"),
            ("builtin:demo-v1", {}, "does not exist here"),
            ("full", {}, "has no config that loads"),
            ("full", {"tolerance": 0.0}, "tolerance is 0"),
            ("full", {"out": "full"}, "is there already, and not empty"),
            ("full", {"out": "s.pt2"}, "is there already"),
        ],
    )
    def test_say_what_to_do(self, model: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
        (tmp_path / "full").mkdir()
        (tmp_path / "full/file").write_text("x")
        (tmp_path / "s.pt2").write_text("x")
        is_path = not model.startswith(("/", "builtin:"))
        settings = {"out": "out"} | changes
        settings["out"] = str(tmp_path / settings["out"])
        with pytest.raises(InvalidRequest, match=words):
            export(ExportSpec(str(tmp_path / model) if is_path else model, **settings))
        assert not (tmp_path / "out").exists()


def test_what_torch_cannot_export_is_refused_with_its_reason(tmp_path: Path) -> None:
    class Halves(torch.nn.Module):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return x.reshape(-1, 2).sum(-1) + y

    half = torch.export.Dim("half", min=2, max=9)
    inputs = (torch.randn(8), torch.randn(4))
    path = save_exported(Halves(), tmp_path / "halves.pt2", inputs, {"x": {0: 2 * half}, "y": {0: half}})
    with pytest.raises(InvalidRequest, match=r"torch\.onnx cannot export the model: \w+: \w+"):
        export(ExportSpec(str(path), str(tmp_path / "onnx"), allow_code=True))


@pytest.mark.parametrize("outside", ["../other", "/etc", "1_Next/../../other"])
def test_a_stage_outside_the_model_is_refused(outside: str, tmp_path: Path) -> None:
    for place in ("m", "other"):
        (tmp_path / place).mkdir()
    (tmp_path / "other/config.json").write_text(json.dumps({"pooling_mode": "mean"}))
    stages = [{"path": "", "type": "models.Transformer"}, {"path": outside, "type": "models.Pooling"}]
    (tmp_path / "m/modules.json").write_text(json.dumps(stages))
    (tmp_path / "m/config.json").write_text("{}")
    for read in (pooling.Pooling.read, onnx_export._beside):
        with pytest.raises(InvalidRequest, match=f"Pooling stage whose path in modules.json, {outside}, leads out"):
            read(str(tmp_path / "m"))
