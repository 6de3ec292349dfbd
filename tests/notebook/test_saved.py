"""A model that was just trained in this process is saved as it is, and a real worker answers as it does."""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import TypeAdapter
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM
from transformers.utils import logging as bars

from jupyter_dsserve import AsyncClient, Client
from jupyter_dsserve.adapter import Adapter
from jupyter_dsserve.data_dir import DataDir
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.notebook.saved import Job, Saved, Store
from jupyter_dsserve.notebook.verbs import Verbs
from jupyter_dsserve.notebook.verbs.talk import Talk
from jupyter_dsserve.notebook.views import Deployment, Version
from jupyter_dsserve.protocol.errors import DSServeError, InvalidRequest, Unavailable
from jupyter_dsserve.protocol.records import GatewayAddress, VersionState
from jupyter_dsserve.protocol.spec import WorkerSpec
from tests.engine.tiny_encoders import MINILM
from tests.engine.tiny_models import byte_tokenizer, make_config

ID = "0123456789abcdef"
STATUS = httpx.Response(200, json={"id": ID, "deployments": []})
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
    return Store.of(GatewayAddress("http://127.0.0.1:1", "k"), ID).home


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
        Store.of(GatewayAddress("https://gpu.example/dsserve", "k"), ID)


@pytest.mark.parametrize("id", ["", "../../../etc", "0123456789ABCDEF"])
def test_what_can_be_no_id_names_no_folder(id: str) -> None:
    with pytest.raises(Unavailable, match="which is none"):
        Store.of(GatewayAddress("http://127.0.0.1:1", "k"), id)


async def test_whichever_admin_key_deletes_a_version_its_files_go(gateway: Gateway, home: Path, tmp_path: Path) -> None:
    mine = AsyncClient(gateway.url, gateway.admin_key)
    colleague = AsyncClient(gateway.url, (await mine.key("colleague", scope="admin")).key)
    try:
        options: dict[str, Any] = {"tokenizer": byte_tokenizer(), "say": lambda _: None, "wait": False}
        place = Path((await mine.load("demo", trained(), **options)).spec.model)
        assert os.listdir(place.parent) == [place.name]
        await colleague.delete("demo")
        assert os.listdir(place.parent) == []
        assert DataDir.id(gateway.data_dir) == place.parent.name, "it is the gateway's own"
    finally:
        await mine.aclose()
        await colleague.aclose()


def test_a_save_that_fails_leaves_nothing(home: Path) -> None:
    model = trained()
    model.save_pretrained = lambda *_, **__: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    with pytest.raises(InvalidRequest, match=r"LlamaForCausalLM that cannot be saved: .*No space left"):
        Job(home, model, byte_tokenizer()).result()
    assert list(home.iterdir()) == []


@pytest.mark.parametrize("has_bars", [True, False])
def test_a_save_says_nothing_of_its_own_and_leaves_bars_as_they_were(
    home: Path, capfd: pytest.CaptureFixture[str], has_bars: bool
) -> None:
    had_bars = bars.is_progress_bar_enabled()
    (bars.enable_progress_bar if has_bars else bars.disable_progress_bar)()
    try:
        Job(home, with_adapter(), byte_tokenizer()).result()
        assert bars.is_progress_bar_enabled() is has_bars
        assert capfd.readouterr() == ("", "")
    finally:
        (bars.enable_progress_bar if had_bars else bars.disable_progress_bar)()


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


def test_what_another_kernel_names_or_deletes_meanwhile_is_no_hindrance_to_a_sweep(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "old").mkdir(parents=True)
    os.utime(home / "old", (0, 0))
    listed = [home / ".new-gone", home / "old"]
    monkeypatch.setattr(Path, "iterdir", lambda _: iter(listed))
    Store(home).sweep([], now=10_000.0)
    assert not (home / "old").exists()


def test_what_is_saved_already_is_young_again(home: Path) -> None:
    first = Job(home, trained(), byte_tokenizer()).result()
    os.utime(first.folder, (0, 0))
    again = Job(home, trained(), byte_tokenizer()).result()
    assert (first.is_new, again.is_new, again.folder) == (True, False, first.folder)
    Store(home).sweep([], time.time())
    first.discard()
    assert first.folder.exists(), "it was taken from the kernel that is about to load it"


