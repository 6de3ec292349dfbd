"""Verbs that move traffic between versions, by hand and by a rollout."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import Unpack

from jupyter_dsserve.notebook.address import is_remote
from jupyter_dsserve.notebook.checker import Check, start_checking
from jupyter_dsserve.notebook.options import PolicyOptions
from jupyter_dsserve.notebook.verbs.looking import Looking
from jupyter_dsserve.notebook.verbs.talk import DEPLOYMENT, POLL_S, Talk, path_of, read
from jupyter_dsserve.notebook.views import Deployment, Policy, Rollout
from jupyter_dsserve.protocol.policy import Rule

_POLICY = TypeAdapter(Policy)
_ROLLOUT = TypeAdapter(Rollout)


class Traffic(Looking):
    """Who gets the requests."""

    def route(
        self, name: str, weights: Mapping[str, float] | None = None, *, revision: int | None = None
    ) -> Talk[Deployment]:
        """Set the weights, in percent, that sum to 100; without them, only look.

        With ``revision`` (of the `Deployment` that was looked at) a change that somebody made since is not
        overwritten: it raises `Conflict`.
        """
        if weights is not None:
            body: dict[str, Any] = {"weights": dict(weights)}
            if revision is not None:
                body["revision"] = revision
            yield from self.send("PUT", f"{path_of(name)}/route", body)
        return (yield from self.deployment(name))

    def policy(self, name: str, **options: Unpack[PolicyOptions]) -> Talk[Policy]:
        """What the deployment does when things are busy or break: sets what is given, and keeps the rest; with nothing
        given, only looks.

        The options are the fields of `jupyter_dsserve.protocol.policy.Policy`; 0 switches a limit off. ``rules`` are
        such as ``{"header": "X-User-Group", "value": "beta", "version": "v2"}``.
        """
        path, chosen = f"{path_of(name)}/policy", {key: value for key, value in options.items() if value is not None}
        if rules := options.get("rules"):
            chosen["rules"] = [asdict(rule) if isinstance(rule, Rule) else dict(rule) for rule in rules]
        if chosen:
            yield from self.send("PUT", path, chosen)
        return (yield from self._look(_POLICY, path))

    # ---- a gray release

    def rollout(
        self,
        name: str,
        candidate: str = "",
        *,
        steps: Sequence[float] | None = None,
        interval_s: float | None = None,
        min_requests: int | None = None,
        max_error_rate: float | None = None,
        max_latency_ratio: float | None = None,
        mirror: float | None = None,
        block_s: float | None = None,
        check: Check | None = None,
    ) -> Talk[Rollout]:
        """Give ``candidate`` more and more traffic, as long as it does as well as the version it is to replace.

        Returns at once; without a ``candidate``, only looks at the rollout that runs, or ran last. The options are
        those of ``POST /api/deployments/{name}/rollout``; docs/gray-release.md says how it decides.
        ``check(prompt, answer)`` gives an answer's score, 0 to 1: it is called in a thread of this kernel with answers
        of both versions, and the candidate is rolled back if its scores are worse. While it is silent nothing goes on.
        """
        if candidate:
            given: dict[str, Any] = {
                "steps": None if steps is None else [float(step) for step in steps],
                "interval_s": interval_s,
                "min_requests": min_requests,
                "max_error_rate": max_error_rate,
                "max_latency_ratio": max_latency_ratio,
                "mirror": mirror,
                "block_s": block_s,
            }
            body = {key: value for key, value in given.items() if value is not None}
            path = f"{path_of(name)}/rollout"
            asked = {"candidate": candidate, "check": check is not None, **body}
            begun = read(_ROLLOUT, (yield from self.send("POST", path, asked)), self.url)
            if check:
                address = yield from self._address(start=True)
                start_checking(address, name, begun.started_at, check, trust_env=is_remote(address.url))
        return (yield from self._look(_ROLLOUT, f"{path_of(name)}/rollout"))

    def pause(self, name: str) -> Talk[Rollout]:
        """Leave the weights as they are until `resume`."""
        return (yield from self._by_hand(name, "pause"))

    def resume(self, name: str) -> Talk[Rollout]:
        """Go on with a paused rollout."""
        return (yield from self._by_hand(name, "resume"))

    def promote(self, name: str) -> Talk[Rollout]:
        """Give the candidate all traffic now; the old version drains and stops, and stays registered."""
        return (yield from self._by_hand(name, "promote"))

    def rollback(self, name: str, *, wait: bool = True) -> Talk[Deployment]:
        """Take the candidate of the rollout that runs back. Without a rollout: back to the weights before the last
        change of the route, loading what must be loaded."""
        yield from self.send("POST", f"{path_of(name)}/rollback")
        while True:
            found = yield from self._look(DEPLOYMENT, path_of(name), start=True)
            if not wait or not found.activating:
                return found
            yield POLL_S

    def _by_hand(self, name: str, verb: str) -> Talk[Rollout]:
        response = yield from self.send("POST", f"{path_of(name)}/rollout/{verb}")
        return read(_ROLLOUT, response, self.url)
