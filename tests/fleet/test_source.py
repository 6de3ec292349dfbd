"""What a model may be is decided from its files, before a process is started."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jupyter_dsserve.adapter import Adapter
from jupyter_dsserve.fleet.source import canonical, check_can_load, model_path
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.spec import RunnerName, Task, WorkerSpec


def directory(path: Path, *files: str, **config: object) -> Path:
    path.mkdir()
    if config:
        (path / "config.json").write_text(json.dumps(config))
    for name in files:
        (path / name).write_bytes(b"")
    return path


def refusal(model: object, runner: RunnerName = "ragged", task: Task = "generate") -> str:
    with pytest.raises(InvalidRequest) as caught:
        model_path(str(model), runner, task)
    assert caught.value.param == "model"
    return caught.value.message


def test_a_directory_with_config_and_safetensors_is_taken(tmp_path: Path) -> None:
    model = directory(tmp_path / "m", "model.safetensors", architectures=["LlamaForCausalLM"])
    assert model_path(str(model), "ragged") == str(model)


def test_hub_names_pass_as_they_are() -> None:
    assert model_path("org/name-7b", "ragged") == "org/name-7b"
    assert model_path("org/name-7b@refs/pr/1", "ragged") == "org/name-7b@refs/pr/1"
    for none in ("org/name@", "org/name@a b", "@main", "org/name@/main", "org/name@main@main"):
        assert "does not exist here" in refusal(none)
    assert model_path("gpt2", "ragged") == "gpt2"


def test_an_unknown_builtin_names_the_known_ones() -> None:
    assert "demo-v1, demo-v2" in refusal("builtin:demo-v9")


@pytest.mark.parametrize("model", ["/no/such/dir", "./nothing", "~/nothing-here", "a/b/c", "", "two words"])
def test_a_path_that_does_not_exist_is_named(model: str) -> None:
    assert repr(model) in refusal(model)


def test_a_directory_that_is_no_model_says_what_is_missing(tmp_path: Path) -> None:
    assert "config.json" in refusal(directory(tmp_path / "empty"))
    assert "safetensors" in refusal(directory(tmp_path / "weightless", architectures=["LlamaForCausalLM"]))


def test_a_file_is_no_model(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert "is a file" in refusal(tmp_path / "model.safetensors")


def test_but_a_gguf_file_is_one_that_generates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.gguf").write_bytes(b"")
    monkeypatch.chdir(tmp_path)
    assert model_path("model.gguf", "ragged") == canonical("model.gguf") == str(tmp_path / "model.gguf")
    assert "is a file" in refusal("model.gguf", "encoder", "embed")


def test_a_broken_config_is_named(tmp_path: Path) -> None:
    (directory(tmp_path / "m", "model.safetensors") / "config.json").write_text("{")
    assert "not JSON" in refusal(tmp_path / "m")
    (tmp_path / "m" / "config.json").write_text("[]")
    assert "not a JSON object" in refusal(tmp_path / "m")


def test_pickle_weights_are_refused_with_the_way_out(tmp_path: Path) -> None:
    model = directory(tmp_path / "m", "pytorch_model.bin", architectures=["LlamaForCausalLM"])
    assert "pytorch_model.bin" in refusal(model)
    assert "save_pretrained" in refusal(model)


def test_a_model_that_does_not_generate_text_is_refused(tmp_path: Path) -> None:
    model = directory(tmp_path / "m", "model.safetensors", architectures=["BertForMaskedLM"])
    assert "BertForMaskedLM" in refusal(model)
    assert "encoders load with task embed or classify" in refusal(model)
    assert model_path(str(model), "encoder", "embed") == str(model)


def test_a_classifier_is_told_by_its_architecture(tmp_path: Path) -> None:
    encoder = directory(tmp_path / "e", "model.safetensors", architectures=["BertModel"])
    assert "BertModel, which classifies no texts" in refusal(encoder, "encoder", "classify")
    classifier = directory(tmp_path / "c", "model.safetensors", architectures=["BertForSequenceClassification"])
    assert model_path(str(classifier), "encoder", "classify") == str(classifier)


def test_encoders_are_refused_as_pickle_too(tmp_path: Path) -> None:
    model = directory(tmp_path / "m", "pytorch_model.bin", architectures=["BertModel"])
    assert "pytorch_model.bin" in refusal(model, "encoder", "embed")


def test_a_runner_does_its_own_tasks() -> None:
    with pytest.raises(InvalidRequest, match="leave it out, or use encoder or toy"):
        model_path("org/name", "ragged", "embed")


class TestAdapters:
    def adapter(self, path: Path, base: str = "../base", kind: str = "LORA", *files: str) -> Path:
        found = directory(path, *(files or ("adapter_model.safetensors",)))
        settings = {"peft_type": kind, "base_model_name_or_path": base}
        (found / "adapter_config.json").write_text(json.dumps(settings))
        return found

    def test_one_whose_base_would_load_is_taken(self, tmp_path: Path) -> None:
        base = directory(tmp_path / "base", "model.safetensors", architectures=["LlamaForCausalLM"])
        for number, named in enumerate(("../base", str(base), "org/name-7b")):
            path = self.adapter(tmp_path / f"a{number}", named)
            assert model_path(str(path), "ragged") == str(path)
            found = Adapter.read(path)
            assert found is not None
            assert found.base == (named if named == "org/name-7b" else str(base))

    def test_weights_that_are_made_in_memory_are_not_offloaded(self, tmp_path: Path) -> None:
        directory(tmp_path / "base", "model.safetensors", architectures=["LlamaForCausalLM"])
        paths = [str(self.adapter(tmp_path / "a")), str(tmp_path / "m.gguf")]
        for path, word in zip(paths, ("an adapter", "a GGUF file"), strict=True):
            check_can_load(path, WorkerSpec(path))
            with pytest.raises(InvalidRequest, match=word):
                check_can_load(path, WorkerSpec(path, zero="nvme"))

    def test_its_base_passes_the_same_checks(self, tmp_path: Path) -> None:
        directory(tmp_path / "base", "model.safetensors", architectures=["BertForMaskedLM"])
        assert "BertForMaskedLM, which does not generate" in refusal(self.adapter(tmp_path / "a"))

    @pytest.mark.parametrize(
        ("base", "kind", "files", "words"),
        [
            ("../nowhere", "LORA", (), "no directory here, seen from it, and no hub name"),
            ("", "LORA", (), "names no base_model_name_or_path"),
            ("org/name", "PROMPT_TUNING", (), "one of type PROMPT_TUNING cannot be merged"),
            ("org/name", "LORA", ("adapter_model.bin",), "no adapter_model.safetensors"),
            ("org/name", "LORA", ("adapter_model.safetensors", "config.json"), "holds a whole model too"),
        ],
    )
    def test_what_cannot_be_merged_is_refused(
        self, base: str, kind: str, files: tuple[str, ...], words: str, tmp_path: Path
    ) -> None:
        assert words in refusal(self.adapter(tmp_path / "a", base, kind, *files))

    def test_only_models_that_generate_have_them(self, tmp_path: Path) -> None:
        assert "only for the task generate" in refusal(self.adapter(tmp_path / "a", "org/name"), "encoder", "embed")


def test_toy_models_and_the_toy_runner_go_together() -> None:
    assert model_path("toy:step_s=0.1", "toy") == "toy:step_s=0.1"
    assert "toy" in refusal("toy:", "ragged")
    assert "toy" in refusal("org/name", "toy")


def test_wrong_toy_settings_are_refused_before_a_process_starts() -> None:
    assert "speed" in refusal("toy:speed=9", "toy")
