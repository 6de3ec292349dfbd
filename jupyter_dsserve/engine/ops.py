"""DeepSpeed's operations in C++: built at their first use on a machine, once, whoever asks at the same time."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path

import torch

from jupyter_dsserve.protocol.errors import InvalidRequest

with redirect_stdout(sys.__stderr__):
    from deepspeed.accelerator import get_accelerator

log = logging.getLogger(__name__)

_COMPILERS = ("c++", "g++", "clang++")


def cache_folder() -> Path:
    """Where things of ours lie that can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jupyter_dsserve"


def load_op(builder: str, what_for: str, remedy: str = "apt-get install g++") -> None:
    """Build the operation of that DeepSpeed builder if need be (half a minute), and load it into this process.

    Does nothing where this accelerator needs none. Raises `InvalidRequest` that says what to install.
    """
    found = get_accelerator().create_op_builder(builder)
    if found is None or not hasattr(found, "load"):
        return
    # ninja comes with DeepSpeed and lies beside the interpreter, which is not always on the path.
    os.environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    if missing := _missing_tools(on_gpu=get_accelerator().device_name() == "cuda"):
        raise InvalidRequest(
            f"{what_for} needs DeepSpeed's {found.NAME}, which is built at its first use, and {missing} is not "
            f"installed: {remedy} (and pip install ninja), or load without"
        )
    try:
        with _cache() as folder, redirect_stdout(sys.stderr):
            if not (folder / found.NAME / f"{found.NAME}.so").exists():
                log.info(
                    "building DeepSpeed's %s for %s, once on this machine: up to some minutes", found.NAME, what_for
                )
            found.load(verbose=False)
    except Exception as fault:  # its builders raise what comes to hand
        raise InvalidRequest(
            f"{what_for} needs DeepSpeed's {found.NAME}, which could not be built or loaded ({str(fault)[-300:]}): "
            f"{remedy}, or load without"
        ) from fault


def _missing_tools(*, on_gpu: bool = False) -> str:
    if not shutil.which("ninja"):
        return "ninja"
    if not any(map(shutil.which, _COMPILERS)):
        return "a C++ compiler"
    from torch.utils import cpp_extension  # here: it takes a while, and few workers build anything

    # A CUDA build of torch brings what runs programs, and not what DeepSpeed's builders look for.
    return "the CUDA toolkit (set CUDA_HOME to its folder)" if on_gpu and cpp_extension.CUDA_HOME is None else ""


@contextmanager
def _cache() -> Iterator[Path]:
    """Inside, built operations lie in this folder of ours, and nobody else is in there.

    torch keeps others out with a file, and when a build is killed the file stays and everybody waits forever. The
    system takes a lock of its own back, and who holds it knows that any file is one that stayed.
    """
    folder = cache_folder() / "ops" / f"py{sys.version_info.major}{sys.version_info.minor}-torch{torch.__version__}"
    folder.mkdir(parents=True, exist_ok=True)
    before = os.environ.get("TORCH_EXTENSIONS_DIR")
    with (folder / "ours.lock").open("w") as ours:
        fcntl.flock(ours, fcntl.LOCK_EX)
        for stayed in folder.glob("*/lock"):
            stayed.unlink()
        os.environ["TORCH_EXTENSIONS_DIR"] = str(folder)
        try:
            yield folder
        finally:
            del os.environ["TORCH_EXTENSIONS_DIR"]
            if before is not None:
                os.environ["TORCH_EXTENSIONS_DIR"] = before
