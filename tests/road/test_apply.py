"""A deployments file: applied, applied again, and written from what is served."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from jupyter_dsserve import AsyncClient
from jupyter_dsserve.gateway.server import Gateway
from jupyter_dsserve.notebook.views import Applied
from jupyter_dsserve.protocol.errors import Conflict, InvalidRequest, Unavailable
from tests.support import Caller, Command, until

ONE = """\
deployments:
  demo:
    versions:
      v1: {model: "toy:step_s=0.001"}
"""
TWO = """\
deployments:
  demo:
    versions:
      v1: {model: "toy:step_s=0.001", loaded: false}
      v2:
        model: "toy:step_s=0.002,load_s=0.5"
        note: the second
    route: {v2: 100}
"""


@pytest.fixture
async def client(gateway: Gateway) -> AsyncIterator[AsyncClient]:
    client = AsyncClient(gateway.url, gateway.admin_key)
    yield client
    await client.aclose()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    file = tmp_path / "deployments.yaml"
    file.write_text(ONE)
    return file


def write(file: Path, text: str) -> None:
    file.write_text(text)


def read(file: Path) -> str:
    return file.read_text()


def lines(applied: Applied) -> list[str]:
    return [str(change) for change in applied.changes]


async def test_a_dry_run_tells_and_does_nothing_an_apply_does_it_and_a_second_one_nothing(
    client: AsyncClient, file: Path
) -> None:
    planned = await client.apply(file, dry_run=True)
    assert str(planned) == "- register demo@v1: toy:step_s=0.001\n- load demo@v1"
    assert (await client.status()).deployments == []
    done = await client.apply(file)
    assert (done.state, done.num_done) == ("APPLIED", 2)
    demo = await client.deployment("demo")
    assert [(v.version, v.state) for v in demo.versions] == [("v1", "READY")]
    assert demo.weights == {"v1": 100}
    assert str(await client.apply(file)) == "nothing to do: the fleet is as the file says"


async def test_a_swap_by_file_loses_no_request(client: AsyncClient, caller: Caller, file: Path) -> None:
    await client.apply(file)
    write(file, TWO)
    answers, is_over = [], asyncio.Event()

    async def ask() -> None:
        while not is_over.is_set():
            answers.append(await caller.complete())

    asking = asyncio.gather(*(ask() for _ in range(8)))
    seen: list[Applied] = []
    done = await client.apply(file, on_progress=seen.append)
    await until(lambda: answers[-1].headers.get("X-DSServe-Version") == "v2")
    is_over.set()
    await asking
    assert lines(done) == [
        "register demo@v2: toy:step_s=0.002,load_s=0.5",
        "load demo@v2",
        "route demo: v2=100",
        "unload demo@v1",
    ]
    assert {a.status_code for a in answers} == {200}
    assert {a.headers["X-DSServe-Version"] for a in answers} == {"v1", "v2"}
    assert [a.num_done for a in seen] == sorted(a.num_done for a in seen)
    await caller.settled("demo", "v1", "STOPPED")
    assert (await client.deployment("demo")).weights == {"v2": 100}


async def test_an_export_applied_elsewhere_gives_the_same_and_here_nothing_to_do(
    client: AsyncClient, caller: Caller, file: Path, tmp_path: Path
) -> None:
    await client.apply(file)
    write(file, TWO)
    await client.apply(file)
    await caller.load("other", "v1", "toy:", replicas=2, priority="low", metadata={"loss": 2.5})
    rules = [{"header": "X-Team", "value": "a", "version": "v1"}]
    await caller.put("/api/deployments/other/policy", json={"rate": 50, "fallback": "v1", "rules": rules})
    text = await client.export(file)
    assert "rate: 50" in text
    assert read(file) == text
    assert str(await client.apply(file, prune=True)) == "nothing to do: the fleet is as the file says"
    with Command(tmp_path / "elsewhere", "--deployments", str(file)) as command:
        async with await command.caller() as there:
            await there.settled("other", "v1", "READY")
            await there.settled("demo", "v2", "READY")
            await until(lambda: there.get("/api/apply"), lambda a: a.json()["state"] == "APPLIED")
            assert (await there.get("/api/export")).json() == (await caller.get("/api/export")).json()


async def test_workers_are_scaled_by_the_file_by_number_and_automatically(
    client: AsyncClient, caller: Caller, file: Path
) -> None:
    await client.apply(file)
    write(file, ONE.replace('0.001"', '0.001", replicas: 2, priority: low'))
    assert lines(await client.apply(file)) == ["scale demo@v1: from 1 workers to 2", "set demo@v1: priority=low"]
    await until(lambda: caller.version("demo", "v1"), lambda v: [r["state"] for r in v["replicas"]] == ["READY"] * 2)
    write(file, ONE.replace('0.001"', '0.001", autoscale: {min: 1, max: 3}'))
    [change] = lines(await client.apply(file))
    assert change.startswith("autoscale demo@v1: min=1, max=3")
    assert "max: 3" in await client.export(file)
    assert lines(await client.apply(file)) == []
    write(file, ONE.replace('0.001"', '0.001", autoscale: false, replicas: 1'))
    assert lines(await client.apply(file))[0] == "autoscale demo@v1: off"
    assert "autoscale" not in await client.export()
    write(file, ONE.replace('0.001"', '0.001", autoscale: {min: 5, max: 3}'))
    with pytest.raises(InvalidRequest, match="line 4: min is 5 and max is 3"):
        await client.apply(file)


async def test_cuda_is_the_first_gpu_in_a_load_and_in_a_file(client: AsyncClient, file: Path) -> None:
    loaded = await client.load("demo", "toy:step_s=0.001", version="v1", device="cuda")
    assert loaded.spec.device == "cuda:0"
    for told in ("cuda", "cuda:0"):
        write(file, ONE.replace('0.001"', f'0.001", device: {told}'))
        assert lines(await client.apply(file)) == [], "it is registered just so"
    with pytest.raises(InvalidRequest, match="device"):
        await client.load("demo", "toy:", version="v2", device="gpu")


async def test_pruning_deletes_what_the_file_does_not_name(client: AsyncClient, caller: Caller, file: Path) -> None:
    await caller.load("old", "v1", "toy:")
    await client.apply(file)
    left = await client.apply(file)
    assert left.left_alone == ["old"]
    pruned = await client.apply(file, prune=True)
    assert lines(pruned) == ["delete old@v1"]
    await until(lambda: caller.get("/api/deployments"), lambda a: [d["name"] for d in a.json()] == ["demo"])


async def test_a_load_that_fails_leaves_what_serves_and_says_why(
    client: AsyncClient, caller: Caller, file: Path
) -> None:
    await client.apply(file)
    write(file, TWO.replace("note: the second", "python: /bin/false"))
    with pytest.raises(Unavailable, match="/bin/false"):
        await client.apply(file)
    assert (await client.deployment("demo")).weights == {"v1": 100}
    assert (await caller.complete()).headers["X-DSServe-Version"] == "v1"
    failed = [e for e in await client.history() if e.kind == "apply_failed"]
    assert "2 of 4 changes" in failed[0].reason


async def test_two_at_once_are_refused(client: AsyncClient, file: Path) -> None:
    write(file, ONE.replace("0.001", "0.001,load_s=30"))
    await client.apply(file, wait=False)
    with pytest.raises(Conflict, match="another deployments file"):
        await client.apply(file)


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("note:", "notte:", r"line 7: unknown field .*'deployments.demo.versions.v2.notte': did you mean 'note'"),
        ("note: the second", "tp: two", r"line 7: field 'deployments.demo.versions.v2.tp' is \"two\""),
        ("note: the second", "tp: 2", "line 7: .*tp"),
        ("toy:step_s=0.002", "/no/such/model", "line 6: model '/no/such/model.*' does not exist"),
        ("{v2: 100}", "{v2: 90}", "line 8: the route of demo: the weights sum to 90"),
        ("{v2: 100}", "{v1: 100}", "line 8: the route of demo names 'v1'"),
        ("      v2:", "      v/2:", "line 5: version name 'v/2'"),
        ("step_s=0.001", "step_s=0.009", "line 4: demo@v1 is registered already, and its model is"),
        ("    route:", "    policy: {ratte: 1}\n    route:", "line 8: unknown field .*did you mean 'rate'"),
        ("    route", "    rout", "line 8: unknown field 'deployments.demo.rout': did you mean 'route'"),
    ],
)
async def test_what_is_wrong_is_said_with_its_line_and_nothing_is_done(
    client: AsyncClient, file: Path, before: str, after: str, said: str
) -> None:
    await client.apply(file)
    write(file, TWO.replace(before, after))
    with pytest.raises((InvalidRequest, Conflict), match=f"deployments.yaml, {said}"):
        await client.apply(file)
    assert [v.version for v in (await client.deployment("demo")).versions] == ["v1"]


async def test_a_gateway_follows_its_file(tmp_path: Path, file: Path) -> None:
    with Command(tmp_path / "data", "--deployments", str(file), "--watch") as command:
        async with await command.caller() as caller:
            await caller.settled("demo", "v1", "READY")
            write(file, "deployments: [")
            await until(
                lambda: caller.get("/api/history"),
                lambda a: any("deployments.yaml, line" in e["reason"] for e in a.json()),
            )
            two = TWO.replace("load_s=0.5", "load_s=3")
            write(file, two)
            await until(lambda: caller.get("/api/apply"), lambda a: a.json()["state"] == "APPLYING")
            write(
                file, two.replace("the second", "written while the other was being applied\n      v3: {model: 'toy:'}")
            )
            await until(lambda: caller.get("/api/deployments/demo"), lambda a: a.json()["weights"] == {"v2": 100})
            await until(lambda: caller.version("demo", "v3"), lambda v: v.get("state") == "READY")


async def test_a_file_that_is_wrong_keeps_a_gateway_from_starting(tmp_path: Path, file: Path) -> None:
    write(file, ONE.replace("toy:", "nonsense/"))
    with Command(tmp_path / "data", "--deployments", str(file)) as command:
        assert "deployments.yaml, line 4: model" in command.output()


async def test_the_commands_apply_and_export(gateway: Gateway, data_dir: Path, file: Path, tmp_path: Path) -> None:
    program = str(Path(sys.executable).with_name("jupyter-dsserve"))

    async def run(*words: str) -> tuple[int, str]:
        command = [program, *words, "--data-dir", str(data_dir)]
        done = await asyncio.to_thread(subprocess.run, command, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    assert await run("apply", str(file), "--dry-run") == (0, "- register demo@v1: toy:step_s=0.001\n- load demo@v1\n")
    code, said = await run("apply", str(file))
    assert (code, said.splitlines()[2:]) == (0, ["done: register demo@v1: toy:step_s=0.001", "done: load demo@v1"])
    assert await run("apply", str(file)) == (0, "nothing to do: the fleet is as the file says\n")
    assert await run("export", str(tmp_path / "out.yaml")) == (0, "")
    assert await run("export", "deployments", str(tmp_path / "same.yaml")) == (0, "")
    assert (tmp_path / "same.yaml").read_text() == (tmp_path / "out.yaml").read_text()
    for what in ("grafana", "alerts"):
        assert (await run("export", what, str(tmp_path / what)))[0] == 0
        written = sorted(path.name for path in (tmp_path / what).iterdir())
        assert written == ["alerts.yml", "dashboard.json", "prometheus.yml"]
    code, text = await run("export")
    assert (code, text) == (0, (tmp_path / "out.yaml").read_text())
    assert "toy:step_s=0.001" in text
    write(file, TWO.replace("note", "notte"))
    code, said = await run("apply", str(file))
    assert code == 1
    assert "line 7: unknown field" in said
    code, said = await run("apply", str(file), "--url", "http://127.0.0.1:1")
    assert code == 1
