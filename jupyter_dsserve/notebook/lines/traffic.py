"""Lines that move traffic."""

from __future__ import annotations

from IPython.core.error import UsageError
from IPython.core.magic_arguments import argument, magic_arguments

from jupyter_dsserve.notebook import session
from jupyter_dsserve.notebook.arguments import name_and_version, one_of, parsed, percents, rule, weight
from jupyter_dsserve.notebook.views import Deployment, Policy, Rollout


class TrafficLines:
    """Who answers, and what happens when things are busy or break."""

    @magic_arguments("dsserve route")
    @argument("name", help="The deployment.")
    @argument("weights", nargs="*", help="v1=90 v2=10: percent that sum to 100; none shows them.")
    def route(self, line: str) -> Deployment:
        """Split the traffic between versions."""
        given = parsed(self.route, line)
        return session.client().route(given.name, dict(map(weight, given.weights)) or None)

    @magic_arguments("dsserve policy")
    @argument("name", help="The deployment.")
    @argument("--rate", type=float, help="Calls a second; more get 429. 0 takes any number, as in all limits here.")
    @argument("--burst", type=int, help="Calls at once before the rate holds; 0 is a second's worth.")
    @argument("--max-in-flight", type=int, help="Requests on a replica at once; the others wait in line.")
    @argument("--max-queue", type=int, help="How many may wait; then the last in line gets 429.")
    @argument("--acquire-timeout", dest="acquire_timeout_s", type=float, help="Seconds to wait in line before a 503.")
    @argument("--queue-timeout", dest="queue_timeout_s", type=float, help="Seconds to wait in line before a 504.")
    @argument("--first-token-timeout", dest="first_token_timeout_s", type=float, help="Seconds to the first token.")
    @argument("--timeout", dest="timeout_s", type=float, help="Seconds to the end of an answer.")
    @argument("--fallback", help="The version that answers if the one that should cannot.")
    @argument("--fallback-answer", help="The text if that cannot either, in quotes.")
    @argument("--rule", dest="rules", action="append", help="HEADER=VALUE:VERSION; several times; '' drops them all.")
    @argument("--retry-share", type=float, help="Of what is in flight, 0 to 1, may be asked again of another replica.")
    @argument("--min-retries", type=int, help="So many may be asked again in any case.")
    @argument("--breaker-failures", type=int, help="In a row close a replica's door.")
    @argument("--breaker-share", type=float, help="Of the last 100 answers, 0 to 1, close it too.")
    @argument("--breaker-open", dest="breaker_open_s", type=float, help="Seconds until it is tried again.")
    @argument("--breaker-successes", type=int, help="In a row open the door again.")
    def policy(self, line: str) -> Policy:
        """What a deployment does when things are busy or break: limits, the line, deadlines, who stands in."""
        given = vars(parsed(self.policy, line))
        if given["rules"] is not None:
            given["rules"] = [rule(text) for text in given["rules"] if text]
        return session.client().policy(given.pop("name"), **given)

    @magic_arguments("dsserve rollout")
    @argument("name", help="The deployment, or demo@v2.")
    @argument("candidate", nargs="?", default="", help="The version to give traffic; none shows the rollout.")
    @argument("--steps", help="Its shares in percent, rising: 5,25,50,100 unless told.")
    @argument("--interval", dest="interval_s", type=float, help="The least seconds at each step: 30 unless told.")
    @argument("--min-requests", type=int, help="The least requests of it at each step: 50 unless told.")
    @argument("--max-error-rate", type=float, help="0 to 1; over it the rollout ends at once: 0.1 unless told.")
    @argument("--max-latency-ratio", type=float, help="Times the old version's; the same: 2 unless told.")
    @argument("--mirror", type=float, help="First give it copies of so many percent of the old version's requests.")
    @argument("--block", dest="block_s", type=float, help="Seconds whose requests are compared: 1 unless told.")
    def rollout(self, line: str) -> Rollout:
        """Give a version more and more traffic, as long as it does as well as the one it is to replace."""
        given = vars(parsed(self.rollout, line))
        name, candidate = name_and_version(given.pop("name"), given.pop("candidate"))
        if steps := given.pop("steps"):
            given["steps"] = percents(steps)
        if not candidate and any(value is not None for value in given.values()):
            raise UsageError(f"%dsserve rollout {name}: {one_of(name, session.versions_of(name))}")
        return session.client().rollout(name, candidate, **given)

    @magic_arguments("dsserve pause")
    @argument("name", help="The deployment.")
    def pause(self, line: str) -> Rollout:
        """Leave a rollout's weights as they are until `resume`."""
        return session.client().pause(parsed(self.pause, line).name)

    @magic_arguments("dsserve resume")
    @argument("name", help="The deployment.")
    def resume(self, line: str) -> Rollout:
        """Go on with a paused rollout."""
        return session.client().resume(parsed(self.resume, line).name)

    @magic_arguments("dsserve promote")
    @argument("name", help="The deployment.")
    def promote(self, line: str) -> Rollout:
        """Give a rollout's candidate all traffic now; the old version drains and stops."""
        return session.client().promote(parsed(self.promote, line).name)

    @magic_arguments("dsserve rollback")
    @argument("name", help="The deployment.")
    def rollback(self, line: str) -> Deployment:
        """Take a rollout's candidate back; without a rollout, undo the last change of the route."""
        return session.client().rollback(parsed(self.rollback, line).name)
