"""Deployments files: what is read, and which line an error names."""

from __future__ import annotations

from pathlib import Path

import pytest

from jupyter_dsserve.manifest import Manifest, stamp, to_yaml
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
        ("deployments: !!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_what_is_no_deployments_file_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        Manifest.read(written(tmp_path, text))
    assert said in refused.value.message
    assert "deployments.yaml" in refused.value.message


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="no-such"):
        Manifest.read(tmp_path / "no-such.yaml")


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
