"""Where a version's weights are: checks a ``model`` before anything is started, by looking at files only.

What cannot be seen in files (a hub name that does not exist, a model that computes differently when packed) the
worker finds out, and the version is FAILED with its reason.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jupyter_dsserve.adapter import Adapter
from jupyter_dsserve.demo import builtin_names, builtin_path
from jupyter_dsserve.protocol.combinations import check_combination, check_split
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.export import ENCODER_OUTPUT, is_onnx
from jupyter_dsserve.protocol.spec import RUNNERS, RunnerName, Task, WorkerSpec
from jupyter_dsserve.protocol.toy import ToySettings

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_REVISION = re.compile(r"[\w.-][\w./-]{0,199}")
_MAX_HUB_NAME = 96  # the hub's own limit
_GGUF = ".gguf"
_PROGRAMS = (".pt2", ".onnx")
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_CLASSIFIER = "ForSequenceClassification"
_CAUSAL = re.compile(r"(ForCausalLM|LMHeadModel|ForConditionalGeneration)$")


def model_path(model: str, runner: RunnerName, task: Task = "generate", *, allow_code: bool = False) -> str:
    """The directory or hub name that ``model`` stands for; for the task ``tensor`` the file.

    Raises `InvalidRequest`: a runner that does not do the task, an unknown builtin, a path that does not exist, a
    directory without a model in it, weights that are pickle, or an architecture that does not do the task.
    """
    if runner not in RUNNERS[task]:
        raise InvalidRequest(
            f"runner {runner!r} does not do the task {task!r}: leave it out, or use {' or '.join(RUNNERS[task])}",
            param="runner",
        )
    is_toy = model.startswith("toy:")
    if is_toy != (runner == "toy"):
        raise _refused(f"model {model!r} and runner {runner!r} do not go together: toy:… models have the toy runner")
    if is_toy:
        ToySettings.parse(model)
        return model
    if task == "tensor":
        return _program(model, allow_code)
    if model.startswith("builtin:"):
        return str(_builtin(model.removeprefix("builtin:")))
    if _is_directory(model):
        path = Path(canonical(model))
        try:
            _check_directory(path, task)
        except OSError as fault:
            raise _refused(f"model {model!r} cannot be read ({fault.strerror}): check its permissions") from None
        return str(path)
    if model.endswith(_GGUF) and _is_file(model) and task == "generate":
        return canonical(model)
    if os.path.isfile(model):
        raise _refused(
            f"model {model!r} is a file: give the directory that holds config.json and *.safetensors, or a *.gguf"
        )
    name, sign, revision = model.partition("@")
    if not _is_hub_name(name) or bool(sign) != bool(_REVISION.fullmatch(revision)):
        raise _refused(
            f"model {model!r} does not exist here: give a directory, a hub name such as org/name or "
            "org/name@REVISION, or one of " + ", ".join(f"builtin:{name}" for name in builtin_names())
        )
    return model


def check_can_load(path: str, spec: WorkerSpec) -> None:
    """Raises `InvalidRequest` for settings that do not go together, or not with the model at ``path``, and for an
    interpreter that cannot be run.

    Of a hub name only the worker sees the config.
    """
    check_combination(spec)
    _check_python(spec.python)
    adapter = Adapter.read(Path(path))
    if spec.zero and (adapter or path.endswith(_GGUF)):
        raise InvalidRequest(
            f"zero is {spec.zero!r}, but model {spec.model!r} is {'an adapter' if adapter else 'a GGUF file'}, whose "
            "weights are made in memory first: save it whole as safetensors, or leave zero out",
            param="zero",
        )
    if os.path.isdir(path):
        base = Path(adapter.base if adapter else path)
        if base.is_dir():  # else it is a hub name
            check_split(spec.model, _config(base), spec.tp)


def _check_python(python: str) -> None:
    """Whether it is a Python that has us only its start shows."""
    if python and shutil.which(python) is None:
        why = "cannot be run" if os.path.exists(python) else "does not exist here"
        raise InvalidRequest(
            f"the interpreter {python!r} {why}: give the path of a Python that has jupyter_dsserve installed",
            param="python",
        )


def canonical(model: str) -> str:
    """``model`` as it means the same wherever it is read: a directory, or a file that can be a model, by its absolute
    path, the rest as it is."""
    is_path = _is_directory(model) or (model.endswith((*_PROGRAMS, _GGUF)) and _is_file(model))
    return str(Path(model).expanduser().resolve()) if is_path else model


def _program(model: str, allow_code: bool) -> str:
    """The program's file: ``model`` itself, or the only one in the directory ``model``."""
    path = Path(canonical(model))
    if _is_directory(model):
        found = sorted(p for p in path.iterdir() if p.name.endswith(_PROGRAMS))
        if len(found) != 1:
            names = ", ".join(p.name for p in found) or "none"
            raise _refused(f"model {model!r} holds {names} of *.pt2 and *.onnx: name the file")
        path = found[0]
    elif not (model.endswith(_PROGRAMS) and _is_file(model)):
        raise _refused(f"model {model!r} is no *.pt2 or *.onnx file here: the task tensor wants one of them")
    if path.suffix == ".pt2" and not allow_code:
        raise _refused(
            f"model {str(path)!r} is a torch.export program, and loading one can run code from the file: start the "
            "gateway with --allow-code (in Jupyter: DSServeExtension.allow_code) if you trust it, or export it to ONNX"
        )
    return str(path)


