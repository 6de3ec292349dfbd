"""A model that was just trained in this process is saved as it is, and a real worker answers as it does."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from jupyter_dsserve import AsyncClient
from jupyter_dsserve.adapter import Adapter
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.notebook.saved import Job, Saved, Store
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.records import GatewayAddress
from tests.engine.tiny_encoders import MINILM
from tests.engine.tiny_models import byte_tokenizer, make_config

PROMPT = "the model that was just trained"


def trained(dtype: torch.dtype = torch.float32, seed: int = 0, **changes: Any) -> Any:
    """A tiny Llama of random weights, as training leaves one."""
    torch.manual_seed(seed)
    model = LlamaForCausalLM(make_config("llama", **changes))
    with torch.no_grad():
        for weights in model.parameters():
            if weights.dim() >= 2:
                weights.normal_(0, 0.3)
    return model.to(dtype).train()


def with_adapter(name: str = "default", **settings: Any) -> PeftModel:
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=16, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM", **settings)
    model = get_peft_model(trained(), config, adapter_name=name)
    with torch.no_grad():
        for each, weights in model.named_parameters():
            if "lora_B" in each or "modules_to_save" in each:
                weights.normal_(0, 0.3)
    return model


def answer(model: Any, num_tokens: int = 12) -> str:
    """Greedy, as transformers computes it."""
    tokens = torch.tensor([list(byte_tokenizer()(PROMPT)["input_ids"])])
    was_training = model.training
    out = model.eval().generate(input_ids=tokens, max_new_tokens=num_tokens, do_sample=False)
    model.train(was_training)
    return str(byte_tokenizer().decode(out[0, tokens.shape[1] :]))


def read(saved: Saved) -> Any:
    """The model that a worker would find."""
    adapter = Adapter.read(saved.path)
    model = AutoModelForCausalLM.from_pretrained(adapter.base if adapter else saved.path)
    assert AutoTokenizer.from_pretrained(saved.path)(PROMPT)["input_ids"] == byte_tokenizer()(PROMPT)["input_ids"]
    return PeftModel.from_pretrained(model, saved.path) if adapter else model


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of what is saved, in a data directory of Jupyter's of the test's own."""
    monkeypatch.setenv("JUPYTER_DATA_DIR", str(tmp_path / "jupyter"))
    return Store.of(GatewayAddress("http://127.0.0.1:1", "k")).home


async def test_a_model_of_this_kernel_is_served_as_it_answers_here_and_goes_with_its_version(
    gateway: Gateway, home: Path
) -> None:
    model, tokenizer, said = trained(), byte_tokenizer(), []
    client = AsyncClient(gateway.url, gateway.admin_key)
    try:
        options: dict[str, Any] = {"tokenizer": tokenizer, "dtype": "fp32", "num_threads": 1, "say": said.append}
        seen: list[Any] = []
        loaded = await client.load("demo", model, on_progress=seen.append, **options)
        assert model.training
        path = loaded.spec.model
        assert os.stat(path).st_mode & 0o777 == 0o700
        served = await client.generate("demo", PROMPT, max_tokens=12, temperature=0, ignore_eos=True)
        assert served.text == answer(model)
        assert path in said[0]
        assert re.search(r"saved \(.* KiB\).*its own copy \(.* KiB on cpu\): delete.*gc\.collect\(\)$", said[0])
        assert type(seen[0]).__name__ == "Saving"
        again = await client.load("demo", model, **options)
        assert again.id == loaded.id, "the same weights became another version"
        assert "is saved already" in said[1]
        with pytest.raises(InvalidRequest, match="num_threads"):
            await client.load("demo", trained(seed=1), tokenizer=tokenizer, num_threads=-1, say=said.append)
        assert os.listdir(os.path.dirname(path)) == [os.path.basename(path)], "a refused load left something"
        await client.delete("demo")
        assert os.listdir(os.path.dirname(path)) == []
    finally:
        await client.aclose()


