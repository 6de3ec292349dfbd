"""``python -m jupyter_dsserve.engine.onnx_export``: an encoder or a torch.export program becomes an ONNX file.

The exporter is torch's own (`torch.onnx.export`, dynamo). What it made is called in onnxruntime, and must answer as
torch does. stdin's first line is an `ExportSpec`; stdout's last is an `Exported`, or ``{"error": …}``.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from jupyter_dsserve.engine.batcher import Arrays
from jupyter_dsserve.engine.exported import ExportedProgram
from jupyter_dsserve.engine.hub import snapshot_at
from jupyter_dsserve.engine.onnx import OnnxProgram
from jupyter_dsserve.parent import launch_line, on_parent_end
from jupyter_dsserve.protocol.errors import DSServeError, EngineFailure, InvalidRequest
from jupyter_dsserve.protocol.export import ENCODER_OUTPUT, FILE, TYPES, Exported, ExportSpec
from jupyter_dsserve.protocol.spec import Task, WorkerSpec
from jupyter_dsserve.protocol.tensors import DATATYPES, TensorInfo

if TYPE_CHECKING:
    from jupyter_dsserve.engine.encoder import Head

# Below protobuf's limit of 2 GiB a file; larger weights lie beside it.
_MAX_INSIDE_BYTES = 1_500_000_000
_LONGEST_CHECK = 300  # tokens: over the windows of local attention, and still quick
# What a load reads besides the weights.
_BESIDE = (
    *("config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.txt", "vocab.json", "merges.txt", "*.model", "chat_template.jinja"),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
)

Probe = Mapping[str, NDArray[Any]]


class _Subject:
    """What is exported: ``program`` of ONNX, ``answer`` of torch for each of ``probes``, and the files a load needs
    besides."""

    def __init__(
        self, program: Any, answer: Callable[[Probe], Arrays], probes: Sequence[Probe], files: dict[str, Path]
    ) -> None:
        self.program, self.answer, self.probes, self.files = program, answer, probes, files


def export(spec: ExportSpec) -> Exported:
    """Write ``spec.out``: the ONNX file, and an encoder's tokenizer and pooling files.

    Raises `InvalidRequest` for what is not exported, and `EngineFailure` if onnxruntime answers otherwise than torch;
    then nothing is written.
    """
    out = Path(spec.out).expanduser().absolute()
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InvalidRequest(f"{out} is there already, and not empty: name a new directory", param="out")
    if not 0 < spec.tolerance < 1:
        raise InvalidRequest(f"tolerance is {spec.tolerance}: give a share over 0 and below 1", param="tolerance")
    torch.set_num_threads(max(1, (os.cpu_count() or 1) - 1))
    task, path = _task_and_path(spec)
    subject = _program(path) if task == "tensor" else _encoder(path, task)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(prefix=f".{out.name}-", dir=out.parent) as folder:
            made = Path(folder) / "made"  # one that was broken off is never seen under its name
            made.mkdir()
            exported = _written(subject, task, made, out, spec.tolerance)
            made.replace(out)
    except OSError as fault:
        raise InvalidRequest(
            f"{out} cannot be written ({fault.strerror or fault}): give another --out", param="out"
        ) from fault
    return exported


def _task_and_path(spec: ExportSpec) -> tuple[Task, str]:
    """Which task it is, and the directory or file to read."""
    model = _only_program(spec.model) if spec.task == "tensor" else spec.model
    suffix = os.path.splitext(model)[1]
    if suffix == ".onnx":
        raise InvalidRequest(f"model {spec.model} is an ONNX file already: load it as it is", param="model")
    if suffix == ".pt2" or spec.task == "tensor":
        if suffix != ".pt2" or spec.task not in ("", "tensor") or not os.path.isfile(model):
            raise InvalidRequest(
                f"model {spec.model} is no *.pt2 file here: for the task tensor what torch.export.save wrote becomes "
                "ONNX; encoders do with the task embed or classify",
                param="model",
            )
        if not spec.allow_code:
            raise InvalidRequest(
                f"model {spec.model} is a torch.export program, and loading one can run code from the file: add "
                "--allow-code (allow_code=True) if you trust it",
                param="allow_code",
            )
        return "tensor", model
    if spec.task not in ("", *ENCODER_OUTPUT):
        raise InvalidRequest(
            f"task is {spec.task}: encoders (embed, classify) and programs (tensor) become ONNX files", param="task"
        )
    if not os.path.exists(spec.model) and (spec.model.startswith((".", "/", "~")) or ":" in spec.model):
        raise InvalidRequest(
            f"model {spec.model} does not exist here: give an encoder's directory or hub name, or a *.pt2 file",
            param="model",
        )
    is_named = "@" in spec.model or os.path.exists(spec.model)
    path = snapshot_at(spec.model if is_named else f"{spec.model}@main")
    if spec.task:
        return spec.task, path
    from jupyter_dsserve.engine.encoder import encoder_config

    named = encoder_config(path, is_classifier=False).architectures or []
    return "classify" if any(name.endswith("ForSequenceClassification") for name in named) else "embed", path


def _only_program(model: str) -> str:
    """The file that a directory with one stands for, as it does in a load."""
    found = sorted(Path(model).glob("*.pt2")) if os.path.isdir(model) else []
    return str(found[0]) if len(found) == 1 else model


# ---- encoders


class _Whole(torch.nn.Module):
    """Token ids and their mask, filled up on the right, to a row a text: what `EncoderRunner` computes."""

    def __init__(self, model: torch.nn.Module, head: Head, stages: tuple[torch.nn.Module, ...]) -> None:
        super().__init__()
        self.model = model
        self.stages = torch.nn.ModuleList(stages)  # of ``head``: its weights are this module's
        self._head = head

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        types = {} if token_type_ids is None else {TYPES: token_type_ids}
        found = self.model(input_ids=input_ids, attention_mask=attention_mask, **types)
        return self._head(found, attention_mask.sum(dim=1))


def _encoder(path: str, task: Task) -> _Subject:
    # Only here: to export a program takes neither transformers nor DeepSpeed.
    from jupyter_dsserve.engine.encoder import activation_of, encoder_config, encoder_model, longest_text, takes_types
    from jupyter_dsserve.engine.hf_tokenizer import HFTokenizer
    from jupyter_dsserve.engine.pooling import Pooling

    is_classifier = task == "classify"
    config = encoder_config(path, is_classifier)
    pooling = Pooling() if is_classifier else Pooling.read(path)
    model = encoder_model(path, config, torch.float32, is_classifier, lambda _: None)
    vocab_size = model.get_input_embeddings().num_embeddings
    tokenizer = HFTokenizer.load(path, frozenset(), vocab_size)
    max_length = longest_text(WorkerSpec(path, task=task, runner="encoder"), model, pooling, tokenizer)
    if is_classifier:
        name, activation = activation_of(config, path)
        note = f"{name} over {config.num_labels} labels"
        whole = _Whole(model, lambda out, _lengths: activation(out.logits.float()), ())
    else:
        note = pooling.note
        whole = _Whole(model, lambda out, lengths: pooling(out.last_hidden_state, lengths), pooling.stages)
    whole.eval()
    output = ENCODER_OUTPUT[task]
    has_types = is_classifier and tokenizer.has_types and takes_types(model)
    probes = list(_texts(max_length, vocab_size, config.pad_token_id or 0, has_types=has_types))
    # The answers of the model as it is served, before its attention is one that has a form in ONNX.
    answers = {id(probe): {output: _called(whole, probe)} for probe in probes}
    model.set_attn_implementation("eager")
    axes = {0: "batch", 1: "length"}
    example = tuple(map(torch.from_numpy, probes[1].values()))
    program = _torch_onnx(whole, example, input_names=list(probes[1]), dynamic_shapes=(axes,) * len(example))
    _name_outputs(program, [output])
    facts = {"task": task, "max_length": max_length, "vocab_size": vocab_size, "note": note}
    program.model.metadata_props.update({f"dsserve.{name}": str(value) for name, value in facts.items()})
    return _Subject(program, lambda probe: answers[id(probe)], probes, _beside(path))


def _called(whole: _Whole, probe: Probe) -> NDArray[Any]:
    with torch.no_grad():
        return whole(*map(torch.from_numpy, probe.values())).numpy()


def _texts(max_length: int, vocab_size: int, pad: int, *, has_types: bool) -> Iterator[Probe]:
    """Batches of random ids, each text of them shorter than the one before; with ``has_types`` of pairs."""
    draw = np.random.default_rng(0)
    longest = min(max_length, _LONGEST_CHECK)
    for num_texts, length in ((1, 1), (2, min(7, longest)), (3, (longest + 1) // 2), (2, longest)):
        lengths = np.maximum(1, length - np.arange(num_texts) * (length // 3 + 1))
        mask = (np.arange(length) < lengths[:, None]).astype(np.int64)
        ids = draw.integers(0, vocab_size - 1, (num_texts, length))
        ids += ids >= pad  # any but the one that fills up
        probe = {"input_ids": np.where(mask == 1, ids, pad).astype(np.int64), "attention_mask": mask}
        is_second = np.arange(length) >= (lengths[:, None] + 1) // 2
        yield probe | ({TYPES: is_second * mask} if has_types else {})


def _beside(path: str) -> dict[str, Path]:
    """The files to copy, by where they go."""
    from jupyter_dsserve.engine.pooling import named_stages  # here: it needs transformers

    folder = Path(path)
    found = {file.name: file for pattern in _BESIDE for file in folder.glob(pattern)}
    for _, place in named_stages(path) or ():
        if not place.parts:  # the transformer's: what it needs is in the list above
            continue
        inside = (file for file in (folder / place).glob("*") if file.suffix in (".json", ".safetensors"))
        found |= {str(file.relative_to(folder)): file for file in inside}
    return found


# ---- programs


def _program(path: str) -> _Subject:
    reference = ExportedProgram(path, "cpu", torch.get_num_threads())
    program = torch.export.load(path)
    made = _torch_onnx(program, ())
    _name_outputs(made, [info.name for info in reference.outputs])
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    draw = np.random.default_rng(0)
    probes = [
        {info.name: _random(info, _shape(values[info.name], program, size), draw) for info in reference.inputs}
        for size in (1, 2, 5)
    ]
    return _Subject(made, reference, probes, {})


def _shape(value: Any, program: Any, size: int) -> list[int]:
    """Of an input, where axes that may have any size have ``size``, or the next that the program allows."""
    ranges = [program.range_constraints.get(axis.node.expr) for axis in value.shape if not isinstance(axis, int)]
    sizes = iter(min(max(size, int(r.lower)), int(min(r.upper, 1 << 30))) if r else size for r in ranges)
    return [axis if isinstance(axis, int) else next(sizes) for axis in value.shape]


def _random(info: TensorInfo, shape: list[int], draw: np.random.Generator) -> NDArray[Any]:
    dtype = DATATYPES[info.datatype]
    # Whole numbers may be places in a table: 0 and 1 are in any.
    numbers = draw.standard_normal(shape) if dtype.kind == "f" else draw.integers(0, 2, shape)
    return np.asarray(numbers).astype(dtype)


# ---- both


def _torch_onnx(module: Any, example: tuple[torch.Tensor, ...], **settings: Any) -> Any:
    try:
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return torch.onnx.export(module, example, dynamo=True, verbose=False, **settings)
    except ImportError as fault:  # torch names the package only
        raise InvalidRequest(f"{fault}: pip install 'jupyter_dsserve[onnx]'") from fault
    except Exception as fault:  # of torch's and onnxscript's own kinds, and many
        first: BaseException = fault
        while first.__cause__:
            first = first.__cause__
        said = str(first).strip().splitlines() or [""]
        raise InvalidRequest(
            f"torch.onnx cannot export the model: {type(first).__name__}: {said[0]}", param="model"
        ) from fault


def _name_outputs(program: Any, names: list[str]) -> None:
    """An inner value may have one of the names already: torch calls what an embedding gives ``embedding``."""
    graph = program.model.graph
    outputs = {id(value) for value in graph.outputs}
    for node in graph:
        for value in node.outputs:
            if value.name in names and id(value) not in outputs:
                value.name = f"{value.name}_inside"
    for value, name in zip(graph.outputs, names, strict=True):
        value.name = name


def _written(subject: _Subject, task: Task, folder: Path, out: Path, tolerance: float) -> Exported:
    initializers = subject.program.model.graph.initializers.values()
    is_large = sum(value.const_value.nbytes for value in initializers) > _MAX_INSIDE_BYTES
    subject.program.save(str(folder / FILE), external_data=is_large)
    program = OnnxProgram(str(folder / FILE), "cpu", torch.get_num_threads())
    difference, share = _difference(subject, program)
    if not share <= tolerance:
        raise EngineFailure(
            f"onnxruntime answers otherwise than torch: off by {difference:.2g}, {share:.2g} of the largest number, "
            f"where {tolerance:g} is allowed: nothing was written; serve the model as it is, or allow more"
        )
    for name, file in subject.files.items():
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copyfile(file, folder / name)
    return Exported(
        str(out / FILE),
        task,
        tuple(info.name for info in program.inputs),
        tuple(info.name for info in program.outputs),
        sum(file.stat().st_size for file in folder.glob(f"{FILE}*")),
        len(subject.probes),
        difference,
        share,
    )


def _difference(subject: _Subject, program: OnnxProgram) -> tuple[float, float]:
    """The most that an output is off, and that as a share of the largest number in it; infinite for another shape."""
    worst, worst_share = 0.0, 0.0
    for probe in subject.probes:
        expected = subject.answer(probe)
        try:
            found = program(probe)
        except Exception as fault:  # it has an exception class for each of its status codes
            raise EngineFailure(f"onnxruntime fails where torch answers: {fault}") from fault
        for name, wanted in expected.items():
            own, theirs = np.asarray(wanted, dtype=np.float64), np.asarray(found[name], dtype=np.float64)
            if own.shape != theirs.shape or (np.isfinite(own) != np.isfinite(theirs)).any():
                return np.inf, np.inf
            own, theirs = (np.where(np.isfinite(a), a, 0) for a in (own, theirs))
            off = float(np.abs(own - theirs).max(initial=0.0))
            worst = max(worst, off)
            worst_share = max(worst_share, off / max(float(np.abs(own).max(initial=0.0)), 1e-6))
    return worst, worst_share


def main() -> None:
    logging.basicConfig(stream=sys.stderr, format="%(levelname)s: %(message)s")
    spec = ExportSpec.from_json(launch_line("people start `jupyter dsserve export onnx`"))
    # By an exception, so that the half of a directory goes too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    on_parent_end(lambda: os.kill(os.getpid(), signal.SIGTERM))
    try:
        told = export(spec).to_json()
    except DSServeError as fault:
        told = json.dumps({"error": fault.message})
    print(told, flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
