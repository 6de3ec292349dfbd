"""What an asker settles when its call ends."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest
from tornado.httputil import HTTPHeaders

from jupyter_dsserve.gateway.asker import Asker
from jupyter_dsserve.gateway.calls import Calls
from jupyter_dsserve.gateway.tracing import Traces
from jupyter_dsserve.protocol.errors import TooManyRequests
from jupyter_dsserve.protocol.request import Request
from jupyter_dsserve.protocol.traces import Attribute


class Caller(Asker):
    sent_headers, passed_s = HTTPHeaders(), 0.0

    def __init__(self, calls: Calls, traces: Any) -> None:
        fleet = SimpleNamespace(has_deployment=lambda name: name == "demo")
        self.enter(cast(Any, SimpleNamespace(fleet=fleet, calls=calls, traces=traces)))

    def attributes(self) -> Mapping[str, Attribute]:
        return {}


def test_a_call_is_ended_as_often_as_it_has_begun() -> None:
    class Broken(Traces):
        def begin(self, *_: Any, **__: Any) -> Any:
            raise ValueError("a header that cannot be")

    calls = Calls(max_calls=1)
    running = Caller(calls, Traces())
    running.begin_call("demo", Request("a", "x"), "generate")
    for traces, fault in ((Broken(), ValueError), (Traces(), TooManyRequests)):
        refused = Caller(calls, traces)
        with pytest.raises(fault):
            refused.begin_call("demo", Request("b", "x"), "generate")
        refused.end_call()
        assert calls.num_running == 1
    running.end_call()
    assert calls.num_running == 0
