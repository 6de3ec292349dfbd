"""The load itself: a sweep of points, each warmed up, measured and ended, whatever the server does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from threading import Event, Thread
from typing import Any

from jupyter_dsserve.bench.measure import Point, Quantiles, Window, followed, point_of
from jupyter_dsserve.bench.outcome import Outcome, Reading
from jupyter_dsserve.bench.plan import Load, Plan
from jupyter_dsserve.bench.report import Report
from jupyter_dsserve.bench.target import Found, Server, Target, request_body
from jupyter_dsserve.bench.workload import Task, arrivals, tasks
from jupyter_dsserve.protocol.errors import Unavailable

_TICK_S = 0.01
# A server that refuses at once would otherwise be asked thousands of times a second.
_AFTER_ERROR_S = 0.1


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a sweep is: ``done`` from 0 to 1, and a word about the point that runs."""

    done: float
    text: str


class Bench:
    """One load test. ``stop`` ends it early; what it has by then is its `Report`."""

    def __init__(self, target: Target, plan: Plan) -> None:
        self._target, self._plan = target, plan
        self._points: list[Point] = []
        # How many points are done, and the one that runs: one value, for threads look at it.
        self._now: tuple[int, _Running | None] = (0, None)
        self._is_stopped = False
        self._details: dict[str, str] = {}
        self._has_usage = True

    def stop(self) -> None:
        """From any thread."""
        self._is_stopped = True

    def progress(self) -> Progress:
        """From any thread."""
        (num_done, running), num_loads = self._now, len(self._plan.loads)
        if running is None:
            return Progress(num_done / num_loads, "" if num_done else "looking at the server")
        return Progress((num_done + running.done()) / num_loads, running.text())

    async def run(self) -> Report:
        """Every point of the plan, in its order. Raises `DSServeError` if the server cannot be asked at all."""
        begun = datetime.now(timezone.utc).isoformat(timespec="seconds")
        async with Server(self._target) as server:
            found = await self._looked(server)
        for index, load in enumerate(self._plan.loads):
            if not self._is_stopped:
                await self._measure(index, load, found)
        return Report(
            url=self._target.url,
            model=found.model,
            begun=begun,
            plan=self._plan,
            points=tuple(self._points),
            tokens_counted_by="usage" if self._has_usage else "pieces",
            error_details=self._details,
            is_interrupted=self._is_stopped,
        )

    async def _looked(self, server: Server) -> Found:
        looking = asyncio.create_task(server.look(self._plan.chat, self._plan.drain_s))
        try:
            while not looking.done() and not self._is_stopped:
                await asyncio.wait({looking}, timeout=_TICK_S)
            if not looking.done():
                raise Unavailable(f"it was stopped before {self._target.url} had answered anything")
            return looking.result()
        finally:
            looking.cancel()

    async def _measure(self, index: int, load: Load, found: Found) -> None:
        async with Server(self._target) as server:
            running = _Running(server, self._plan, index, load, found, lambda: self._is_stopped)
            self._now = (index, running)
            window = await running.run()
        outcomes = running.outcomes
        self._now = (index + 1, None)
        if self._is_stopped and window.length_s < _TICK_S:  # stopped while it warmed up
            return
        self._points.append(point_of(load, outcomes, window, self._plan.slo, self._plan.requests))
        for outcome in outcomes:
            if outcome.error:
                self._details.setdefault(outcome.error, outcome.detail)
            elif outcome.end == "answered" and outcome.output_tokens is None:
                self._has_usage = False


