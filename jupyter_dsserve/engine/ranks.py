"""How the ranks of a tensor-parallel group find each other, and the operation that DeepSpeed builds for them."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path

import torch
from torch.distributed import HashStore, TCPStore  # type: ignore[attr-defined]

from jupyter_dsserve.engine.group import FollowerLaunch, RankGroup
from jupyter_dsserve.engine.ops import load_op

with redirect_stdout(sys.__stderr__):
    import deepspeed

_OP, _WHAT_FOR = "ShareMemCommBuilder", "tp on a CPU"
_SHARED = Path("/dev/shm")
_BUFFER = re.compile(r"deepspeed_allreduce_buffer_(\d+)_dsserve-(\d+)_\d+_\d+")  # our user, rank 0's process


def lead(group: RankGroup, device: torch.device) -> None:
    """Rank 0: open the store, send the others to it, and wait until all are there."""
    load_op(_OP, _WHAT_FOR)
    _remove_buffers(lambda pid: not _is_running(pid))
    store = TCPStore("127.0.0.1", 0, group.size, is_master=True, wait_for_workers=False)
    group.launch(store.port)
    _join(store, 0, group.size, device, (os.getpid(), store.port))
    # Whoever is here has mapped the buffers of all; without names they vanish with the processes, however these end.
    _remove_buffers(lambda pid: pid == os.getpid())


def follow(launch: FollowerLaunch, device: torch.device) -> None:
    """Any other rank: go to rank 0's store, and wait until all are there."""
    load_op(_OP, _WHAT_FOR)
    store = TCPStore("127.0.0.1", launch.port, launch.spec.tp, is_master=False)
    _join(store, launch.rank, launch.spec.tp, device, (launch.leader_pid, launch.port))


def least_of_ranks(number: int) -> int:
    """The least that any rank of this group brings; ``number`` itself where there is no group."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return number
    least = torch.tensor(number, device="cuda" if torch.distributed.get_backend() == "nccl" else "cpu")
    torch.distributed.all_reduce(least, torch.distributed.ReduceOp.MIN)
    return int(least)


def be_alone(device: torch.device) -> None:
    """A group of one rank, for what DeepSpeed does in groups only."""
    load_op(_OP, "zero")
    _join(HashStore(), 0, 1, device)


def _join(
    store: TCPStore | HashStore, rank: int, size: int, device: torch.device, name: tuple[int, int] | None = None
) -> None:
    """``name`` is rank 0's process and port: what the shared memory of several ranks is called after."""
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank if device.type == "cpu" else device.index),
    }
    if name:
        # Nobody dials these: DeepSpeed puts them into names. Without LOCAL_SIZE it makes no shared memory.
        os.environ |= {"LOCAL_SIZE": str(size), "MASTER_ADDR": f"dsserve-{name[0]}", "MASTER_PORT": str(name[1])}
    if sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    backend = "nccl" if device.type == "cuda" else "gloo"
    torch.distributed.init_process_group(backend, store=store, rank=rank, world_size=size)
    with redirect_stdout(sys.stderr):
        deepspeed.init_distributed(dist_backend=backend)
    torch.distributed.barrier()


def _remove_buffers(is_meant: Callable[[int], bool]) -> None:
    """Take the names of our groups' shared memory away, by the process of their rank 0.

    A group that is ended before all its ranks have met leaves 69 MB a rank.
    """
    for path in _SHARED.glob("deepspeed_allreduce_buffer_*"):
        name = _BUFFER.fullmatch(path.name)
        if name and int(name[1]) == os.getuid() and is_meant(int(name[2])):
            path.unlink(missing_ok=True)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
