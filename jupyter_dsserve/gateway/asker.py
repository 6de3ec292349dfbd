"""`Asker`: whoever calls a model, by whichever face: its key, its place within the limits, and what it is told beside
the answer."""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping

from tornado.httputil import HTTPHeaders

from jupyter_dsserve.fleet.fleet import Fleet
from jupyter_dsserve.fleet.keys import Grant, Reservation
from jupyter_dsserve.fleet.tracing import Trace
from jupyter_dsserve.gateway.access import log_call
from jupyter_dsserve.gateway.calls import outcome_of
from jupyter_dsserve.gateway.context import Context
from jupyter_dsserve.protocol.errors import Forbidden, Unauthorized
from jupyter_dsserve.protocol.records import Scope
from jupyter_dsserve.protocol.request import Request
from jupyter_dsserve.protocol.spec import Task
from jupyter_dsserve.protocol.traces import Attribute

_OPENS = {"infer": "asks models", "metrics": "reads /metrics"}


class Asker:
    """A face says `sent_headers`, `passed_s`, `attributes`; `generate.start` does the rest. `end_call` in any case."""

    def enter(self, context: Context) -> None:
        """What a constructor does; Tornado's handlers have none of their own."""
        self.context = context
        self.fleet: Fleet = context.fleet
        self.grant: Grant | None = None  # what the caller's key allows; None is everything
        self.reservation: Reservation | None = None
        self.asked: str | None = None  # the deployment of a call of a model; empty if there is none of the name
        self.trace: Trace | None = None  # of a call of a model
        self.fault: BaseException | None = None  # what a call ended with, if only in its last event
        self.caller_left = False
        self.kept: dict[str, str] = {}  # headers that an error answer carries too

    # ---- what a face says

    @property
    def sent_headers(self) -> HTTPHeaders:
        """The caller's."""
        raise NotImplementedError

    @property
    def passed_s(self) -> float:
        """Seconds since the call came."""
        raise NotImplementedError

    def attributes(self) -> Mapping[str, Attribute]:
        """What a trace says of the call besides, in OpenTelemetry's names."""
        raise NotImplementedError

    def keep_header(self, name: str, value: str) -> None:
        """Tell it with the answer, an error too."""
        self.kept[name] = value

    def drop_header(self, name: str) -> None:
        """Forget one that `keep_header` has set."""
        self.kept.pop(name, None)

    @property
    def owner(self) -> str:
        """Whose regions of shared memory a call may use: its key's id, or empty for the admin key."""
        return self.grant.key.id if self.grant else ""

    # ---- checks

    def check_key(self) -> None:
        """Raises `Unauthorized`."""
        scheme, _, key = self.sent_headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not key:
            raise Unauthorized("no key: send the header 'Authorization: Bearer KEY' (the admin key lies in admin.key)")
        key = key.strip()
        if not hmac.compare_digest(key.encode(), self.context.admin_key.encode()):
            self.grant = self.fleet.held_keys.grant(key, time.time())

    def check_scope(self, needed: Scope, what: str) -> None:
        """Raises `Forbidden` for a key that does not open ``what``, which needs one of that scope."""
        if self.grant and self.grant.key.scope not in (needed, "admin"):
            key = self.grant.key
            enough = "a key of scope admin" if needed == "admin" else f"a key of scope {needed} or admin"
            raise Forbidden(
                f"the key {key.name!r} only {_OPENS.get(key.scope, 'does what is not known here')}: {what} needs the "
                f"admin key, or {enough}"
            )

    def may_ask(self, deployment: str) -> bool:
        return self.grant is None or self.grant.may_ask(deployment)

    def check_model(self, model: str) -> None:
        """Raises `NotFound` for a model that the caller's key may not ask; and for one on its list that does not exist,
        without the names of others."""
        if self.grant:
            self.grant.check(model)
            if self.grant.key.deployments is not None and not self.fleet.has_deployment(model.partition("@")[0]):
                raise self.grant.missing(model)

    # ---- the call

    def begin_call(self, model: str, request: Request, task: Task) -> None:
        """``request`` is its first; its id is the answer's ``X-Request-Id``. Raises `TooManyRequests` if the gateway
        runs as many as it may."""
        name = model.partition("@")[0]
        asked = name if self.fleet.has_deployment(name) else ""
        self.keep_header("X-Request-Id", request.id)
        self.trace = self.context.traces.begin(
            model,
            request,
            task,
            traceparent=self.sent_headers.get("Traceparent", ""),
            tracestate=self.sent_headers.get("Tracestate", ""),
            passed_s=self.passed_s,
            deployment=asked,
        )
        self.asked = asked  # from here on it is to be ended
        self.context.calls.begin()

    def end_call(self) -> None:
        """If one has begun. Its key's limits are settled then."""
        if self.reservation:
            self.reservation.settle()
        if self.asked is not None:
            calls, outcome = self.context.calls, outcome_of(self.fault, self.caller_left)
            calls.end()
            version = self.kept.get("X-DSServe-Version", "")
            calls.observe(self.asked, version, outcome, self.passed_s)
            own = {"dsserve.key_id": self.grant.key.id} if self.grant else {}
            attributes = {**self.attributes(), **own}
            if self.trace:
                error = type(self.fault).__name__ if self.fault else ""
                self.context.traces.end(self.trace, outcome, version=version, error=error, attributes=attributes)
            log_call(self.trace, self.kept.get("X-Request-Id", ""), outcome, self.passed_s, attributes)
