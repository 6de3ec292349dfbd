"""Watches one life of a worker: what `health` says of it is done to its replica here."""

from __future__ import annotations

import asyncio
import contextlib

from jupyter_dsserve.fleet.health import SILENT_S, Health, Signs, Watched, verdict
from jupyter_dsserve.fleet.launcher import is_stopped
from jupyter_dsserve.fleet.replica import Replica
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol.errors import Unavailable
from jupyter_dsserve.protocol.records import VersionState
from jupyter_dsserve.protocol.request import Request, SamplingParams

# An idle worker is asked for a token so often, to see that it still can.
PROBE_S = 30.0
# A prompt, or a call, is one step there, however long it is.
_UNBOUNDED = ("padded", "program")


class Watch:
    """Looks at a worker every `TICK_S` once it is READY: closes its door in time, and probes it when it is idle."""

    def __init__(self, version: Version, replica: Replica, pid: int) -> None:
        """``pid`` 0: its process is on another machine, and whether it is stopped cannot be seen."""
        self._version, self._replica, self._pid = version, replica, pid
        self._watched = Watched()
        self._probe: asyncio.Task[None] | None = None

    def look(self, now: float) -> str:
        """Why the worker has to be ended; empty if it is well, or may become so."""
        replica = self._replica
        was_ready = replica.used_at > 0  # before that, loading may hold its interpreter for long
        if not was_ready or replica.state not in (VersionState.READY, VersionState.DRAINING):
            return ""
        beat = replica.heartbeat
        is_silent = now - replica.heard_at >= SILENT_S
        has_work = beat.running + beat.waiting > 0
        stopped = is_silent and self._pid > 0 and is_stopped(self._pid)
        is_bounded = not replica.runner.startswith(_UNBOUNDED)
        signs = Signs(replica.heard_at, beat.num_steps, has_work, stopped, is_bounded)
        self._watched = self._watched.after(signs)
        seen = verdict(self._watched, signs, now)
        if seen.reason or replica.trouble:
            replica.suspect(seen.reason, self._version.num_spare(replica))
        if seen.health is Health.FINE:
            self._probe_if_idle(now)
        return seen.reason if seen.health is Health.DEAD else ""

    def _probe_if_idle(self, now: float) -> None:
        replica = self._replica
        if replica.state is not VersionState.READY:
            return
        is_probed = self._probe is not None and not self._probe.done()
        is_idle = not replica.in_flight and not is_probed and now - replica.used_at > PROBE_S
        if is_idle and self._version.spec.task == "generate":
            self._probe = asyncio.create_task(self._ask_for_a_token())

    async def _ask_for_a_token(self) -> None:
        """The answer goes to the breaker; if none comes, the work that stays on the worker shows that it hangs."""
        request = Request(self._replica.probe_id, (0,), SamplingParams(max_tokens=1))
        with contextlib.suppress(Unavailable):
            async for _ in self._replica.generate(request):
                pass
