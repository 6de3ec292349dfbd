"""The gateway is killed at random moments while everything changes, and what it had said stays true."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.postgres import Postgres
from tests.support import Caller, Command, is_running, until, worker_pids

MAX_VERSIONS = 4  # of the deployment that changes: each is a process


@dataclass
class Known:
    """What must be true after the next start. None: a change was under way, and either is right."""

    exists: dict[str, bool | None] = field(default_factory=dict)
    wanted: dict[str, bool | None] = field(default_factory=dict)
    models: dict[str, str] = field(default_factory=dict)
    weights: dict[str, float] | None = None
    policy: dict[str, float | None] = field(default_factory=dict)
    rollout: str | None = ""  # its state; empty before there is one
    events: dict[int, Any] = field(default_factory=dict)
    num_routes: int = 0  # that were known, and so checked

    def forget_route(self, leaving: str = "") -> None:
        """It may change: whatever is done, or because a version leaves."""
        if not (leaving and self.weights and leaving not in self.weights):
            self.weights = None

    @property
    def there(self) -> list[str]:
        return [name for name, exists in self.exists.items() if exists]


class Changes:
    """Random changes of the deployment ``demo``, one after the other, each noted before it is asked and once it is
    acknowledged."""

    def __init__(self, caller: Caller, known: Known, rng: random.Random, life: int) -> None:
        self._caller, self._known, self._rng = caller, known, rng
        self._life, self._count = life, 0
        self.num_acknowledged = 0
        self.is_over = False
        self._is_activating = False  # it changes the route whenever its version is READY

    async def run(self) -> None:
        choices: list[tuple[Callable[[], Awaitable[None]], int]] = [
            (self._load, 4),
            (self._load_again, 2),
            (self._unload, 1),
            (self._delete, 1),
            (self._activate, 3),
            (self._route, 6),
            (self._policy, 2),
            (self._rollout, 1),
            (self._look, 2),
        ]
        acts, weights = zip(*choices, strict=True)
        while not self.is_over:
            await self._rng.choices(acts, weights)[0]()
            await asyncio.sleep(self._rng.uniform(0, 0.06))  # so that the kill often finds nothing under way

    async def route_last(self) -> None:
        """Set the route while nothing else is under way."""
        await until(lambda: any_ready(self._caller))
        self._is_activating = False
        if not await self._ready():  # none is loaded
            await (self._load_again() if self._known.there else self._load())
            await until(self._ready)
        await self._route()

    async def _ask(self, method: str, path: str, body: Any = None) -> httpx.Response:
        answer = await self._caller.request(method, f"/api/deployments{path}", json=body)
        assert answer.status_code < 500 or answer.status_code == 503, answer.text
        self.num_acknowledged += answer.is_success
        return answer

    async def _load(self) -> None:
        known = self._known
        if len(known.there) >= MAX_VERSIONS:
            return
        self._count += 1
        name, model = f"v{self._life}-{self._count}", f"toy:step_s=0.001,load_s={self._rng.choice([0, 0.05, 0.4])}"
        known.exists[name], known.wanted[name], known.models[name] = None, None, model
        if (await self._ask("POST", "", {"name": "demo", "version": name, "model": model})).is_success:
            known.exists[name], known.wanted[name] = True, True

    async def _load_again(self) -> None:
        if name := self._one():
            before, self._known.wanted[name] = self._known.wanted[name], None
            is_done = (await self._ask("POST", f"/demo/versions/{name}/load")).is_success
            # The activation that is under way may unload it again.
            self._known.wanted[name] = (None if self._is_activating else True) if is_done else before

    async def _unload(self) -> None:
        if name := self._one():
            self._known.wanted[name] = None
            self._known.forget_route(name)
            if (await self._ask("POST", f"/demo/versions/{name}/unload")).is_success and not self._is_activating:
                self._known.wanted[name] = False

    async def _delete(self) -> None:
        if (name := self._one()) and len(self._known.there) > 1:
            self._known.exists[name] = self._known.wanted[name] = None
            self._known.forget_route(name)
            if (await self._ask("DELETE", f"/demo/versions/{name}")).is_success:
                self._known.exists[name] = False

    async def _activate(self) -> None:
        """Mostly one that is READY: the route of others changes when nobody is told."""
        ready = await self._ready() if self._rng.random() < 0.8 else []
        if name := self._rng.choice(ready) if ready else self._one():
            known = self._known
            known.forget_route()
            known.wanted = dict.fromkeys(known.wanted)
            answer = await self._ask("POST", "/demo/activate", {"version": name})
            if answer.is_success:
                known.wanted[name] = True
            if answer.status_code == 200 and not self._is_activating:
                known.weights = {name: 100.0}
            self._is_activating |= answer.status_code == 202

    async def _route(self) -> None:
        if ready := await self._ready():
            share = self._rng.randrange(1, 100)
            names = self._rng.sample(ready, min(2, len(ready)))
            weights = dict(zip(names, (share, 100 - share) if len(names) == 2 else (100,), strict=True))
            self._known.forget_route()
            if (await self._ask("PUT", "/demo/route", {"weights": weights})).is_success and not self._is_activating:
                self._known.weights = {name: float(weight) for name, weight in weights.items()}

    async def _policy(self) -> None:
        if self._known.there:
            rate = self._rng.randrange(1000, 9999)
            self._known.policy["rate"] = None
            if (await self._ask("PUT", "/demo/policy", {"rate": rate})).is_success:
                self._known.policy["rate"] = float(rate)

    async def _rollout(self) -> None:
        """Of another deployment, whose route is the rollout's own."""
        known, before = self._known, self._known.rollout
        known.rollout = None
        if before == "":
            for name in ("v1", "v2"):
                await self._caller.load("gray", name, "toy:step_s=0.001")
            spec = {"candidate": "v2", "steps": [10, 100], "min_requests": 1_000_000}
            if (await self._ask("POST", "/gray/rollout", spec)).is_success:
                known.rollout = "PROGRESSING"
        else:
            verb, after = ("resume", "PROGRESSING") if before == "PAUSED" else ("pause", "PAUSED")
            if (await self._ask("POST", f"/gray/rollout/{verb}")).is_success:
                known.rollout = after

    async def _look(self) -> None:
        """What is shown as history is history."""
        answer = await self._caller.get("/api/history?limit=50")
        self._known.events |= {event["id"]: event for event in answer.json()}

    async def _ready(self) -> list[str]:
        status = await self._caller.get("/api/deployments/demo")
        versions = status.json()["versions"] if status.is_success else []
        return [v["version"] for v in versions if v["state"] == "READY"]

    def _one(self) -> str:
        there = self._known.there
        return self._rng.choice(there) if there else ""


