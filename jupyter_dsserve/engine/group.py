"""Rank 0's hold on the other ranks of a tensor-parallel group: it starts them, tells them each call, and ends with any.

DeepSpeed's launcher is not used: it gives every job port 29500, and nothing tells its children that it died. Followers
wait on a pipe and never in a collective, where an idle one would die of its timeout; the pipe's end is rank 0's death.
Imports no torch, so that the processes start before rank 0 pays for that.
"""

from __future__ import annotations

import json
import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import wraps
from typing import Any, TypeVar

from jupyter_dsserve.protocol.errors import DSServeError, EngineFailure, error_named
from jupyter_dsserve.protocol.spec import WorkerSpec

Method = TypeVar("Method", bound=Callable[..., Any])

log = logging.getLogger(__name__)

# While loading, rank 0 may be about to say itself what is wrong: that says more than the death of another.
_LAST_WORDS_S = 1.0


@dataclass(frozen=True, slots=True)
class FollowerLaunch:
    """The first line on a follower's stdin. ``port``: of rank 0's store on the loopback address."""

    rank: int
    port: int
    leader_pid: int
    model_path: str
    spec: WorkerSpec

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @staticmethod
    def from_json(text: str) -> FollowerLaunch:
        raw = json.loads(text)
        return FollowerLaunch(**(raw | {"spec": WorkerSpec(**raw["spec"])}))


BY_ALL_RANKS: set[str] = set()


def by_all_ranks(method: Method) -> Method:
    """A method of a runner that the followers call with the same arguments whenever rank 0 does.

    The runner's ``group`` is None on followers, and where there is only one rank.
    """

    @wraps(method)
    def call(runner: Any, *arguments: Any) -> Any:
        if runner.group is None:
            return method(runner, *arguments)
        with runner.group.together(method.__name__, *arguments):
            return method(runner, *arguments)

    BY_ALL_RANKS.add(method.__name__)
    return call  # type: ignore[return-value]


class RankGroup:
    """Ranks 1 to ``spec.tp - 1``, each a process whose stdin we write and whose stdout we watch.

    Make it in the main thread: the kernel's parent-death signal follows the thread that started the child.
    ``on_refused`` is called, in a thread of the group's, with what a follower says is wrong with the load. A follower
    that ends without a word ends this process: a collective without it would wait for ten minutes.
    """

    rank = 0

    def __init__(self, spec: WorkerSpec, model_path: str, on_refused: Callable[[DSServeError], object]) -> None:
        self._spec = spec
        self._model_path = model_path
        self._on_refused = on_refused
        self._is_serving = False
        self._followers = [_start() for _ in range(1, spec.tp)]
        for rank, follower in enumerate(self._followers, 1):
            threading.Thread(target=self._watch, args=(rank, follower), name=f"rank-{rank}", daemon=True).start()

    @property
    def size(self) -> int:
        return self._spec.tp

    @property
    def pids(self) -> list[int]:
        return [follower.pid for follower in self._followers]

    def launch(self, port: int) -> None:
        """Tell every follower what to load, and where rank 0's store listens."""
        for rank, follower in enumerate(self._followers, 1):
            line = FollowerLaunch(rank, port, os.getpid(), self._model_path, self._spec).to_json()
            _write(follower, line.encode() + b"\n")

    def serving(self) -> None:
        """The load is over: from now on the death of a follower is ours at once."""
        self._is_serving = True

    @contextmanager
    def together(self, method: str, *arguments: object) -> Iterator[None]:
        """Every follower calls ``method`` of its runner while the block does the same here.

        A block that raises leaves the followers in a collective that nobody joins: it ends them, and so the group.
        """
        call = pickle.dumps((method, arguments))
        for follower in self._followers:
            _write(follower, len(call).to_bytes(8, "little") + call)
        try:
            yield
        except BaseException:
            self.end()
            raise

    def end(self) -> None:
        for follower in self._followers:
            follower.kill()

    def _watch(self, rank: int, follower: subprocess.Popen[bytes]) -> None:
        assert follower.stdout is not None
        said = follower.stdout.read()  # until it ends
        code = follower.wait()
        if said:
            self._on_refused(error_named(**json.loads(said)))
            return
        how = f"signal {-code}" if code < 0 else f"exit code {code}"
        log.error("rank %d of %d (process %d) ended with %s: the group ends", rank, self._spec.tp, follower.pid, how)
        if not self._is_serving:
            time.sleep(_LAST_WORDS_S)
        logging.shutdown()
        os._exit(1)


def read_call() -> tuple[str, tuple[object, ...]] | None:
    """A follower's next call, as `RankGroup.together` wrote it; None when rank 0 is gone."""
    size = _read_exactly(8)
    data = _read_exactly(int.from_bytes(size, "little")) if size else None
    return pickle.loads(data) if data else None


def _read_exactly(num_bytes: int) -> bytes | None:
    data = bytearray()
    while len(data) < num_bytes:
        piece = os.read(0, num_bytes - len(data))
        if not piece:
            return None
        data += piece
    return bytes(data)


def _start() -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "jupyter_dsserve.engine.follower"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def _write(follower: subprocess.Popen[bytes], data: bytes) -> None:
    assert follower.stdin is not None
    try:
        follower.stdin.write(data)
        follower.stdin.flush()
    except OSError as fault:  # it ended; the thread that watches it ends us
        raise EngineFailure(f"a rank of the group is gone: {fault}") from fault
