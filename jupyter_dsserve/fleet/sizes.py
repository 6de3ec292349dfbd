"""`Sizes`: how many workers a version has: set by hand or by what is asked of it, put to rest, and woken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from jupyter_dsserve.fleet.admission import Admission
from jupyter_dsserve.fleet.autoscale import Autoscaler, AutoscaleSettings
from jupyter_dsserve.fleet.supervisor import Record, Supervisor
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol.errors import Conflict


class Sizes:
    """One for a fleet.

    ``shrink`` ends in the background the workers that a version does not want any more; ``save`` writes a version down;
    ``is_compared`` says whether a rollout has a part for it.
    """

    def __init__(
        self,
        admission: Admission,
        supervisor: Supervisor,
        record: Record,
        shrink: Callable[[Version], None],
        save: Callable[[Version], Awaitable[None]],
        is_compared: Callable[[str, str], bool],
    ) -> None:
        self._admission = admission
        self._supervisor = supervisor
        self._record = record
        self._shrink = shrink
        self._save = save
        self._is_compared = is_compared
        self.autoscaler = Autoscaler(self.resize)

    async def scale(self, version: Version, num_replicas: int) -> None:
        """As `Fleet.scale`."""
        if version.is_wanted and num_replicas > version.num_replicas:
            await self._admission.check(version, num_replicas)
        if not version.is_wanted or version.failure:
            raise Conflict(f"{version.id} is {version.state.value}, and only a loaded version is scaled: load it first")
        if AutoscaleSettings.of(version):
            raise Conflict(
                f"{version.id} is scaled automatically: change that instead, or end it first (autoscale, off)"
            )
        await self.resize(version, num_replicas, "")

    async def autoscale(self, version: Version, settings: AutoscaleSettings | None) -> None:
        """As `Fleet.autoscale`."""
        if settings:
            await self._admission.check(version, max(1, settings.min))
        version.settings["autoscale"] = settings.to_json() if settings else None
        self.autoscaler.forget(version)
        if version.is_resting and not (settings and settings.min == 0):
            self.wake(version, "it is not put to rest any more")
        await self._save(version)

    async def resize(self, version: Version, num_replicas: int, why: str) -> None:
        """Keep so many workers up from now on; 0 puts the version to rest, but not during a rollout of it. Raises
        `Conflict` if so many never fit."""
        if num_replicas > version.num_replicas:
            await self._admission.check(version, num_replicas)
        if not version.is_wanted:
            return
        if num_replicas == 0 and self._is_compared(version.deployment, version.name):
            return  # the rollout would wait for it
        if num_replicas == version.num_wanted:
            self._supervisor.start(version)  # a worker that was given up may be tried again
            return
        text = f"from {version.num_wanted} workers to {num_replicas}" + (f": {why}" if why else "")
        self._record("scaled" if num_replicas else "resting", version, "", text)
        version.is_resting = version.is_awaited = num_replicas == 0
        version.num_replicas = num_replicas or version.num_replicas
        self._supervisor.start(version)
        self._shrink(version)
        await self._save(version)

    def wake(self, version: Version, why: str) -> None:
        """Load a version that rests again, with as few workers as it may have."""
        settings = AutoscaleSettings.of(version)
        version.num_replicas = max(1, settings.min) if settings else version.num_replicas
        version.is_resting = False  # it stays awaited until it is READY
        self._record("woken", version, "", why)
        self._supervisor.start(version)
        version.announce()