@pytest.mark.parametrize(
    ("make", "wrap"),
    [
        (lambda: trained(torch.bfloat16), lambda model: model),
        (lambda: trained(tie_word_embeddings=True), lambda model: torch.compile(model)),
        (trained, lambda model: torch.nn.DataParallel(model)),
        (with_adapter, lambda model: model),
        (lambda: with_adapter("mine", modules_to_save=["lm_head"]), lambda model: model),
    ],
    ids=["bf16", "tied and compiled", "data parallel", "adapter", "adapter of another name, with a whole layer"],
)
def test_what_wraps_a_model_is_looked_through_and_its_answer_stays(
    home: Path, make: Callable[[], Any], wrap: Callable[[Any], Any]
) -> None:
    model = make()
    expected = answer(model)
    saved = Job(home, wrap(model), byte_tokenizer()).result()
    found = read(saved)
    assert saved.kind == "LlamaForCausalLM"
    assert answer(found) == expected == answer(model)
    assert next(found.parameters()).dtype == next(model.parameters()).dtype
    assert [p.name for p in home.iterdir()] == [saved.folder.name]


def test_an_adapter_of_a_base_on_the_disk_is_saved_alone(home: Path, tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path / "base")
    config = LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", init_lora_weights=False)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), config)
    saved = Job(home, model, byte_tokenizer()).result()
    assert os.listdir(saved.folder) == ["adapter"]
    assert answer(read(saved)) == answer(model)


def test_a_sentence_transformer_brings_its_own_tokenizer(home: Path) -> None:
    from sentence_transformers import SentenceTransformer

    saved = Job(home, SentenceTransformer(MINILM)).result()
    assert saved.task == "embed"
    assert {"modules.json", "tokenizer.json", "1_Pooling"} <= set(os.listdir(saved.path))


class MyLlama(LlamaForCausalLM):
    pass


@pytest.mark.parametrize(
    ("model", "tokenizer", "said"),
    [
        (object(), None, "model is a builtins.object: give a transformers model"),
        (torch.nn.Linear(2, 2), None, r"torch\.nn\.modules\.linear\.Linear.*task tensor"),
        (MyLlama(make_config("llama")), byte_tokenizer(), r"MyLlama, whose code only this kernel has.*\(llama\)"),
        (LlamaForCausalLM(make_config("llama")), None, "no tokenizer was given: give the one that LlamaForCausalLM"),
        (LlamaForCausalLM(make_config("llama")), "gpt2", "tokenizer is a str"),
    ],
)
def test_what_no_worker_could_load_is_refused_by_its_class(
    home: Path, model: Any, tokenizer: object, said: str
) -> None:
    with pytest.raises(InvalidRequest, match=said):
        Job(home, model, tokenizer)
    assert not home.exists()


def test_a_gateway_on_another_machine_cannot_see_it() -> None:
    with pytest.raises(InvalidRequest, match=r"https://gpu\.example/dsserve is on another machine"):
        Store.of(GatewayAddress("https://gpu.example/dsserve", "k"))


def test_a_save_that_fails_leaves_nothing(home: Path) -> None:
    model = trained()
    model.save_pretrained = lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    with pytest.raises(InvalidRequest, match=r"LlamaForCausalLM that cannot be saved: .*No space left"):
        Job(home, model, byte_tokenizer()).result()
    assert list(home.iterdir()) == []


def test_what_no_version_names_any_more_goes_when_it_is_not_young(home: Path) -> None:
    store = Store(home)
    for name in ("used", "old", "young"):
        (home / name).mkdir(parents=True)
    os.utime(home / "old", (0, 0))
    os.utime(home / "used", (0, 0))
    store.sweep([str(home / "used/adapter"), "builtin:demo-v1"], now=(home / "young").stat().st_mtime + 60)
    assert {p.name for p in home.iterdir()} == {"used", "young"}
    store.forget([str(home / "used/adapter"), "/etc", str(home)], in_use=[str(home / "used/adapter")])
    store.forget([str(home / "young")], in_use=[])
    assert {p.name for p in home.iterdir()} == {"used"}
