"""`WorkerSpec`: everything that makes a version what it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Literal

# Gateway and worker must agree on it: raise it with every change of worker.proto or of WorkerSpec that an older
# worker would misread.
PROTOCOL_VERSION = 10
MAX_FAR_MESSAGE_BYTES = 256 * 1024 * 1024  # of a worker on another machine, to its gateway

DType = Literal["auto", "fp32", "bf16", "fp16"]
RunnerName = Literal["auto", "ragged", "padded", "encoder", "program", "toy"]
Quantize = Literal["", "int8", "int4"]
Zero = Literal["", "cpu", "nvme"]
Strategy = Literal["beside", "recreate"]  # how a swap loads the new version
Task = Literal["generate", "embed", "classify", "tensor"]

# Which runners do a task; the first is taken unless a version says otherwise.
RUNNERS: Mapping[Task, tuple[RunnerName, ...]] = {
    "generate": ("auto", "ragged", "padded", "toy"),
    "embed": ("encoder", "toy"),
    "classify": ("encoder",),
    "tensor": ("program",),
}


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """One immutable version: what a worker loads and how it runs it.

    ``model`` is ``builtin:NAME``, ``toy:…``, a directory, or a hub name, with ``@REVISION`` if it is to stay the same;
    for the task ``tensor`` a file. ``task``:
    ``generate`` text, ``embed`` or ``classify`` texts with an encoder, or run an exported program on named tensors
    (``tensor``). ``runner`` ``ragged`` computes all sequences in one pass, ``padded`` one after another, for models
    that ragged refuses; ``auto`` is the first that fits. ``max_sequences`` run at once; the rest wait. ``max_context``
    0 is the model's own; an encoder cuts longer texts. ``kv_bytes`` caps the ragged runner's memory for keys and
    values; 0 is half of what is free once the weights are loaded. ``max_step_tokens`` caps the tokens of one forward
    pass: long prompts are cut into chunks of it. ``num_threads`` 0 leaves one core to the notebook. ``device`` is
    ``auto``, ``cpu`` or ``cuda:N``. ``python`` is the interpreter of the worker; empty is the gateway's own. ``tp``
    processes share the model by tensor parallelism, each with its part of every layer. ``zero`` keeps the weights in
    host memory (``cpu``) or on a disk (``nvme``, in the folder ``nvme_dir``; empty is the user's cache) and brings
    each layer's when it computes.
    ``quantize`` keeps the weights of linear layers in so many bits. ``min_agreement``, 0 to 1: the share of tokens on
    which it must agree with plain transformers to become READY; None is 0.99 with ``tp`` or ``zero``, 0.9 with int8,
    0.7 with int4, and for others no comparison.
    """

    model: str
    task: Task = "generate"
    runner: RunnerName = "auto"
    dtype: DType = "auto"
    device: str = "auto"
    max_sequences: int = 64
    max_context: int = 0
    kv_bytes: int = 0
    max_step_tokens: int = 128
    num_threads: int = 0
    python: str = ""
    tp: int = 1
    zero: Zero = ""
    nvme_dir: str = ""
    quantize: Quantize = ""
    min_agreement: float | None = None

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> WorkerSpec:
        return WorkerSpec(**json.loads(text))

    @property
    def digest(self) -> str:
        """Names the content: equal specs have equal digests (first 16 hex digits of SHA-256)."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class WorkerLaunch:
    """The first line on a worker's stdin: who it is, where to dial, and what to load.

    ``model_path`` is the directory (or hub name) the spec's ``model`` stands for on this machine. ``content`` is what a
    worker that people started, on another machine maybe, has to find there; empty: nothing is compared.
    """

    replica: str
    gateway: str
    token: str
    model_path: str
    spec: WorkerSpec
    content: str = ""

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @staticmethod
    def from_json(text: str) -> WorkerLaunch:
        raw = json.loads(text)
        return WorkerLaunch(**(raw | {"spec": WorkerSpec(**raw["spec"])}))
