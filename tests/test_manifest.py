"""Deployments files: what is read, and which line an error names."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import pytest

from jupyter_dsserve.gateway import apply
from jupyter_dsserve.manifest import Manifest, stamp, to_yaml, watch
from jupyter_dsserve.protocol.errors import Conflict, InvalidRequest

TEXT = """\
apiVersion: dsserve/v1
deployments:
  demo:
    versions:
      v1: {model: "builtin:demo-v1", metadata: {day: 2026-01-02, loss: 2.5}}
      v1.0:
        model: ./model
        tp: 2
    route:
      v1: 100
"""


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "deployments.yaml"
    file.write_text(text)
    return file


def test_a_file_is_read_with_the_models_beside_it(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    demo = Manifest.read(written(tmp_path, TEXT)).deployments["demo"]
    assert demo["versions"]["v1"] == {"model": "builtin:demo-v1", "metadata": {"day": "2026-01-02", "loss": 2.5}}
    assert demo["versions"]["v1.0"]["model"] == str(tmp_path / "model")
    assert demo["route"] == {"v1": 100}


@pytest.mark.parametrize(
    ("where", "line"),
    [
        ("deployments.demo", 3),
        ("deployments.demo.versions.v1.model", 5),
        ("deployments.demo.versions.v1.0.tp", 8),
        ("deployments.demo.versions.v1.0", 6),
        ("deployments.demo.versions.v1.0.no_such_field", 6),
        ("deployments.demo.route.v1", 10),
        ("", 1),
    ],
)
def test_every_field_has_its_line(tmp_path: Path, where: str, line: int) -> None:
    file = written(tmp_path, TEXT)
    assert Manifest.read(file).place(where) == f"{file}, line {line}"


def test_an_error_keeps_its_kind_and_gets_its_line(tmp_path: Path) -> None:
    manifest = Manifest.read(written(tmp_path, TEXT))
    placed = manifest.placed(Conflict("taken", param="deployments.demo.versions.v1"))
    assert isinstance(placed, Conflict)
    assert placed.message.endswith("deployments.yaml, line 5: taken")
    other = InvalidRequest("the disk", param="lines")
    assert manifest.placed(other) is other


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("deployments: {demo: {versions: {v1: {model: a}, v1: {model: b}}}}", "line 1: 'v1' stands here twice"),
        ("deployments:\n  demo:\n    versions:\n      1: {model: a}", "line 4: the name 1 is no text"),
        ("deployments:\n  demo: [", "line 2: expected the node content"),
        ("deployments: {}\ndeploymnets: {}", "line 2: unknown field 'deploymnets': did you mean 'deployments'"),
        ("apiVersion: v9\ndeployments: {}", "line 1: apiVersion is 'v9'"),
        ("demo: {}", "holds no deployments"),
        ("", "holds no deployments"),
        ("deployments:\n  demo: {note: 0x_}", "line 2: '0x_' is no int"),
        ("deployments:\n  demo: {note: !!timestamp x}", "line 2: 'x' is no timestamp"),
        ("deployments:\n  demo: {note: !!bool x}", "line 2: 'x' is no bool"),
        ("deployments:\n  demo: {versions: {v1: {model: ~no-such-user/x}}}", "line 2: the model '~no-such-user/x'"),
        (f"deployments:\n  demo: {{versions: {{v1: {{model: {'x' * 300}}}}}}}", "line 2: the model 'xxx"),
        ("deployments: !!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_what_is_no_deployments_file_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Manifest.read(written(tmp_path, text))
    assert said in refused.value.message
    assert "deployments.yaml" in refused.value.message


@pytest.mark.parametrize("file", ["no-such.yaml", "~no-such-user/deployments.yaml"])
def test_a_file_that_is_not_there_is_named(file: str) -> None:
    assert stamp(file) is None
    with pytest.raises(InvalidRequest, match=r"no-such.* cannot be read"):
        Manifest.read(file)


def test_a_watched_file_that_is_not_there_is_told_of_once_and_then_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, said, turns = tmp_path / "typo.yaml", list[str](), iter(range(4))

    def sleep(_s: float) -> None:
        turn = next(turns)
        if turn == 1:
            file.write_text(TEXT)
        if turn == 3:
            raise KeyboardInterrupt

    # Not time.sleep itself: a thread that another test left may be asleep.
    monkeypatch.setattr("jupyter_dsserve.manifest.time", SimpleNamespace(sleep=sleep))
    with pytest.raises(KeyboardInterrupt):
        watch(lambda: said.append(f"read {len(Manifest.read(file).deployments)}"), file, said.append)
    assert "typo.yaml cannot be read" in said[0]
    assert said[1:] == ["read 1"]


def test_watching_goes_on_whatever_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = list[str]()
    monkeypatch.setattr("jupyter_dsserve.manifest.time", Mock(sleep=Mock(side_effect=KeyboardInterrupt)))
    with pytest.raises(KeyboardInterrupt):
        watch(Mock(side_effect=OSError("the network")), written(tmp_path, TEXT), said.append)
    assert said == ["OSError: the network"]


async def test_a_gateways_watching_goes_on_whatever_goes_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, fleet = written(tmp_path, TEXT), Mock()
    failed, applied = asyncio.Event(), asyncio.Event()

    async def apply_file(*_: object) -> None:
        if failed.is_set():
            applied.set()
            return
        failed.set()
        raise RuntimeError("never thought of")

    monkeypatch.setattr(apply, "apply_file", apply_file)
    monkeypatch.setattr(apply, "LOOK_S", 0.01)
    watching = asyncio.create_task(apply.keep_applied(fleet, str(file)))
    await asyncio.sleep(0.02)
    written(tmp_path, TEXT + "\n")
    await asyncio.wait_for(failed.wait(), 30)
    written(tmp_path, TEXT)
    await asyncio.wait_for(applied.wait(), 30)
    watching.cancel()
    [told] = fleet.events.record.call_args_list
    assert told.args[1] == "apply_failed"
    assert told.kwargs["reason"] == "RuntimeError: never thought of"


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    deployments = {"demo": {"versions": {"1.0": {"model": "toy:", "note": "a: b # ü"}}, "route": {"1.0": 100.0}}}
    assert Manifest.read(written(tmp_path, to_yaml(deployments))).deployments == deployments


def test_a_files_stamp_changes_when_it_is_written(tmp_path: Path) -> None:
    assert stamp(tmp_path / "no-such") is None
    file = written(tmp_path, TEXT)
    before = stamp(file)
    assert stamp(file) == before
    written(tmp_path, TEXT + "\n")
    assert stamp(file) != before
