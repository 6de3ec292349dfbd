"""The engine of all tasks but ``generate``: one thread that goes inbox → batch → forward → emit.

A request brings several items (texts, say) that need not end together. Waiting items are put into batches of like
length, so that little of a batch is padding; a batch goes as soon as it is full, or when its first item has waited
long enough. While one batch is computed the next gathers.
"""

from __future__ import annotations

import bisect
import heapq
import logging
import math
import queue
import threading
import time
from collections.abc import Callable, Hashable
from collections.abc import Sequence as Seq
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from jupyter_dsserve.engine.faults import is_device_lost
from jupyter_dsserve.engine.loop import Load
from jupyter_dsserve.engine.scheduler import AGEING_S
from jupyter_dsserve.protocol.errors import DeadlineExceeded, DSServeError, EngineFailure
from jupyter_dsserve.protocol.request import Chunk, FinishReason, Request, Times, Usage
from jupyter_dsserve.protocol.tensors import ModelInfo, Tensor

log = logging.getLogger(__name__)

# An answer to a single caller is late by this at most; callers who ask again at once come together within it.
MAX_WAIT_S = 0.003
MAX_PADDING = 0.1
ANY_NUMBER = 2**31 - 1

Arrays = dict[str, NDArray[Any]]  # by output name; the first axis counts rows


@dataclass(slots=True, eq=False)
class Item:
    """One row of work, or several that stay together (``num_rows``). ``length`` is what padding brings to a common
    size: tokens of a text, 1 where nothing is padded. Only items of one ``kind`` share a batch."""

    value: Any
    length: int = 1
    num_rows: int = 1
    kind: Hashable = None
    work: Work | None = None
    index: int = 0
    arrived: float = 0.0
    priority: int = 0

    @property
    def line(self) -> tuple[float, float]:
        """Where it stands in line. All age alike, so that priority and arrival together say it for good."""
        return self.arrived + AGEING_S * self.priority, self.arrived


@dataclass(slots=True, eq=False)
class Work:
    """A request inside the batcher: its items, and the answers so far. Times are monotonic seconds."""

    id: str
    items: list[Item]
    num_tokens: int = 0
    deadline_s: float = math.inf
    arrived_s: float = 0.0
    tokenized_s: float = 0.0
    admitted_s: float = 0.0
    num_steps: int = 0
    answers: dict[int, Arrays] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for index, item in enumerate(self.items):
            item.work, item.index = self, index

    def times(self, ended_s: float) -> Times:
        """What became of it when, once it has ended."""
        return Times(self.arrived_s, self.tokenized_s, self.admitted_s, 0.0, ended_s, self.num_steps)


@dataclass(frozen=True, slots=True)
class Limits:
    """Of a batch: tokens with padding, rows, the share of padding (0 to 1), and how long its first item may wait.
    An item that is over a limit by itself is a batch by itself."""

    max_tokens: int
    max_rows: int
    max_padding: float = MAX_PADDING
    max_wait_s: float = MAX_WAIT_S


def next_batch(waiting: Seq[Item], limits: Limits, now: float) -> tuple[list[Item], float]:
    """The batch to compute at ``now``, or an empty one and the seconds until one is due.

    ``waiting`` is in line, so the first of it is in the batch, and none waits for ever; its neighbours by length join
    it, on whichever side they add less padding, while the limits hold.
    """
    if not waiting:
        return [], math.inf
    first = waiting[0]
    near = sorted((item for item in waiting if item.kind == first.kind), key=lambda item: item.length)
    low = near.index(first)
    high = low + 1
    size = _Size(first.length, first.num_rows, first.length * first.num_rows)
    is_full = False
    while low > 0 or high < len(near):
        grown = [(size.with_(item), item) for item in near[max(0, low - 1) : low] + near[high : high + 1]]
        larger, item = min(grown, key=lambda pair: pair[0].padding)
        if larger.padding > limits.max_padding:
            break
        if larger.padded > limits.max_tokens or larger.num_rows > limits.max_rows:
            is_full = True
            break
        size = larger
        low, high = (low - 1, high) if low > 0 and item is near[low - 1] else (low, high + 1)
    is_full = is_full or size.padded >= limits.max_tokens or size.num_rows >= limits.max_rows
    left = first.arrived + limits.max_wait_s - now
    return (near[low:high], 0.0) if is_full or left <= 0 else ([], left)


