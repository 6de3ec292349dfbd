"""How a deployment's traffic is split: an immutable `Route`, and the pure choices made on it."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from jupyter_dsserve.protocol.errors import InvalidRequest

# Two sliders that each round to a hundredth must still be accepted as 100.
_SUM_TOLERANCE = 0.01


@dataclass(frozen=True, slots=True)
class Route:
    """Weights in percent by version name; they sum to 100, or there are none. ``revision`` grows with each change."""

    weights: Mapping[str, float] = field(default_factory=dict)
    revision: int = 0

    def replaced(self, weights: Mapping[str, float]) -> Route:
        """The next revision. Raises `InvalidRequest` if a weight is negative or they do not sum to 100."""
        for name, weight in weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise InvalidRequest(
                    f"the weight of {name} is {weight}: weights are percent, 0 or more", param="weights"
                )
        total = math.fsum(weights.values())
        if abs(total - 100) > _SUM_TOLERANCE:
            raise InvalidRequest(f"the weights sum to {total:g}, not to 100: {_listed(weights)}", param="weights")
        return Route({n: w for n, w in weights.items() if w > 0}, self.revision + 1)

    def without(self, name: str, ready: Collection[str]) -> Route:
        """The next revision without ``name``: its share goes to the other ready versions in proportion.

        If none of them holds weight the route becomes empty, and calls are answered 503 until a version is ready.
        """
        if name not in self.weights:
            return self
        rest = {n: w for n, w in self.weights.items() if n != name and n in ready}
        total = math.fsum(rest.values())
        return Route({n: 100 * w / total for n, w in rest.items()}, self.revision + 1)

    def pick(self, key: str, ready: Collection[str]) -> str | None:
        """The version for ``key`` among the ready ones, with probability by weight; None if no ready one has weight.

        Weighted rendezvous hashing (Schindelhauer and Schomaker 2005): the same key gives the same version while
        weights stand, and a change of weights moves only as many keys as it must.
        """
        candidates = [(n, w) for n, w in self.weights.items() if n in ready]
        if not candidates:
            return None
        return max(candidates, key=lambda c: _score(key, *c))[0]


def _score(key: str, name: str, weight: float) -> float:
    digest = hashlib.blake2b(f"{key}\0{name}".encode(), digest_size=8).digest()
    uniform = (int.from_bytes(digest, "big") + 1) / (2**64 + 1)
    return -weight / math.log(uniform)


def _listed(weights: Mapping[str, float]) -> str:
    return ", ".join(f"{n}={w:g}" for n, w in weights.items()) or "no version is named"
