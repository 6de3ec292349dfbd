"""What a fleet is and what it is to be, in the same words; and the changes that lead from one to the other. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields
from typing import Any

from jupyter_dsserve.fleet.route import Route
from jupyter_dsserve.protocol.errors import Conflict, DSServeError, InvalidRequest
from jupyter_dsserve.protocol.policy import Policy
from jupyter_dsserve.protocol.records import Change, Origin
from jupyter_dsserve.protocol.spec import WorkerSpec

# Of a version's settings, those that people choose.
CHOSEN = ("priority", "autoscale")


@dataclass(frozen=True, slots=True)
class VersionGoal:
    """``num_replicas`` None and what ``settings`` lack is left as it is."""

    spec: WorkerSpec
    num_replicas: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    is_loaded: bool = True
    origin: Origin = field(default_factory=Origin)


@dataclass(frozen=True, slots=True)
class DeploymentGoal:
    """``weights`` None and what ``policy`` lacks is left as it is."""

    versions: Mapping[str, VersionGoal]
    weights: Mapping[str, float] | None = None
    policy: Mapping[str, Any] = field(default_factory=dict)


Goal = Mapping[str, DeploymentGoal]  # by deployment


def plan(now: Goal, goal: Goal, *, prune: bool = False) -> list[Change]:
    """What leads from ``now`` to ``goal``, in an order in which no traffic is lost: register and load, scale and set,
    then route, then unload; with ``prune`` what the goal does not name is deleted last. None if all is so already.

    Raises `InvalidRequest` for a goal that cannot be, `Conflict` where it would change a version.
    """
    changes = [c for name, wanted in goal.items() for c in _changes(name, now.get(name, _NONE), wanted, prune)]
    if prune:
        changes += [Change("delete", name, v) for name in now if name not in goal for v in now[name].versions]
    return sorted(changes, key=lambda c: _ORDER.index(c.kind))  # stable: the goal's order within a kind


def left_alone(now: Goal, goal: Goal) -> list[str]:
    """What is there and the goal does not name: deployments, and versions as ``name@version``."""
    return [
        *(name for name in now if name not in goal),
        *(f"{d}@{v}" for d in now if d in goal for v in now[d].versions if v not in goal[d].versions),
    ]


_ORDER = ("register", "load", "autoscale", "scale", "set", "policy", "route", "unload", "delete")
_NONE = DeploymentGoal({}, {})
_DEFAULTS = Policy().to_json() | {"rules": []}


def _changes(name: str, now: DeploymentGoal, goal: DeploymentGoal, prune: bool) -> Iterator[Change]:
    for version, wanted in goal.versions.items():
        known = now.versions.get(version)
        if known is None:
            yield Change("register", name, version, wanted.spec.model)
        else:
            _refuse_another(name, version, known, wanted)
            yield from _settings(name, version, known, wanted)
        if wanted.is_loaded and not (known and known.is_loaded):
            yield Change("load", name, version)
        if known and known.is_loaded and not wanted.is_loaded:
            yield Change("unload", name, version)
    if different := {k: v for k, v in goal.policy.items() if now.policy.get(k) != v}:
        yield Change("policy", name, "", _listed(different))
    weights = _weights(name, now, goal, prune)
    if weights is not None and weights != dict(now.weights or {}):
        yield Change("route", name, "", " ".join(f"{v}={w:g}" for v, w in weights.items()), weights)
    if prune:
        for version in now.versions:
            if version not in goal.versions:
                yield Change("delete", name, version)


def _settings(name: str, version: str, known: VersionGoal, wanted: VersionGoal) -> Iterator[Change]:
    before, after = known.num_replicas, wanted.num_replicas
    settings = {**known.settings, **wanted.settings}
    is_free = settings.get("autoscale") or after is None  # then others say how many
    if wanted.is_loaded and not is_free and after != before:
        yield Change("scale", name, version, f"from {before} workers to {after}")
    different = {k: v for k, v in settings.items() if known.settings.get(k) != v}
    if "autoscale" in different:
        limits = different.pop("autoscale")
        yield Change("autoscale", name, version, _listed(limits) if limits else "off")
    if different:
        yield Change("set", name, version, _listed(different))


def _refuse_another(name: str, version: str, known: VersionGoal, wanted: VersionGoal) -> None:
    have, want = asdict(known.spec), asdict(wanted.spec)
    if different := ", ".join(f"{f} is {have[f]!r}, not {want[f]!r}" for f in have if have[f] != want[f]):
        raise Conflict(
            f"{name}@{version} is registered already, and its {different}: versions never change, so give this one "
            "another name",
            param=f"deployments.{name}.versions.{version}",
        )


def _weights(name: str, now: DeploymentGoal, goal: DeploymentGoal, prune: bool) -> dict[str, float] | None:
    """The route that the goal asks for, or that it needs because those that serve are to go; None: as it is."""
    serving = {v for v, wanted in goal.versions.items() if wanted.is_loaded}
    if goal.weights is not None:
        where = f"deployments.{name}.route"
        for version in goal.weights:
            if version not in serving:
                raise InvalidRequest(
                    f"the route of {name} names {version!r}, which is no loaded version in this file: it has "
                    + (", ".join(sorted(serving)) or "none"),
                    param=where,
                )
        try:
            return dict(Route().replaced(goal.weights).weights)
        except DSServeError as fault:
            raise InvalidRequest(f"the route of {name}: {fault.message}", param=where) from None
    leaving = {v for v, wanted in goal.versions.items() if not wanted.is_loaded}
    leaving |= set(now.versions) - set(goal.versions) if prune else set()
    holders = set(now.weights or {})
    if not serving or not holders or holders - leaving:
        return None
    if len(serving) == 1:
        return dict.fromkeys(serving, 100.0)
    raise InvalidRequest(
        f"{name} has no route in this file, and what holds its traffic ({', '.join(sorted(holders))}) is to go: write "
        f"how {' and '.join(sorted(serving))} are to share it",
        param=f"deployments.{name}",
    )


def exported(now: Goal) -> dict[str, Any]:
    """``now`` as a deployments file has it: only what differs from the defaults."""
    return {name: _exported(deployment) for name, deployment in now.items()}


def _exported(deployment: DeploymentGoal) -> dict[str, Any]:
    found: dict[str, Any] = {"versions": {n: _exported_version(v) for n, v in deployment.versions.items()}}
    loaded = {n for n, v in deployment.versions.items() if v.is_loaded}
    if deployment.weights and loaded.issuperset(deployment.weights):
        found["route"] = dict(deployment.weights)
    if policy := {k: v for k, v in deployment.policy.items() if v != _DEFAULTS[k]}:
        found["policy"] = policy
    return found


def _exported_version(version: VersionGoal) -> dict[str, Any]:
    origin = version.origin
    rest = {
        "replicas": None if version.num_replicas == 1 or version.settings.get("autoscale") else version.num_replicas,
        **{k: v for k, v in version.settings.items() if v is not None},
        "note": origin.note,
        "created_by": origin.created_by,
        "metadata": dict(origin.metadata),
    }
    spec = {f.name: getattr(version.spec, f.name) for f in fields(WorkerSpec)}
    changed = {f.name: spec[f.name] for f in fields(WorkerSpec) if f.default is MISSING or spec[f.name] != f.default}
    given = {name: value for name, value in rest.items() if value not in (None, "", {})}
    return changed | given | ({} if version.is_loaded else {"loaded": False})


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name}={value}" for name, value in values.items())