@dataclass(frozen=True, slots=True)
class _Size:
    longest: int
    num_rows: int
    num_tokens: int

    def with_(self, item: Item) -> _Size:
        return _Size(
            max(self.longest, item.length),
            self.num_rows + item.num_rows,
            self.num_tokens + item.length * item.num_rows,
        )

    @property
    def padded(self) -> int:
        return self.longest * self.num_rows

    @property
    def padding(self) -> float:
        return 1 - self.num_tokens / self.padded


class BatchRunner(Protocol):
    """Owns one model. `prepare` is called in the worker's tokenizing thread, the rest in the engine's."""

    limits: Limits

    @property
    def info(self) -> ModelInfo: ...

    @property
    def device(self) -> str:
        """As torch names it: ``cpu``, ``cuda:0``."""
        ...

    def prepare(self, request: Request) -> Work:
        """The request's items. Raises `InvalidRequest` for what this model cannot take."""
        ...

    def forward(self, batch: Seq[Item]) -> Arrays:
        """The outputs of all rows of ``batch``, in its order."""
        ...

    def check(self) -> None:
        """Called once in WARMING: really computes something. Raises `DSServeError` if it is wrong."""
        ...

    def device_bytes(self) -> int:
        """Bytes of device memory (RAM on a machine without one) that this process holds now."""
        ...