class _Running:
    """One point while it runs: warm-up, the window that counts, and the following of its requests to their end.

    The load goes on until all of those have ended, so that the last of them meet what the first met.
    """

    def __init__(
        self, server: Server, plan: Plan, index: int, load: Load, found: Found, is_stopped: Callable[[], bool]
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._server, self._plan, self._load, self._found = server, plan, load, found
        self._ignore_eos = found.is_ours if plan.ignore_eos is None else plan.ignore_eos
        self._is_stopped = is_stopped
        self._tasks = tasks(plan, index, found.scale)
        self._arrivals = arrivals(load.value, plan.seed, index)
        self._open: dict[int, float] = {}  # when those under way were asked
        self._num_asked = 0
        self._num_counted = 0  # of those, the ones that fall into the window
        self._num_first = 0  # of the first wave, ended
        self._asking: set[asyncio.Task[None]] = set()
        self._fault: BaseException | None = None  # of our own
        self._lags_s: list[float] = []  # how late we were awake, each time
        self._begun_s = time.monotonic()
        self._start_s = 0.0

    async def run(self) -> Window:
        wave = int(self._load.value) if self._load.kind == "concurrency" else 1
        self._begun_s = time.monotonic()
        try:
            if self._load.kind == "concurrency":
                for _ in range(wave):
                    self._spawn(self._client())
            else:
                self._spawn(self._arrive())
            await self._until(lambda: self._num_first >= wave, self._plan.drain_s)
            window = await self._counted(is_warm=self._num_first >= wave)
            await self._until(lambda: not self._are_open(window), self._plan.drain_s)
        finally:
            for task in self._asking:
                task.cancel()
            await asyncio.gather(*self._asking, return_exceptions=True)
        if self._fault:
            raise self._fault
        if self._plan.requests and (ended := followed(self.outcomes, window, self._plan.requests)):
            return replace(window, end_s=max(o.ended_s for o in ended))
        return window

    def done(self) -> float:
        """From 0 to 1, from any thread."""
        if not self._start_s:
            return 0.0
        shares = [(time.monotonic() - self._start_s) / self._plan.seconds]
        if self._plan.requests:
            shares.append(sum(o.asked_s >= self._start_s for o in tuple(self.outcomes)) / self._plan.requests)
        return min(1.0, max(shares))

    def text(self) -> str:
        num_errors = sum(bool(o.error) for o in tuple(self.outcomes))
        errors = f", {num_errors} errors" if num_errors else ""
        phase = "" if self._start_s else "warming up, "
        answered = len(self.outcomes) - num_errors
        return f"{self._load}: {phase}{len(self._open)} in flight, {answered} answered{errors}"

    # ---- inside

    async def _counted(self, is_warm: bool) -> Window:
        self._start_s = time.monotonic()
        self._lags_s.clear()
        self._num_counted = 0
        if most := self._plan.requests:
            await self._until(lambda: self._num_counted >= most, self._plan.seconds)
        else:
            await self._until(lambda: False, self._plan.seconds)
        is_longer = self._load.kind == "concurrency" and not self._num_counted
        if is_longer:  # an answer takes longer, so that no client has asked again
            await self._until(lambda: self._num_counted > 0, self._plan.drain_s)
        # A tick late, unless it was to end otherwise: what was asked in between is not counted.
        is_as_it_is = self._is_stopped() or bool(most) or is_longer
        now_s = time.monotonic()
        end_s = now_s if is_as_it_is else min(now_s, self._start_s + self._plan.seconds)
        return Window(self._start_s, end_s, Quantiles.of(self._lags_s).p95 or 0.0, is_warm)

    def _are_open(self, window: Window) -> bool:
        return any(window.start_s <= asked_s < window.end_s for asked_s in self._open.values())

    async def _until(self, is_there: Callable[[], bool], limit_s: float) -> None:
        end_s = time.monotonic() + limit_s
        # What it looks at changes in many places, one of them another thread.
        while not (is_there() or self._fault or self._is_stopped()) and (left_s := end_s - time.monotonic()) > 0:
            due_s = time.monotonic() + min(_TICK_S, left_s)
            await asyncio.sleep(min(_TICK_S, left_s))
            self._lags_s.append(time.monotonic() - due_s)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._asking.add(task)
        task.add_done_callback(self._on_end)

    def _on_end(self, task: asyncio.Task[None]) -> None:
        self._asking.discard(task)
        if not task.cancelled() and task.exception():
            self._fault = task.exception()

    async def _client(self) -> None:
        """Asks, and asks again when it is answered."""
        is_first = True
        while True:
            outcome = await self._ask(next(self._tasks), time.monotonic())
            self._num_first += is_first
            is_first = False
            if outcome.error:
                await asyncio.sleep(_AFTER_ERROR_S)

    async def _arrive(self) -> None:
        """Asks when it is time, whatever has been answered."""
        for at_s in self._arrivals:
            due_s = self._begun_s + at_s
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            self._spawn(self._one(next(self._tasks), due_s))

    async def _one(self, task: Task, due_s: float) -> None:
        await self._ask(task, due_s)
        self._num_first += 1

    async def _ask(self, task: Task, asked_s: float) -> Outcome:
        number, reading = self._num_asked, Reading()
        self._num_asked += 1
        self._num_counted += asked_s >= self._start_s  # one that is asked late was due before
        self._open[number] = asked_s
        body = request_body(self._found.model, task, chat=self._plan.chat, ignore_eos=self._ignore_eos)
        try:
            outcome = await self._server.ask(body, self._plan.chat, asked_s, reading)
        except asyncio.CancelledError:
            self.outcomes.append(reading.outcome(asked_s, time.monotonic(), cut=True))
            raise
        finally:
            del self._open[number]
        self.outcomes.append(outcome)
        return outcome


def run_blocking(
    target: Target, plan: Plan, on_progress: Callable[[Progress], object] = lambda _: None, every_s: float = 0.2
) -> Report:
    """Run a load test from code that does not await, and call ``on_progress`` in this thread meanwhile.

    In a thread of its own: a notebook's already runs a loop. An interrupt (Ctrl-C, or the kernel's) ends the test and
    what was measured by then is returned; a second one is raised. Raises `DSServeError` as `Bench.run` does.
    """
    bench, ended = Bench(target, plan), Event()
    result: list[Report] = []
    faults: list[BaseException] = []

    def work() -> None:
        try:
            result.append(asyncio.run(bench.run()))
        except BaseException as fault:  # it is raised in the caller's thread
            faults.append(fault)
        finally:
            ended.set()

    Thread(target=work, name="dsserve-bench", daemon=True).start()
    try:
        # Not Thread.join: interrupted, it takes the thread for ended (in Python before 3.13).
        while not ended.wait(every_s):
            on_progress(bench.progress())
    except KeyboardInterrupt:
        bench.stop()
        ended.wait()
    finally:
        bench.stop()
    if faults:
        raise faults[0]
    return result[0]
