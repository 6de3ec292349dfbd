"""`Deployment`: a name callers use, its versions, and which of them answers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from jupyter_dsserve.fleet.road import Call, Road
from jupyter_dsserve.fleet.route import Route
from jupyter_dsserve.fleet.router import ruled
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol.errors import Conflict, NotFound, Unavailable
from jupyter_dsserve.protocol.policy import Policy


@dataclass(slots=True, eq=False)
class Deployment:
    """A name callers use, its versions, and the route between them. ``activating``: the version a swap waits for.
    ``road``: its policy, its line, and what else its requests share."""

    name: str
    route: Route = field(default_factory=Route)
    versions: dict[str, Version] = field(default_factory=dict)
    activating: str = ""
    road: Road = field(default_factory=Road)

    @property
    def in_flight(self) -> int:
        """Requests that run now."""
        return sum(r.in_flight for v in self.versions.values() for r in v.replicas)

    @property
    def ready(self) -> set[str]:
        """Those that can answer: one that rests comes when it is asked."""
        return {v.name for v in self.versions.values() if v.can_answer}

    @property
    def is_missing(self) -> bool:
        """Whether something is loaded, or on its way, and nothing can answer."""
        return not self.ready and any(version.is_wanted for version in self.versions.values())

    @property
    def served(self) -> list[Version]:
        """Those with weight."""
        return [self.versions[name] for name in self.route.weights if name in self.versions]

    def version(self, name: str) -> Version:
        """Raises `NotFound` naming the known ones."""
        if name not in self.versions:
            known = ", ".join(self.versions) or "none"
            raise NotFound(f"version {name!r} of {self.name} does not exist: there are {known}", param="version")
        return self.versions[name]

    def check_weights(self, weights: Mapping[str, float]) -> None:
        """Raises `NotFound` for a version nobody knows, `Conflict` for one that has weight there and cannot answer."""
        for name, weight in weights.items():
            version = self.version(name)
            if weight > 0 and not version.can_answer:
                raise Conflict(
                    f"{version.id} is {version.state.value}: only READY versions take traffic; load it first"
                )

    def set_policy(self, policy: Policy, now: float) -> None:
        """From now on, for those who wait too. ``now`` is monotonic seconds."""
        self.road.set_policy(policy, now)
        for version in self.versions.values():
            for replica in version.replicas:
                replica.breaker.settings = self.road.breaker
            version.announce()

    def lost(self, weights: Mapping[str, float]) -> str:
        """Which of the versions that ``weights`` name cannot be given traffic, and why, in words; empty if all can."""
        found = {name: self.versions.get(name) for name in weights}
        states = {name: version.state.value if version else "deleted" for name, version in found.items()}
        return ", ".join(f"{self.name}@{n} is {states[n]}" for n, v in found.items() if not (v and v.can_answer))

    def pick(self, call: Call, tried: Collection[str]) -> Version | None:
        """The version by rule, by key or by turn, among those that take requests and were not ``tried``; or None.

        A version that a rule names needs no weight.
        """
        if rules := self.road.policy.rules:
            takes = {name for name, version in self.versions.items() if version.takes and name not in tried}
            if named := ruled(rules, call.headers, takes):
                return self.versions[named]
        found = ((name, weight, self.versions.get(name)) for name, weight in self.route.weights.items())
        weights = {name: weight for name, weight, v in found if v and v.takes and name not in tried}
        chosen = self.route.pick(call.key, weights) if call.key else self.road.shares.next(weights)
        return self.versions[chosen] if chosen else None

    def refusal(self, now: float) -> Unavailable:
        """Why no version was picked."""
        weighted = [self.versions[name] for name in self.route.weights if name in self.ready]
        if weighted:
            return weighted[0].refusal(now)
        states = ", ".join(f"{v.name} is {v.state.value}" for v in self.versions.values())
        return Unavailable(f"no version of {self.name} is READY and has weight ({states})", retry_after_s=2)