class Batcher:
    """`post` and `abort` may be called from any thread; all else happens in `run`'s.

    ``emit`` is called with the chunks of a whole batch at once, in the engine's thread.
    """

    def __init__(self, runner: BatchRunner, emit: Callable[[list[Chunk]], None]) -> None:
        self.runner = runner
        self._emit = emit
        self._inbox: queue.SimpleQueue[Work | str | None] = queue.SimpleQueue()
        self._waiting: list[Item] = []
        self._open: dict[str, Work] = {}
        self._deadlines: list[tuple[float, str]] = []  # a heap
        self._num_steps = self._num_running = self._num_tokens = self._num_padded = 0
        self._stopped = threading.Event()

    # ---- from any thread

    def prepare(self, request: Request, now: float) -> Work:
        """What to `post` for a request that came at ``now`` (monotonic seconds). Raises what the runner's does."""
        work = self.runner.prepare(request)
        work.deadline_s = math.inf if request.timeout_s is None else now + request.timeout_s
        work.arrived_s, work.tokenized_s = now, time.monotonic()
        for item in work.items:
            item.arrived, item.priority = now, request.priority
        return work

    def post(self, work: Work) -> None:
        """Put a request's items in line."""
        self._inbox.put(work)

    def abort(self, request_id: str) -> None:
        """Forget a request before the next batch. Unknown or ended ones are ignored."""
        self._inbox.put(request_id)

    def stop(self) -> None:
        """End `run` after the current batch."""
        self._stopped.set()
        self._inbox.put(None)

    def load(self) -> Load:
        padding = 1 - self._num_tokens / self._num_padded if self._num_padded else 0.0
        return Load(self._num_steps, self._num_running, len(self._waiting) + self._inbox.qsize(), 0.0, padding=padding)

    # ---- in the engine's thread

    def run(self) -> None:
        """Serve until `stop`. A failing batch ends the requests in it with an error, not the engine; but it raises what
        took the device away, after which every batch would fail."""
        wait_s = math.inf
        while not self._stopped.is_set():
            if chunks := self.take_in(wait_s):
                self._emit(chunks)
            if chunks := self.expire(time.monotonic()):
                self._emit(chunks)
            batch, wait_s = next_batch(self._waiting, self.runner.limits, time.monotonic())
            if batch and (chunks := self.step(batch)):
                self._emit(chunks)

    def take_in(self, wait_s: float) -> list[Chunk]:
        """Empty the inbox, waiting at most ``wait_s`` for something to come. The chunks of those that end at once."""
        chunks: list[Chunk] = []
        while True:
            try:
                found = self._inbox.get(timeout=None if wait_s == math.inf else wait_s)
            except queue.Empty:
                return chunks
            wait_s = 0.0
            if isinstance(found, Work):
                self._accept(found)
            elif isinstance(found, str) and (work := self._open.get(found)):
                self._forget(work)
                chunks.append(Chunk(work.id, finish_reason=FinishReason.ABORT))

    def step(self, batch: list[Item]) -> list[Chunk]:
        """Compute a batch of waiting items; the chunks of the requests that are whole with it."""
        taken = set(map(id, batch))
        self._waiting = [item for item in self._waiting if id(item) not in taken]
        self._num_running = len(batch)
        began_s = time.monotonic()
        for work in {id(item.work): item.work for item in batch}.values():
            assert work is not None
            work.admitted_s, work.num_steps = work.admitted_s or began_s, work.num_steps + 1
        try:
            outputs = self.runner.forward(batch)
        except Exception as fault:
            log.exception("batch %d failed", self._num_steps)
            if is_device_lost(fault):
                raise
            return self._fail(batch, fault)
        finally:
            self._num_running = 0
        self._num_steps += 1
        self._num_tokens += sum(item.length * item.num_rows for item in batch)
        self._num_padded += max(item.length for item in batch) * sum(item.num_rows for item in batch)
        return self._distribute(batch, outputs)

    def expire(self, now: float) -> list[Chunk]:
        """End what is past its deadline before it is computed (any further)."""
        chunks: list[Chunk] = []
        while self._deadlines and self._deadlines[0][0] <= now:
            _, request_id = heapq.heappop(self._deadlines)
            if work := self._open.get(request_id):
                self._forget(work)
                error = DeadlineExceeded(
                    f"the request's time limit has passed with {len(work.answers)} of its {len(work.items)} parts "
                    "computed: give it a longer timeout_s, or send less at once"
                )
                chunks.append(_failed(work, error))
        return chunks

    def _accept(self, work: Work) -> None:
        self._open[work.id] = work
        for item in work.items:
            bisect.insort(self._waiting, item, key=lambda item: item.line)
        if work.deadline_s < math.inf:
            heapq.heappush(self._deadlines, (work.deadline_s, work.id))

    def _forget(self, work: Work) -> None:
        del self._open[work.id]
        self._waiting = [item for item in self._waiting if item.work is not work]

    def _distribute(self, batch: list[Item], outputs: Arrays) -> list[Chunk]:
        chunks: list[Chunk] = []
        row = 0
        for item in batch:
            # Alone it has all there is, whether that counts rows or not.
            is_alone = len(batch) == 1
            rows = outputs if is_alone else {name: a[row : row + item.num_rows] for name, a in outputs.items()}
            row += item.num_rows
            work = item.work
            assert work is not None
            work.answers[item.index] = rows
            if len(work.answers) == len(work.items):
                del self._open[work.id]
                chunks.append(_whole(work))
        return chunks

    def _fail(self, batch: list[Item], fault: Exception) -> list[Chunk]:
        reason = f"the model step failed: {type(fault).__name__}: {fault}"
        error = fault if isinstance(fault, DSServeError) else EngineFailure(reason)
        works = {id(item.work): item.work for item in batch}
        chunks = []
        for work in works.values():
            assert work is not None
            self._forget(work)
            chunks.append(_failed(work, error))
        return chunks


def _failed(work: Work, error: DSServeError) -> Chunk:
    return Chunk(work.id, finish_reason=FinishReason.ERROR, error=error, times=work.times(time.monotonic()))


def _whole(work: Work) -> Chunk:
    """The request's only chunk: each output with the rows of all items, in their order."""
    parts = [work.answers[index] for index in range(len(work.items))]
    tensors = tuple(
        Tensor.of(name, parts[0][name] if len(parts) == 1 else np.concatenate([part[name] for part in parts]))
        for name in parts[0]
    )
    usage = Usage(work.num_tokens, 0)
    return Chunk(
        work.id,
        num_tokens=work.num_tokens,
        finish_reason=FinishReason.STOP,
        usage=usage,
        tensors=tensors,
        times=work.times(time.monotonic()),
    )
