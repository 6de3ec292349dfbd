"""Two minutes of everything at once. Long: `make test-long`; the half hour is `python -m tests.engine.soak`."""

from __future__ import annotations

import pytest

from tests.engine.soak import make_runner, soak


# In the first minute memory still grows, in part by what oneDNN compiles for new numbers of rows and keeps.
@pytest.mark.parametrize("seconds", [0, pytest.param(120, marks=pytest.mark.long)])
def test_everything_at_once_leaves_nothing_behind(seconds: float) -> None:
    outcome = soak(make_runner(), seconds, num_steps=400)
    assert {"stop", "length"} <= outcome.ends.keys()
    assert outcome.num_cached > 100
    if seconds:
        assert {"abort", "DeadlineExceeded", "InvalidRequest", "EngineFailure"} <= outcome.ends.keys()
        assert outcome.num_preempted > 0
        assert outcome.growth < 0.05