async def check(caller: Caller, known: Known) -> None:
    """Whatever was acknowledged is so, and the rest fits together."""
    deployments = {d["name"]: d for d in (await caller.get("/api/deployments")).json()}
    demo = deployments.get("demo", {"versions": [], "weights": {}})
    versions = {v["version"]: v for v in demo["versions"]}
    for name, exists in known.exists.items():
        assert exists is None or exists == (name in versions), f"{name}: exists is {exists}"
        known.exists[name] = name in versions
        if name in versions:
            assert versions[name]["spec"]["model"] == known.models[name]
            is_wanted = versions[name]["state"] != "STOPPED"
            assert known.wanted[name] in (None, is_wanted), f"{name} is {versions[name]['state']}"
            known.wanted[name] = is_wanted
    assert set(versions) <= set(known.exists)
    for deployment in deployments.values():
        weights = deployment["weights"]
        assert not weights or sum(weights.values()) == pytest.approx(100)
        assert set(weights) <= {v["version"] for v in deployment["versions"]}
    if known.weights is not None and demo["versions"]:
        assert known.weights == demo["weights"]
        known.num_routes += 1
    if demo["versions"] and "rate" in known.policy:
        rate = (await caller.get("/api/deployments/demo/policy")).json()["rate"]
        assert known.policy["rate"] in (None, rate)
        known.policy["rate"] = rate
    if known.rollout != "":
        found = await caller.get("/api/deployments/gray/rollout")
        state = found.json()["state"] if found.is_success else ""
        assert known.rollout in (None, state)
        known.rollout = state
        assert not state or deployments["gray"]["weights"] in ({"v1": 100}, {"v1": 90, "v2": 10})
    history = (await caller.get("/api/history?since=0&limit=10000")).json()
    assert len(history) < 10_000, "it may not be all of it: ask for the rest too"
    ids = [event["id"] for event in history]
    assert ids == sorted(set(ids))
    by_id = {event["id"]: event for event in history}
    for id, event in known.events.items():
        assert by_id[id] == event


async def any_ready(caller: Caller) -> bool:
    deployments = (await caller.get("/api/deployments")).json()
    wanted = [v["state"] for d in deployments if d["name"] == "demo" for v in d["versions"] if v["state"] != "STOPPED"]
    is_activating = any(d["activating"] for d in deployments)
    return not wanted or ("READY" in wanted and not is_activating)


async def kill_and_come_back(data_dir: Path, num_kills: int, seed: int, *options: str) -> None:
    known, rng, num_acknowledged = Known(), random.Random(seed), 0
    for life in range(num_kills + 1):
        with Command(data_dir, "--drain", "0.2", *options) as command:
            async with await command.caller() as caller:
                await check(caller, known)
                if known.there and rng.random() < 0.7:  # else while they load
                    await until(lambda: any_ready(caller))
                changes = Changes(caller, known, rng, life)
                changing = asyncio.create_task(changes.run())
                await asyncio.wait({changing}, timeout=rng.uniform(0.0, 1.2))
                if life % 2:  # at rest; else in the middle of whatever it is
                    await until(lambda c=changes, task=changing: c.num_acknowledged > 2 or task.done())
                    changes.is_over = True
                    await changing
                    await changes.route_last()
                workers = worker_pids(command.pid)
                command.process.kill()
                if changing.done() and (fault := changing.exception()):
                    raise AssertionError(command.output()[-4000:]) from fault
                with contextlib.suppress(httpx.HTTPError):
                    await changing
                num_acknowledged += changes.num_acknowledged
        await until(lambda pids=workers: not any(map(is_running, pids)))
    # else nothing was tested
    assert num_acknowledged > num_kills
    assert known.num_routes >= num_kills / 5


async def test_five_kills_lose_nothing_that_was_acknowledged(data_dir: Path) -> None:
    await kill_and_come_back(data_dir, 5, 1)


async def test_kills_lose_nothing_on_a_database_server_either(data_dir: Path, postgres: Postgres) -> None:
    await kill_and_come_back(data_dir, 2, 3, "--database-url", postgres.database())


@pytest.mark.long
@pytest.mark.timeout(1200)
async def test_fifty_kills_lose_nothing_that_was_acknowledged(data_dir: Path) -> None:
    await kill_and_come_back(data_dir, 50, 2)
