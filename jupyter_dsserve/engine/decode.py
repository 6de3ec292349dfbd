"""Attention of decoding sequences on a CPU, by a kernel of our own (``decode_attention.c``).

`scaled_dot_product_attention` is made for many queries of like length: with one query a sequence it spends most of its
time around small products, and lets everybody in a call pay for the longest. Measured on one core, 2 K/V heads of 64
with 3 queries each, in µs a layer, 1 / 16 / 64 sequences of 128 tokens: 17 / 142 / 1231 there, 6 / 57 / 641 here (an
EPYC with AVX-512; a Xeon of the Sapphire Rapids kind: 9 / 75 here). A sequence's answer is the same bits whoever
decodes beside it.

The kernel is compiled at its first use on a machine, in some seconds, for just its processor. Where there is no C
compiler everything goes as before.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import torch

from jupyter_dsserve.engine.ops import cache_folder

log = logging.getLogger(__name__)

_SOURCE = Path(__file__).with_name("decode_attention.c")
_MULTIPLE = 16  # of numbers in a head: those of the widest registers
_MAX_GROUP = 8  # as in the source
_DTYPES = (torch.float32, torch.bfloat16)
_COMPILE = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC", "-c"]


class _Call(ctypes.Structure):
    """``Call`` of the source."""

    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "slots", "positions", "sinks", "scores")),
        *((name, ctypes.c_int64) for name in ("num_rows", "kv_heads", "group", "key_dim", "value_dim", "max_keys")),
        *((name, ctypes.c_int64) for name in ("q_head_stride", "q_row_stride")),
        *((name, ctypes.c_int64) for name in ("k_head_stride", "k_slot_stride", "v_head_stride", "v_slot_stride")),
        *((name, ctypes.c_int64) for name in ("window", "is_bf16", "num_threads")),
        *((name, ctypes.c_float) for name in ("scale", "softcap")),
    ]


class Decoding:
    """The decoding rows of a step, which come first in it: ``slots`` and ``positions`` have one entry each."""

    def __init__(self, slots: list[int], positions: list[int]) -> None:
        self.num_rows = len(slots)
        self._slots = torch.tensor(slots, dtype=torch.int64)
        self._positions = torch.tensor(positions, dtype=torch.int64)
        self._max_keys = max(positions) + 1
        self._scores = torch.empty(torch.get_num_threads() * _MAX_GROUP * self._max_keys)

    def attend(
        self,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor,
        window: int | None,
        scaling: float | None,
        softcap: float | None,
        sinks: torch.Tensor | None,
    ) -> None:
        """Fill the first rows of ``out``, ``[T, heads, value_dim]``.

        ``query`` is ``[1, heads, T, key_dim]``; ``keys`` and ``values`` are the cache's, ``[kv_heads, slots, stride,
        dim]``.
        """
        kernel = load_kernel()
        assert kernel is not None
        query = query if query.stride(3) == 1 else query.contiguous()
        kept = None if sinks is None else sinks.float().contiguous()
        call = _Call(
            query.data_ptr(),
            keys.data_ptr(),
            values.data_ptr(),
            out.data_ptr(),
            self._slots.data_ptr(),
            self._positions.data_ptr(),
            None if kept is None else kept.data_ptr(),
            self._scores.data_ptr(),
            self.num_rows,
            keys.shape[0],
            query.shape[1] // keys.shape[0],
            keys.shape[3],
            values.shape[3],
            self._max_keys,
            query.stride(1),
            query.stride(2),
            keys.stride(0),
            keys.stride(1),
            values.stride(0),
            values.stride(1),
            window or 0,
            query.dtype == torch.bfloat16,
            torch.get_num_threads(),
            scaling or query.shape[3] ** -0.5,
            softcap or 0.0,
        )
        kernel(ctypes.byref(call))


def can_decode(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> bool:
    """Whether the kernel knows these shapes, and is there. All have one dtype."""
    return (
        query.device.type == "cpu"
        and query.dtype in _DTYPES
        and query.dtype == keys.dtype == values.dtype
        and query.shape[1] // keys.shape[0] <= _MAX_GROUP
        and keys.shape[3] % _MULTIPLE == values.shape[3] % _MULTIPLE == 0
        and load_kernel() is not None
    )


@cache
def load_kernel() -> Callable[[object], None] | None:
    """The compiled function; None, with the reason in the log, where it cannot be made."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        log.info("no C compiler: decoding goes through torch's attention, which is slower")
        return None
    try:
        library = ctypes.CDLL(str(_compiled(compiler)))
    except (OSError, subprocess.SubprocessError) as fault:
        reason = fault.stderr.decode() if isinstance(fault, subprocess.CalledProcessError) else fault
        log.info("the decoding kernel could not be made (%s): decoding goes through torch's attention", reason)
        return None
    function: Callable[[object], None] = library.decode_attention
    return function


def _compiled(compiler: str) -> Path:
    """The library of this source for this processor, made unless it is there."""
    folder = cache_folder() / "kernels"
    what = [_SOURCE.read_text(), compiler, *_COMPILE, _processor()]
    library = folder / f"decode-{hashlib.sha256(repr(what).encode()).hexdigest()[:16]}.so"
    if library.exists():
        return library
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made, linked = Path(work, "decode.o"), Path(work, "decode.so")
        _run(compiler, *_COMPILE, str(_SOURCE), "-o", str(made))
        # Linked apart: with -ffast-math here the library would change how the whole process rounds. OpenMP's names are
        # left to be found in torch's own copy, or there would be two pools of threads.
        _run(compiler, "-shared", str(made), "-o", str(linked), "-lm")
        linked.replace(library)  # at once: another worker may make it too
    return library


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, timeout=120, stdin=subprocess.DEVNULL)


def _processor() -> str:
    """What tells processors apart that do not run one another's code (a home directory may serve several machines)."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line for line in lines if line.startswith(("flags", "Features"))), platform.machine())
