"""Exporting to ONNX: in a process of its own, which may import torch."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Literal

from jupyter_dsserve.content import check_content, content_of
from jupyter_dsserve.notebook.address import is_remote
from jupyter_dsserve.notebook.views import Version
from jupyter_dsserve.parent import childs_environment
from jupyter_dsserve.protocol.errors import InvalidRequest, NotFound
from jupyter_dsserve.protocol.export import Exported, ExportSpec
from jupyter_dsserve.protocol.spec import Task

_END_S = 5.0  # in which it takes away what it had begun to write


def export_onnx(
    model: str | Path,
    out: str | Path,
    *,
    task: Task | Literal[""] = "",
    tolerance: float = 1e-4,
    allow_code: bool = False,
    python: str = "",
) -> Exported:
    """Write an encoder (``task`` embed or classify; a directory or a hub name) or a ``*.pt2`` (task tensor) as ONNX.

    It goes into the new directory ``out``, which loads again with ``load(…, model=out, task=task)``.

    What onnxruntime answers in calls of several shapes may differ from torch's answer by at most ``tolerance``, a share
    of the largest number in it; beyond that nothing is written. Without a ``task`` it is what the files say.
    ``allow_code``: a ``*.pt2`` may be loaded, which can run code from the file. ``python``: another interpreter that
    has this package. Raises `InvalidRequest` with the reason.
    """
    path = Path(model).expanduser()
    where = str(path.resolve()) if path.exists() else str(model)
    spec = ExportSpec(where, str(Path(out).expanduser().absolute()), task, tolerance, allow_code)
    line = [python or sys.executable, "-m", "jupyter_dsserve.engine.onnx_export"]
    try:
        process: subprocess.Popen[str] = subprocess.Popen(
            line,
            stdin=subprocess.PIPE,  # stays open: its end tells the process that we died
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=childs_environment(),
            text=True,
            start_new_session=True,  # an interrupt is ours to handle
        )
    except OSError as fault:
        raise InvalidRequest(f"{line[0]} cannot be started ({fault.strerror})", param="python") from None
    kept_open, process.stdin = process.stdin, None  # communicate would close it
    assert kept_open
    with process, kept_open:
        try:
            with contextlib.suppress(BrokenPipeError):  # it has ended already, and says why
                os.write(kept_open.fileno(), f"{spec.to_json()}\n".encode())
            said, logged = process.communicate()
        except BaseException:
            process.terminate()
            try:
                process.wait(_END_S)
            except subprocess.TimeoutExpired:
                process.kill()
            raise
    return _read(said, logged)


def onnx_of(
    version: Version,
    out: str | Path,
    *,
    gateway: str = "",
    is_own: bool = False,
    tolerance: float = 1e-4,
    allow_code: bool = False,
) -> Exported:
    """As `export_onnx`, of the model that ``version`` serves.

    ``gateway``: the URL that told of the version; a path from another machine is none here. ``is_own``: it is this
    kernel's own, and the worker's interpreter is started. That of a gateway whose URL was given is not: who runs it
    may be somebody else. Raises `Conflict` if something else lies there than was registered.
    """
    spec = version.spec
    if spec.runner == "toy" or spec.task == "generate":
        raise InvalidRequest(
            f"{version.id} has the task {spec.task} and the runner {spec.runner}: only encoders and exported programs "
            "become ONNX files"
        )
    is_path = spec.model.startswith(("/", "~", ".")) or Path(spec.model).exists()
    if is_path and is_remote(gateway):
        raise InvalidRequest(
            f"the model of {version.id}, {spec.model}, lies where the gateway at {gateway} runs, on another machine: "
            "export it there"
        )
    if is_path and not Path(spec.model).exists():
        raise NotFound(f"the model of {version.id}, {spec.model}, is not on this machine: export it where it lies")
    if is_path and version.content:
        check_content(version.id, version.content, content_of(spec.model), spec.model)
    python = spec.python if is_own else ""
    return export_onnx(spec.model, out, task=spec.task, tolerance=tolerance, allow_code=allow_code, python=python)


def _read(said: str, logged: str) -> Exported:
    last = said.strip().rpartition("\n")[2]
    if not last.startswith("{"):
        words = " / ".join(logged.strip().splitlines()[-3:])
        raise InvalidRequest(f"the export ended without an answer: {words or 'nor did it say a word'}")
    if "error" in (told := json.loads(last)):
        raise InvalidRequest(told["error"])
    return Exported.from_json(last)
