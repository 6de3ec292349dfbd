"""`LoadWatch`: how long a load may take, and whether it gets on. Time is an argument."""

from __future__ import annotations

import math
from dataclasses import dataclass

from jupyter_dsserve.fleet.need import UNLIMITED, Need
from jupyter_dsserve.protocol.config import AdmissionSettings, Priority
from jupyter_dsserve.protocol.sizes import shown

# A worker that did this much got on, although it said nothing: it downloads, builds, or compares.
_LEAST_WORK_S = 0.5


def load_limit_s(need: Need, priority: Priority, settings: AdmissionSettings) -> float:
    """Seconds from its admission that a load of this class may take: more for more bytes, and for building.

    Without end where nobody knows how much there is to read, as for a hub name that is downloaded first.
    """
    if need.read_bytes == UNLIMITED:
        return math.inf
    building = settings.build_s if need.builds else 0.0
    return settings.timeout_s(priority) + need.read_bytes / settings.bytes_per_s + building


@dataclass(slots=True)
class LoadWatch:
    """One load, begun at ``started_s``. All times are monotonic seconds."""

    need: Need
    priority: Priority
    settings: AdmissionSettings
    started_s: float
    _seen: tuple[str, float] = ("", 0.0)  # stage and progress
    _work_s: float = 0.0
    _moved_s: float = 0.0

    def is_quiet(self, stage: str, progress: float, now: float) -> bool:
        """Whether the worker has not said anything new since the last call: then its work is worth a look."""
        if (stage, progress) != self._seen or not self._moved_s:
            self._seen, self._moved_s = (stage, progress), now
            return False
        return True

    def worked(self, work_s: float, now: float) -> None:
        """Its processes have done ``work_s`` by now, as `devices.Machine.work_s` counts it.

        It falls when one of them ends, as each compiler of a build does: what is done counts from there.
        """
        if work_s >= self._work_s + _LEAST_WORK_S:
            self._work_s, self._moved_s = work_s, now
        self._work_s = min(self._work_s, work_s)

    def overdue(self, now: float) -> str:
        """Why the load is given up; empty as long as it is not."""
        stage, progress = self._seen
        where = f"it stands at {stage or 'its start'}, {progress:.0%}"
        stalled_s = now - self._moved_s if self._moved_s else 0.0
        if stalled_s > self.settings.stall_s:
            return f"the load made no progress for {stalled_s:.0f} s and was ended: {where}"
        limit_s = load_limit_s(self.need, self.priority, self.settings)
        if now - self.started_s > limit_s:
            return f"the load took over {limit_s:.0f} s and was ended: {where}; {self._told(limit_s)}"
        return ""

    def _told(self, limit_s: float) -> str:
        own = self.settings.timeout_s(self.priority)
        more = f", and {limit_s - own:.0f} s for {shown(self.need.read_bytes)}" if limit_s - own >= 1 else ""
        building = " and building" if self.need.builds else ""
        return (
            f"a load of priority {self.priority} has {own:g} s{more}{building} (the gateway's setting admission says "
            "so): a lower priority has longer"
        )