def test_a_kernel_that_was_faster_has_saved_it(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = Job(home, trained(), byte_tokenizer()).result()
    utime, tried = os.utime, []

    def not_yet(path: Any, *args: Any) -> None:
        if not tried:
            tried.append(path)
            raise FileNotFoundError
        utime(path, *args)

    monkeypatch.setattr(os, "utime", not_yet)
    again = Job(home, trained(), byte_tokenizer()).result()
    assert tried == [first.folder]
    assert (again.is_new, again.folder) == (False, first.folder)
    assert list(home.iterdir()) == [first.folder]


def test_an_adapter_is_the_same_whatever_order_peft_writes_its_sets_in(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = []
    for order in (["q_proj", "down_proj"], ["down_proj", "q_proj"]):
        model = with_adapter()
        # As a kernel that hashes strings otherwise writes it.
        monkeypatch.setattr(model.peft_config["default"], "target_modules", order)
        names.append(Job(home, model, byte_tokenizer()).result().folder.name)
    assert names[0] == names[1]


# ---- as a conversation

GATEWAY = "http://127.0.0.1:1"
Reply = Callable[[httpx.Request], httpx.Response]


def talked(talk: Talk[Any], reply: Reply) -> Any:
    """What the conversation ends with."""
    try:
        step = next(talk)
        while True:
            if isinstance(step, float):
                time.sleep(step)
                step = talk.send(None)
                continue
            try:
                answer = reply(step.request)
            except httpx.HTTPError as fault:
                step = talk.throw(fault)
            else:
                step = talk.send(answer)
    except StopIteration as end:
        return end.value


def made(model: str, version: str = "v1", at: float = 0.0) -> Version:
    return Version("demo", version, VersionState.STOPPED, 0.0, "", "", 0.0, [], WorkerSpec(model), "", at)


def listed(*versions: Version) -> httpx.Response:
    found = [Deployment("demo", {}, 1, "", list(versions))] if versions else []
    return httpx.Response(200, content=TypeAdapter(list[Deployment]).dump_json(found))


@pytest.mark.parametrize(
    ("outcome", "is_kept"),
    [("no answer", True), ("gateway ended", True), ("refused", False), ("registered, not loaded", True)],
)
def test_a_load_that_may_have_been_registered_leaves_its_files(home: Path, outcome: str, is_kept: bool) -> None:
    posted: list[str] = []

    def reply(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/status":
            return STATUS
        if request.method == "GET":
            return listed(*(map(made, posted) if outcome == "registered, not loaded" else ()))
        posted.append(json.loads(request.content)["model"])
        if outcome == "no answer":
            raise httpx.ReadTimeout("")
        return httpx.Response(503 if outcome == "gateway ended" else 409, json={"message": "no"})

    talk = Verbs(GATEWAY, "k").load("demo", trained(), tokenizer=byte_tokenizer(), say=lambda _: None)
    with pytest.raises(DSServeError):
        talked(talk, reply)
    assert Path(posted[0]).exists() is is_kept


def test_what_was_loaded_while_others_were_deleted_keeps_its_files(home: Path) -> None:
    for name in ("gone", "again", "beside", "swept"):
        (home / name).mkdir(parents=True)
    os.utime(home / "swept", (0, 0))
    deleted = [made(str(home / name), f"v{i}") for i, name in enumerate(("gone", "again", "beside"), 1)]
    since = [made(str(home / "again"), "v2", at=5.0), made(str(home / "beside"), "v4", at=4.0)]

    def reply(request: httpx.Request) -> httpx.Response:
        if request.url.path == "/api/status":
            return STATUS
        if request.method == "GET":  # v1 still drains
            return listed(deleted[0], *since)
        return httpx.Response(202, content=TypeAdapter(list[Version]).dump_json(deleted))

    talked(Verbs(GATEWAY, "k").delete("demo"), reply)
    assert {p.name for p in home.iterdir()} == {"again", "beside"}


@pytest.mark.parametrize("when", ["while it saves", "once it is saved", "while it looks"])
def test_a_save_that_is_interrupted_leaves_nothing(home: Path, when: str) -> None:
    model, go_on = trained(), threading.Event()
    save = model.save_pretrained
    model.save_pretrained = lambda *args, **kwargs: (go_on.wait(10), save(*args, **kwargs))

    def interrupt(*_: object) -> Any:
        go_on.set()
        raise KeyboardInterrupt

    if when != "while it saves":
        go_on.set()
    client = Client(GATEWAY, "k")

    def do(step: Any) -> Any:
        if not isinstance(step, float) and step.request.url.path == "/api/status":
            return STATUS
        return time.sleep(step) if isinstance(step, float) and when != "while it saves" else interrupt()

    client._do = do  # type: ignore[method-assign]
    say = interrupt if when == "once it is saved" else lambda _: None
    with pytest.raises(KeyboardInterrupt) as held:  # with its traceback, as a notebook holds it
        client.load("demo", model, tokenizer=byte_tokenizer(), say=say)
    for thread in [t for t in threading.enumerate() if t.name == "dsserve-save"]:
        thread.join()
    assert list(home.iterdir()) == []
    assert held