def _is_file(model: str) -> bool:
    try:
        return Path(model).expanduser().is_file()
    except (OSError, RuntimeError):
        return False


def _is_directory(model: str) -> bool:
    try:
        return bool(model) and Path(model).expanduser().is_dir()
    except (OSError, RuntimeError):  # too long a name; no such user's home
        return False


def _builtin(name: str) -> Path:
    if name not in builtin_names():
        raise _refused(f"model 'builtin:{name}' is not known: there are {', '.join(builtin_names())}")
    return builtin_path(name)


def _check_directory(path: Path, task: Task) -> None:
    if adapter := Adapter.read(path):
        _check_adapter(adapter, task)
        return
    architectures = _config(path).get("architectures") or []
    if task == "generate":
        _check_generates(path, architectures)
    elif task == "classify" and not any(str(a).endswith(_CLASSIFIER) for a in architectures):
        raise _refused(
            f"model {str(path)!r} is a {', '.join(map(str, architectures)) or 'model without architectures'}, which "
            f"classifies no texts: the task classify wants a …{_CLASSIFIER}"
        )
    is_encoder = task in ENCODER_OUTPUT
    if not any(path.glob("*.safetensors")) and not (is_encoder and is_onnx(path)):
        _refuse_without_safetensors(path)


def _check_adapter(adapter: Adapter, task: Task) -> None:
    if task != "generate":
        raise _refused(
            f"model {str(adapter.path)!r} is a PEFT adapter: only for the task generate are they merged into their base"
        )
    if Path(adapter.base).is_dir():
        _check_directory(Path(adapter.base), task)
    elif not _is_hub_name(adapter.base):
        raise _refused(
            f"model {str(adapter.path)!r} is a PEFT adapter for {adapter.base!r}, which is no directory here, seen "
            "from it, and no hub name: write where its base lies into its adapter_config.json"
        )


def _is_hub_name(name: str) -> bool:
    return not name.startswith((".", "/", "~")) and len(name) <= _MAX_HUB_NAME and bool(_HUB_NAME.fullmatch(name))


def _check_generates(path: Path, architectures: Sequence[object]) -> None:
    if architectures and not any(_CAUSAL.search(str(a)) for a in architectures):
        raise _refused(
            f"model {str(path)!r} is a {', '.join(map(str, architectures))}, which does not generate text: "
            "the task generate wants a causal language model (…ForCausalLM); encoders load with task embed or classify"
        )


def _config(path: Path) -> dict[str, Any]:
    if not (path / "config.json").is_file():
        raise _refused(f"model {str(path)!r} holds no config.json: give the directory of a saved transformers model")
    try:
        config = json.loads((path / "config.json").read_text())
    except ValueError as fault:
        raise _refused(f"{path / 'config.json'} is not JSON: {fault}") from None
    if not isinstance(config, dict):
        raise _refused(f"{path / 'config.json'} is not a JSON object: give the directory of a saved transformers model")
    return config


def _refuse_without_safetensors(path: Path) -> None:
    pickles = sorted(p.name for pattern in _PICKLES for p in path.glob(pattern))
    if pickles:
        raise _refused(
            f"model {str(path)!r} has its weights as pickle ({pickles[0]}), and loading pickle runs code from the "
            "file: save it with safetensors (model.save_pretrained(DIR)) and give that directory"
        )
    raise _refused(f"model {str(path)!r} holds no *.safetensors: give a directory with weights")


def _refused(message: str) -> InvalidRequest:
    return InvalidRequest(message, param="model")
