"""What the loader takes, what it refuses with which words, and what it makes of a spec."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from deepspeed.inference.engine import InferenceEngine
from transformers import AutoModelForCausalLM, GenerationConfig

from jupyter_dsserve.engine import host, pretrained, ragged
from jupyter_dsserve.engine.attention import NotRagged
from jupyter_dsserve.engine.checkpoint import weight_bytes
from jupyter_dsserve.engine.loader import load_checked, load_runner
from jupyter_dsserve.engine.runner import Runner
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.spec import RunnerName, WorkerSpec
from tests.engine import tiny_models


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.save_architecture("llama", tmp_path_factory.mktemp("llama"))


def refused(folder: Path, match: str, **settings: Any) -> None:
    with pytest.raises(InvalidRequest, match=match):
        tiny_models.load(folder, **settings).check()


def refused_by_ragged(folder: Path, match: str) -> None:
    with pytest.raises(NotRagged, match=match):
        tiny_models.load(folder)


def checked(folder: Path, runner: RunnerName) -> Runner:
    spec = WorkerSpec(str(folder), runner=runner, dtype="fp32", device="cpu", num_threads=1)
    return load_checked(spec, str(folder), lambda stage, done: None)


def edit_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def longrope(tmp_path: Path) -> Path:
    rope = {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "original_max_position_embeddings": 64,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
    }
    config = tiny_models.make_config("phi3", rope_parameters=rope, original_max_position_embeddings=64)
    return tiny_models.save_model(config, tmp_path)


class TestNotRagged:
    """What the ragged runner refuses, and what becomes of it."""

    @pytest.mark.parametrize(
        ("class_name", "settings"),
        [
            ("BloomConfig", {"n_layer": 2, "n_head": 4}),
            ("FalconConfig", {}),
            ("MptConfig", {"d_model": 64, "n_layers": 2, "n_heads": 4}),
        ],
    )
    def test_a_model_outside_the_attention_interface(
        self, class_name: str, settings: dict[str, Any], tmp_path: Path
    ) -> None:
        config = getattr(transformers, class_name)(**tiny_models.SIZE, bos_token_id=None, eos_token_id=None, **settings)
        tiny_models.save_model(config, tmp_path)
        refused_by_ragged(tmp_path, r"For(Causal)?LM does not go through transformers' AttentionInterface")

    def test_layers_that_are_no_attention(self, tmp_path: Path) -> None:
        """LFM2 reports our attention, but its convolutions would mix neighbours."""
        config = transformers.Lfm2Config(
            **tiny_models.SIZE, block_ff_dim=96, layer_types=["conv", "full_attention", "conv"]
        )
        refused_by_ragged(tiny_models.save_model(config, tmp_path), "layers of type conv")

    def test_chunked_attention_is_not_taken_for_a_window(self, tmp_path: Path) -> None:
        config = transformers.Llama4TextConfig(
            **tiny_models.SIZE, num_local_experts=2, intermediate_size_mlp=96, head_dim=16, attention_chunk_size=16
        )
        refused_by_ragged(tiny_models.save_model(config, tmp_path), "layers of type chunked_attention")

    def test_auto_turns_to_the_padded_runner_and_says_why(self, tmp_path: Path) -> None:
        config = transformers.LlamaConfig(**tiny_models.SIZE, bos_token_id=None, eos_token_id=None)
        tiny_models.save_model(config, tmp_path)
        for runner, kind in (("auto", "ragged"), ("padded", "padded")):
            assert checked(tmp_path, runner).kind == kind
        falcon = transformers.FalconConfig(**tiny_models.SIZE, bos_token_id=None, eos_token_id=None)
        tiny_models.save_model(falcon, tmp_path / "falcon")
        why = "FalconForCausalLM does not go through transformers' AttentionInterface"
        assert checked(tmp_path / "falcon", "auto").kind == f"padded: {why}"
        with pytest.raises(InvalidRequest, match=f"cannot have the ragged runner: {why}: leave the runner to auto"):
            checked(tmp_path / "falcon", "ragged")

    def test_auto_turns_to_the_padded_runner_when_the_check_fails(
        self, llama: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ragged.RaggedRunner, "_plain_logits", lambda self, tokens: torch.rand(len(tokens), 300))
        assert checked(llama, "auto").kind.startswith("padded: LlamaForCausalLM answers differently in a batch")


class TestRefusals:
    def test_an_encoder(self, llama: Path, tmp_path: Path) -> None:
        transformers.BertConfig(architectures=["BertForMaskedLM"]).save_pretrained(tmp_path)
        (tmp_path / "model.safetensors").touch()
        refused(tmp_path, "is a BertForMaskedLM, not a causal language model")

    def test_weights_in_a_pickle(self, tmp_path: Path) -> None:
        tiny_models.save_architecture("llama", tmp_path)
        (tmp_path / "model.safetensors").unlink()
        torch.save({}, tmp_path / "pytorch_model.bin")
        refused(tmp_path, r"no \*\.safetensors.*save_pretrained")

    def test_a_directory_without_a_config(self, tmp_path: Path) -> None:
        refused(tmp_path, r"no config\.json")

    def test_a_config_of_no_known_model(self, tmp_path: Path) -> None:
        tiny_models.save_architecture("llama", tmp_path)
        edit_config(tmp_path, model_type="nobody_knows")
        refused(tmp_path, "no config that loads.*nobody_knows")

    def test_a_checkpoint_that_lacks_weights(self, tmp_path: Path) -> None:
        """transformers would fill them with random numbers and only warn."""
        tiny_models.save_architecture("llama", tmp_path)
        edit_config(tmp_path, num_hidden_layers=4)
        refused(tmp_path, r"lacks 9 weights, model\.layers\.3")

    def test_a_truncated_weights_file(self, tmp_path: Path) -> None:
        weights = tiny_models.save_architecture("llama", tmp_path) / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
        refused(tmp_path, "does not load")

    def test_fp16_on_a_cpu(self, llama: Path) -> None:
        refused(llama, "dtype is fp16.*fp32 or bf16", dtype="fp16")

    @pytest.mark.parametrize("device", ["gpu", "cuda", "cuda:x", "cuda:99", "mps"])
    def test_a_device_that_is_not_there(self, device: str, llama: Path) -> None:
        refused(llama, f"device is '{device}'", device=device)

    def test_a_context_too_short_to_check(self, llama: Path) -> None:
        refused(llama, "max_context is 3: use 8 tokens or more", max_context=3)

    def test_longrope_beyond_its_original_length(self, tmp_path: Path) -> None:
        refused(longrope(tmp_path), "max_context is 65, but with LongRoPE.*use 64 or less", max_context=65)


class TestContext:
    def test_it_is_the_models_own_by_default(self, llama: Path) -> None:
        assert tiny_models.load(llama).room.max_context == 256

    def test_it_is_the_specs_where_that_is_less(self, llama: Path) -> None:
        assert tiny_models.load(llama, max_context=100).room.max_context == 100
        assert tiny_models.load(llama, max_context=1000).room.max_context == 256

    def test_with_longrope_it_ends_where_the_frequencies_would_change(self, tmp_path: Path) -> None:
        runner = tiny_models.load(longrope(tmp_path))
        assert runner.room.max_context == 64
        runner.check()

    def test_the_last_position_of_it_can_be_used(self, llama: Path) -> None:
        runner = tiny_models.load(llama, max_context=16)
        runner.check()
        assert len(tiny_models.answers(runner, [[1] * 15, [2]], 1)) == 2


class TestNumbers:
    def test_auto_is_the_checkpoints_own_where_the_cpu_is_fast_at_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        tiny_models.save_architecture("llama", tmp_path)
        AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).save_pretrained(tmp_path)
        for is_fast, dtype in ((True, torch.bfloat16), (False, torch.float32)):
            monkeypatch.setattr(pretrained, "_has_fast_bf16", lambda is_fast=is_fast: is_fast)
            runner = tiny_models.load(tmp_path, dtype="auto")
            assert runner._model.dtype == dtype
            runner.check()

    def test_positions_stay_exact_in_bf16(self, llama: Path) -> None:
        """DeepSpeed casts rotary frequencies too; at position 250 the answers would be others."""
        runner = tiny_models.load(llama, dtype="bf16")
        plain = AutoModelForCausalLM.from_pretrained(llama, dtype=torch.bfloat16, attn_implementation="eager")
        tokens = tiny_models.random_prompts([250])[0]
        with torch.inference_mode():
            torch.testing.assert_close(runner._plain_logits(tokens), plain(torch.tensor([tokens])).logits[0].float())


def test_the_forward_pass_goes_through_deepspeed(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = tiny_models.load(llama)
    calls: list[InferenceEngine] = []
    plain = InferenceEngine.forward
    monkeypatch.setattr(InferenceEngine, "forward", lambda self, **given: calls.append(self) or plain(self, **given))
    tiny_models.answers(runner, [[1, 2, 3]], 4)
    assert len(calls) == 4


def test_progress_rises_from_0_to_1_and_moves_with_the_weights(llama: Path) -> None:
    seen: list[tuple[str, float]] = []
    load_runner(WorkerSpec(str(llama), device="cpu", num_threads=1), str(llama), lambda *at: seen.append(at))
    shares = [share for _, share in seen]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    assert len({share for stage, share in seen if stage == "weights"}) > 20


@pytest.mark.parametrize(("name", "is_merged"), [("llama", False), ("mixtral-window", True)])
def test_progress_goes_by_bytes(name: str, is_merged: bool, tmp_path: Path) -> None:
    """The largest step is the share of the largest weight; with experts, of all those of a layer, merged into one."""
    tiny_models.save_architecture(name, tmp_path)
    sizes = weight_bytes(str(tmp_path))
    merged = [n for n in sizes if n.startswith("model.layers.0.") and ("w1" in n or "w3" in n)]
    largest = sum(sizes[n] for n in merged) if is_merged else max(sizes.values())
    seen: list[tuple[str, float]] = []
    load_runner(WorkerSpec(str(tmp_path), device="cpu", num_threads=1), str(tmp_path), lambda *at: seen.append(at))
    shares = [share for stage, share in seen if stage in ("weights", "tokenizer")]
    steps = [after - before for before, after in pairwise(shares)]
    assert max(steps) == pytest.approx(0.8 * largest / sum(sizes.values()))


def test_end_tokens_are_those_of_generation_config_and_tokenizer(tmp_path: Path) -> None:
    tiny_models.save_architecture("llama", tmp_path)
    GenerationConfig(eos_token_id=[5, 6]).save_pretrained(tmp_path)
    tiny_models.byte_tokenizer(eos_token="</s>").save_pretrained(tmp_path)
    tokenizer = tiny_models.load(tmp_path).tokenizer
    assert tokenizer.eos_ids == {5, 6, 256}
    assert tokenizer.vocab_size == tiny_models.VOCAB


def test_memory_held_is_that_of_the_process(llama: Path) -> None:
    assert 2**25 < tiny_models.load(llama).device_bytes() < 2**34


def test_threads_are_those_asked_for_or_all_cores_but_one(llama: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = torch.get_num_threads()
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(4)))
    monkeypatch.setattr(host, "_OWN_CGROUP", Path("/no-such-file"))  # the machine's may have a quota
    try:
        tiny_models.load(llama, num_threads=0)
        assert torch.get_num_threads() == 3
        tiny_models.load(llama, num_threads=1)
        assert torch.get_num_threads() == 1
    finally:
        torch.set_num_threads(before)


def test_a_load_writes_nothing_to_stdout(llama: Path) -> None:
    """DeepSpeed logs there by default, from its import on."""
    script = f"from tests.engine import tiny_models; tiny_models.load({str(llama)!r}).check()"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == ""
