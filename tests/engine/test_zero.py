"""Weights that lie elsewhere until their layer computes: the same answers, and nothing is left of them afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedConfig

from jupyter_dsserve.engine.zero import _own_folder, offloaded_dtype
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.spec import DType, WorkerSpec
from tests.engine.tiny_models import save_architecture

CPU = torch.device("cpu")

# In a process of its own: DeepSpeed's process group is one of the whole process.
COMPARE = """
import os, sys
import torch
from jupyter_dsserve.engine import loader, zero
from jupyter_dsserve.engine.hf_tokenizer import HFTokenizer
from jupyter_dsserve.engine.ragged import RaggedRunner
from tests.engine.tiny_models import VOCAB, answers, random_prompts

def answer(wrap):
    model = loader._model(sys.argv[1], loader._config(sys.argv[1]), torch.float32, lambda done: None)
    loader._attend_ragged(model)
    engine = wrap(model)
    offloaded = sum(p.numel() for p in model.parameters())
    tokenizer = HFTokenizer.load(sys.argv[1], frozenset(), VOCAB)
    sizes = {"max_sequences": 4, "max_step_tokens": 32, "max_context": 256, "kv_bytes": 1 << 30}
    runner = RaggedRunner(engine, tokenizer, name="m", **sizes)
    runner.check()
    return answers(runner, random_prompts((3, 60, 17)), 12), offloaded

plain, all_here = answer(lambda model: loader.wrapped(model, torch.float32))
away, left_here = answer(lambda model: zero.offloaded(model, "cpu", "", torch.device("cpu")))
assert plain == away, (plain, away)
assert left_here < all_here / 100, (left_here, all_here)
os._exit(0)
"""


@pytest.mark.timeout(600)  # DeepSpeed builds what it needs when it is the first to need it on a machine
def test_a_model_whose_weights_are_away_gives_the_same_tokens(tmp_path: Path) -> None:
    model = save_architecture("llama", tmp_path)
    done = subprocess.run([sys.executable, "-c", COMPARE, str(model)], capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_folder_of_the_weights_goes_with_its_process_even_if_that_is_killed(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from jupyter_dsserve.engine.zero import _own_folder\n"
        "folder = _own_folder(Path(sys.argv[1]), 1); (folder / 'weights').write_text('x')\n"
        "print(flush=True); time.sleep(150)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    assert [f.name for f in tmp_path.glob("*/*")] == ["weights"]
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    end = time.monotonic() + 60
    while os.listdir(tmp_path) and time.monotonic() < end:
        time.sleep(0.02)
    assert os.listdir(tmp_path) == []


def test_a_folder_that_cannot_take_the_weights_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match=r"free, and the weights take 1000000.0 GB"):
        _own_folder(tmp_path, 10**15)
    (tmp_path / "file").touch()
    with pytest.raises(InvalidRequest, match="cannot be written"):
        _own_folder(tmp_path / "file", 1)
    with pytest.raises(InvalidRequest, match="is in memory"):
        _own_folder(Path("/dev/shm"), 1)
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.parametrize(
    ("zero", "dtype", "word"), [("cpu", "auto", "on the CPU"), ("nvme", "bf16", "float32"), ("nvme", "fp16", "float32")]
)
def test_what_makes_no_sense_of_offloading_is_refused(zero: str, dtype: DType, word: str) -> None:
    spec = WorkerSpec("m", zero=zero, dtype=dtype)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match=word):
        offloaded_dtype(spec, PreTrainedConfig(dtype=torch.float32), CPU)


def test_offloaded_weights_keep_the_checkpoints_own_dtype() -> None:
    for own in (torch.float32, torch.bfloat16):
        assert offloaded_dtype(WorkerSpec("m", zero="nvme"), PreTrainedConfig(dtype=own), CPU) == own
