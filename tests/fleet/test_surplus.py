"""Which workers go when fewer are wanted."""

from __future__ import annotations

import pytest

from jupyter_dsserve.fleet.supervisor import surplus
from jupyter_dsserve.protocol.records import VersionState


class Seen:
    """What is looked at of a replica."""

    def __init__(self, id: str, in_flight: int, state: VersionState = VersionState.READY) -> None:
        self.id, self.in_flight, self.state = id, in_flight, state


@pytest.mark.parametrize(
    ("in_flight", "num_wanted", "going"),
    [
        ((0, 0, 0), 2, ["v#2"]),  # the newest
        ((0, 0, 0), 1, ["v#2", "v#1"]),
        ((1, 0, 5), 2, ["v#1"]),  # the one with the least to do
        ((3, 2, 2), 1, ["v#2", "v#1"]),
        ((3, 2, None), 2, ["v#2"]),  # the one that is not READY
        ((None, 2, 0), 1, ["v#0", "v#2"]),
        ((0, 0, 0), 3, []),
        ((0, 0, 0), 5, []),
        ((0, 0, 0), 0, ["v#2", "v#1", "v#0"]),
    ],
)
def test_the_least_useful_workers_go(in_flight: tuple[int | None, ...], num_wanted: int, going: list[str]) -> None:
    seen = [
        Seen(f"v#{i}", n or 0, VersionState.READY if n is not None else VersionState.LOADING)
        for i, n in enumerate(in_flight)
    ]
    assert surplus(seen, [s.id for s in seen], num_wanted) == going  # type: ignore[arg-type]
