"""Calls of models as their callers see them: how many run, how they ended, how long they took."""

from __future__ import annotations

from dataclasses import dataclass, field

from jupyter_dsserve.fleet.stats import Histogram
from jupyter_dsserve.protocol.errors import DSServeError, TooManyRequests

# Of OpenTelemetry's conventions for generative AI, gen_ai.server.request.duration.
DURATION_S = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)


@dataclass(slots=True)
class Calls:
    """``max_calls`` at once; 0 is any number. ``durations`` are by deployment, version and outcome."""

    max_calls: int = 0
    num_running: int = 0
    durations: dict[tuple[str, str, str], Histogram] = field(default_factory=dict)

    def begin(self) -> None:
        """To be ended in any case. Raises `TooManyRequests` if there are enough already."""
        self.num_running += 1
        if self.max_calls and self.num_running > self.max_calls:
            raise TooManyRequests(
                f"{self.max_calls} calls run on this gateway already, which is its max_calls: ask again later"
            )

    def end(self) -> None:
        self.num_running -= 1

    def observe(self, deployment: str, version: str, outcome: str, seconds: float) -> None:
        key = (deployment, version, outcome)
        found = self.durations.get(key)
        if found is None:
            found = self.durations[key] = Histogram(DURATION_S)
        found.observe(seconds)


def outcome_of(fault: BaseException | None, has_left: bool) -> str:
    """One of few words: a caller's own mistake, and one who left, say nothing of us."""
    if has_left:
        return "cancelled"
    if fault is None:
        return "ok"
    if isinstance(fault, TooManyRequests):
        return "rate_limited"
    status = fault.status if isinstance(fault, DSServeError) else 500
    return "timeout" if status == 504 else "error" if status >= 500 else "client_error"
