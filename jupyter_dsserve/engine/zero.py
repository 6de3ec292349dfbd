"""ZeRO-Inference: the weights lie on a disk or in host memory, and each layer's come when it computes.

DeepSpeed's stage 3 over a single rank, with its parameters offloaded, after ZeRO-Infinity (Rajbhandari et al. 2021).
"""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch

from jupyter_dsserve.engine.ops import cache_folder, load_op
from jupyter_dsserve.engine.ranks import be_alone
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.spec import WorkerSpec

with redirect_stdout(sys.__stderr__):
    import deepspeed

# For weights on their way between disk and memory: one that computes, one that is read, one to spare.
_NUM_BUFFERS = 3
_M_MMAP_THRESHOLD = -3
_IN_MEMORY = {"tmpfs", "ramfs"}


def offloaded(model: torch.nn.Module, where: str, nvme_dir: str, device: torch.device) -> Any:
    """DeepSpeed's engine around ``model``, whose parameters go to ``where``, ``cpu`` or ``nvme``, one by one.

    ``model`` should lie in mapped files: then never more than a few of its weights are in memory of ours. With ``nvme``
    they are in a folder of their own in ``nvme_dir`` (empty is the user's cache), which goes when this process does.
    Raises `InvalidRequest` for a folder that cannot take them, and where DeepSpeed's async_io cannot be built.
    """
    largest = max(parameter.numel() for parameter in model.parameters())
    offload: dict[str, Any] = {"device": where, "pin_memory": device.type == "cuda"}
    if where == "nvme":
        num_bytes = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        folder = _own_folder(Path(nvme_dir) if nvme_dir else cache_folder() / "nvme", num_bytes)
        load_op("AsyncIOBuilder", "zero=nvme", "apt-get install libaio-dev g++")
        offload |= {"nvme_path": str(folder), "buffer_size": largest, "buffer_count": _NUM_BUFFERS}
    be_alone(device)
    _give_back_at_once()
    config = _config(next(model.parameters()).dtype, offload, largest)
    # Only weights come to the device when they are wanted; what is computed from the config lies there.
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)
    with redirect_stdout(sys.stderr):
        # Left to itself, `initialize` offloads in bf16 on a CPU, whatever the model has.
        deepspeed.zero.Init(module=model, config_dict_or_path=config)
        engine, *_ = deepspeed.initialize(model=model, config=config)
    engine.eval()
    return engine


def offloaded_dtype(spec: WorkerSpec, config: Any, device: torch.device) -> torch.dtype:
    """The dtype of the checkpoint, which offloaded weights keep: to change it would take all of them into memory.

    Raises `InvalidRequest` for another one, and for what makes no sense on this device.
    """
    if spec.zero == "cpu" and device.type == "cpu":
        raise InvalidRequest(
            "zero is 'cpu', which keeps a GPU's weights in host memory, but this version computes on the CPU: leave it "
            "out, for weights in mapped files take no more",
            param="zero",
        )
    own: torch.dtype = config.dtype or torch.float32
    name = str(own).removeprefix("torch.")
    if spec.dtype not in ("auto", {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}.get(name)):
        raise InvalidRequest(
            f"dtype is {spec.dtype}, but zero {spec.zero!r} keeps the weights as they are in the checkpoint, {name}: "
            "leave dtype out",
            param="dtype",
        )
    if own == torch.float16 and device.type == "cpu":
        raise InvalidRequest(
            f"zero is {spec.zero!r}, and the checkpoint is in float16, which DeepSpeed does not compute on a CPU: save "
            "it in bfloat16 or float32, or leave zero out",
            param="zero",
        )
    return own


def _config(dtype: torch.dtype, offload: dict[str, Any], largest: int) -> dict[str, Any]:
    """DeepSpeed's settings for the least memory: nothing is fetched ahead, and nothing stays."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "fp16": {"enabled": dtype == torch.float16},
        "zero_optimization": {
            "stage": 3,
            "offload_param": offload,
            "memory_efficient_linear": False,  # for gradients, which nobody wants here
            "stage3_prefetch_bucket_size": 0,
            "stage3_max_live_parameters": largest,
            "stage3_max_reuse_distance": 0,
            "stage3_param_persistence_threshold": 0,
        },
        "aio": {"block_size": 2**20, "queue_depth": 8, "single_submit": False, "overlap_events": True},
    }


def _own_folder(parent: Path, num_bytes: int) -> Path:
    """A new folder in ``parent`` that is removed when this process has ended, whatever ends it."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(parent).free
        if free < num_bytes:
            raise _unfit(parent, f"has {free / 1e9:.1f} GB free, and the weights take {num_bytes / 1e9:.1f} GB")
        if (kind := _file_system(parent)) in _IN_MEMORY:
            raise _unfit(parent, f"is in memory ({kind}), where the weights would take more than they save")
        folder = Path(tempfile.mkdtemp(prefix="dsserve-", dir=parent))
    except OSError as fault:
        raise _unfit(parent, f"cannot be written ({fault.strerror})") from fault
    # Its stdin ends when we do. In a session of its own, so that no signal to ours reaches it.
    subprocess.Popen(
        ["/bin/sh", "-c", 'read -r _; rm -rf -- "$1"', "sh", str(folder)], stdin=subprocess.PIPE, start_new_session=True
    )
    return folder


def _unfit(folder: Path, what: str) -> InvalidRequest:
    return InvalidRequest(f"nvme_dir {str(folder)!r} {what}: name a folder on a disk with room", param="nvme_dir")


def _file_system(folder: Path) -> str:
    """The type of the file system that ``folder`` lies on; empty where the system does not say."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return ""
    place = folder.resolve()
    above = [mount for mount in mounts if place.is_relative_to(mount[1])]
    return max(above, key=lambda mount: len(mount[1]))[2] if above else ""


def _give_back_at_once() -> None:
    """Weights that are done with go back to the system. By itself glibc learns to keep blocks of their size."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_M_MMAP_THRESHOLD, 2**20)
