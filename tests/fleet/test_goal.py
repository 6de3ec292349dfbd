"""What leads from one fleet to another: the changes, their order, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from jupyter_dsserve.fleet.goal import DeploymentGoal, Goal, VersionGoal, exported, left_alone, plan
from jupyter_dsserve.protocol.errors import Conflict, InvalidRequest
from jupyter_dsserve.protocol.records import Origin
from jupyter_dsserve.protocol.spec import WorkerSpec


def version(model: str = "toy:", *, loaded: bool = True, replicas: int | None = 1, **settings: Any) -> VersionGoal:
    return VersionGoal(WorkerSpec(model, runner="toy"), replicas, settings, loaded)


def demo(weights: Mapping[str, float] | None = None, **versions: VersionGoal) -> Goal:
    return {"demo": DeploymentGoal(versions, weights)}


def changes(now: Goal, goal: Goal, *, prune: bool = False) -> list[str]:
    return [str(c) for c in plan(now, goal, prune=prune)]


V1, V2 = version("toy:a=1"), version("toy:a=2")
OFF = version("toy:a=1", loaded=False)
SERVING = demo({"v1": 100}, v1=V1)


@pytest.mark.parametrize(
    ("now", "goal", "expected"),
    [
        ({}, {}, []),
        (SERVING, SERVING, []),
        (SERVING, {}, []),
        ({}, demo(v1=V1), ["register demo@v1: toy:a=1", "load demo@v1"]),
        ({}, demo(v1=OFF), ["register demo@v1: toy:a=1"]),
        (demo({}, v1=OFF), demo(v1=V1), ["load demo@v1"]),
        (SERVING, demo(v1=OFF), ["unload demo@v1"]),
        (
            SERVING,
            demo({"v1": 90, "v2": 10}, v1=V1, v2=V2),
            ["register demo@v2: toy:a=2", "load demo@v2", "route demo: v1=90 v2=10"],
        ),
        (
            SERVING,
            demo({"v2": 100}, v1=OFF, v2=V2),
            ["register demo@v2: toy:a=2", "load demo@v2", "route demo: v2=100", "unload demo@v1"],
        ),
        # Without a route in the file the one version that stays takes over from those that go.
        (
            SERVING,
            demo(v1=OFF, v2=V2),
            ["register demo@v2: toy:a=2", "load demo@v2", "route demo: v2=100", "unload demo@v1"],
        ),
        (SERVING, demo(v1=V1, v2=OFF), ["register demo@v2: toy:a=1"]),
        (SERVING, demo({"v1": 100, "v2": 0}, v1=V1, v2=V2), ["register demo@v2: toy:a=2", "load demo@v2"]),
        (SERVING, demo(v1=version("toy:a=1", replicas=3)), ["scale demo@v1: from 1 workers to 3"]),
        (
            demo({}, v1=OFF),
            demo(v1=version("toy:a=1", replicas=3)),
            ["load demo@v1", "scale demo@v1: from 1 workers to 3"],
        ),
        (SERVING, demo(v1=version("toy:a=1", replicas=None)), []),
        (SERVING, demo(v1=version("toy:a=1", replicas=3, autoscale={"max": 4})), ["autoscale demo@v1: max=4"]),
        (
            demo({"v1": 100}, v1=version("toy:a=1", autoscale={"max": 4})),
            demo(v1=version("toy:a=1", replicas=3, autoscale=None)),
            ["autoscale demo@v1: off", "scale demo@v1: from 1 workers to 3"],
        ),
        (demo({"v1": 100}, v1=version("toy:a=1", autoscale={"max": 4})), demo(v1=version("toy:a=1", replicas=3)), []),
        (
            {"demo": DeploymentGoal({"v1": V1}, {"v1": 100.0}, {"rate": 0.0, "burst": 5})},
            {"demo": DeploymentGoal({"v1": V1}, None, {"rate": 2.0, "burst": 5})},
            ["policy demo: rate=2.0"],
        ),
        (SERVING, demo(v1=version("toy:a=1", priority="low")), ["set demo@v1: priority=low"]),
        (demo(v1=version("toy:a=1", priority="low")), SERVING, ["route demo: v1=100"]),
    ],
)
def test_the_changes_lead_to_the_goal(now: Goal, goal: Goal, expected: list[str]) -> None:
    assert changes(now, goal) == expected


def test_everything_is_loaded_before_any_route_and_routed_before_anything_is_unloaded() -> None:
    now = demo({"v1": 100}, v1=V1) | {"other": DeploymentGoal({"v1": V1}, {"v1": 100.0})}
    goal = {name: DeploymentGoal({"v1": OFF, "v2": V2}, {"v2": 100.0}) for name in now}
    kinds = [c.kind for c in plan(now, goal)]
    assert kinds == ["register"] * 2 + ["load"] * 2 + ["route"] * 2 + ["unload"] * 2


def test_what_is_not_named_is_left_alone_unless_it_is_to_be_pruned() -> None:
    now = demo({"v1": 100}, v1=V1, v2=V2) | {"other": DeploymentGoal({"v1": V1}, {"v1": 100.0})}
    goal = demo(v2=V2)
    assert (changes(now, goal), left_alone(now, goal)) == ([], ["other", "demo@v1"])
    assert changes(now, goal, prune=True) == ["route demo: v2=100", "delete demo@v1", "delete other@v1"]


def test_a_second_plan_has_nothing_to_do() -> None:
    goal = demo({"v1": 90.0, "v2": 10.0}, v1=version("toy:a=1", replicas=2, priority="low"), v2=V2)
    assert plan(goal, goal, prune=True) == []


@pytest.mark.parametrize(
    ("goal", "param", "said"),
    [
        (demo({"v1": 90, "v2": 5}, v1=V1, v2=V2), "deployments.demo.route", "sum to 95"),
        (demo({"v1": 90, "v3": 10}, v1=V1), "deployments.demo.route", "names 'v3'"),
        (demo({"v1": 100}, v1=OFF), "deployments.demo.route", "names 'v1'"),
        (demo(v1=OFF, v2=V2, v3=version()), "deployments.demo", "how v2 and v3 are to share it"),
    ],
)
def test_a_goal_that_cannot_be_is_refused_by_its_field(goal: Goal, param: str, said: str) -> None:
    with pytest.raises(InvalidRequest, match=said) as refused:
        plan(SERVING, goal)
    assert refused.value.param == param


def test_a_version_is_never_changed() -> None:
    with pytest.raises(Conflict, match="its model is 'toy:a=1', not 'toy:a=2'") as refused:
        plan(SERVING, demo(v1=V2))
    assert refused.value.param == "deployments.demo.versions.v1"


def test_an_export_says_only_what_differs_from_the_defaults() -> None:
    origin = Origin("first", "ann", {"loss": 2.5}, "abc")
    spec = WorkerSpec("builtin:demo-v1", dtype="bf16")
    now = {
        "demo": DeploymentGoal(
            {"v1": VersionGoal(spec, 2, {"priority": "low"}, True, origin), "v2": OFF}, {"v1": 100.0}, {"rate": 5.0}
        ),
        "idle": DeploymentGoal({"v1": OFF}, {}),
    }
    assert exported(now) == {
        "demo": {
            "versions": {
                "v1": {
                    "model": "builtin:demo-v1",
                    "dtype": "bf16",
                    "replicas": 2,
                    "priority": "low",
                    "note": "first",
                    "created_by": "ann",
                    "metadata": {"loss": 2.5},
                },
                "v2": {"model": "toy:a=1", "runner": "toy", "loaded": False},
            },
            "route": {"v1": 100.0},
            "policy": {"rate": 5.0},
        },
        "idle": {"versions": {"v1": {"model": "toy:a=1", "runner": "toy", "loaded": False}}},
    }
