"""A version as it is registered and as it is shown: its names, its row, whether two are the same, its status."""

from __future__ import annotations

import re
from dataclasses import asdict

from jupyter_dsserve.content import check_content
from jupyter_dsserve.fleet.registry import VersionRow
from jupyter_dsserve.fleet.version import Version
from jupyter_dsserve.protocol.errors import Conflict, InvalidRequest
from jupyter_dsserve.protocol.records import Origin, VersionStatus
from jupyter_dsserve.protocol.spec import WorkerSpec

_AT_REST = "at rest, as nobody asked it: the next request loads it"
# Fits file names and URLs, and leaves @ and # free for demo@v1#0.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


def row_of(v: Version) -> VersionRow:
    return VersionRow(
        v.deployment,
        v.name,
        v.spec,
        v.num_replicas,
        v.origin.note,
        v.created_at,
        v.is_wanted,
        settings=dict(v.settings),
        created_by=v.origin.created_by,
        metadata=v.origin.metadata,
        content=v.origin.content,
    )


def version_of(row: VersionRow) -> Version:
    """As it was registered: nobody has looked yet where its model lies."""
    origin = Origin(row.note, row.created_by, row.metadata, row.content)
    version = Version(row.deployment, row.name, row.spec, "", row.num_replicas, origin, row.created_at)
    version.settings = dict(row.settings)
    return version


def same(taken: Version, spec: WorkerSpec, num_replicas: int | None, content: str) -> Version:
    """``taken``, if that is what is asked for. Raises `Conflict` with the differences if not."""
    have = asdict(taken.spec) | {"replicas": taken.num_replicas}
    want = asdict(spec) | {"replicas": num_replicas or taken.num_replicas}
    different = ", ".join(f"{name} is {have[name]!r}, not {want[name]!r}" for name in have if have[name] != want[name])
    if different:
        raise Conflict(
            f"{taken.id} exists already, and its {different}: versions never change, so give this one another name, or "
            "delete that one first",
            param="version",
        )
    check_content(taken.id, taken.origin.content, content, spec.model)  # last: another model has other content anyhow
    return taken


def status_of(version: Version, weight: float, waits_for: str) -> VersionStatus:
    """As it stands. ``waits_for`` says why its load waits, if it does."""
    return VersionStatus(
        deployment=version.deployment,
        version=version.name,
        state=version.state,
        progress=version.progress,
        stage=next((r.stage for r in version.replicas), ""),
        reason=version.failure or waits_for or (_AT_REST if version.is_resting else ""),
        weight=weight,
        replicas=[r.status for r in version.replicas],
        spec=version.spec,
        created_at=version.created_at,
        info=version.info,
        **asdict(version.origin),
        num_replicas=version.num_replicas,
        settings=dict(version.settings),
    )


def check_names(deployment: str, version: str) -> None:
    """Raises `InvalidRequest` for what cannot be their names."""
    for kind, name in (("deployment", deployment), ("version", version)):
        if not _NAME.fullmatch(name):
            raise InvalidRequest(
                f"{kind} name {name!r}: use letters, digits, '.', '_' and '-', at most 63 of them", param=kind
            )
