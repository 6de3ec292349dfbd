"""Every route of ``/openapi.json`` is asked what nobody thought of, by schemathesis: no answer is a fault of ours, each
comes in time, and has a status, a type and a shape that the document says.

What loads is a toy, and at most three workers fit into the memory that this gateway may hold: nothing large can start.
"""

from __future__ import annotations

import copy
import time
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import load_all_checks
from schemathesis.config import SchemathesisConfig
from schemathesis.specs.openapi.checks import positive_data_acceptance

from jupyter_dsserve.gateway.openapi import document
from jupyter_dsserve.gateway.server import ROUTES
from tests.support import Command

TOY = "toy:step_s=0.001"
TIMEOUT_S = 20.0
# A few of the largest bodies are as long as those of our own tests.
QUIET = list(HealthCheck)
UNFIT = [positive_data_acceptance]  # what fits a schema may still not be: a version that is not there


def closed(schema: Any) -> Any:
    """The document with answers that have no fields but those that are told."""
    if isinstance(schema, list):
        return [closed(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    found = {key: closed(value) for key, value in schema.items()}
    if "properties" in found and isinstance(found["properties"], dict) and "type" in found:
        found.setdefault("additionalProperties", False)
    return found


CONFIG = {
    "generation": {
        "deterministic": True,
        "database": "none",
        "with-security-parameters": False,
        "allow-extra-parameters": False,
    },
    # They are hundreds of cases a route, of which each may take as long as the policy lets it.
    "phases": {"examples": {"enabled": False}, "coverage": {"enabled": False}},
    # What is unready or takes too long says so; every other fault is ours.
    "checks": {"not_a_server_error": {"expected-statuses": ["2xx", "3xx", "4xx", "503", "504"]}},
}
SCHEMA: Any = schemathesis.openapi.from_dict(
    closed(document(ROUTES)), config=SchemathesisConfig.from_dict(copy.deepcopy(CONFIG))
).exclude(path="/api/events")  # never ends
load_all_checks()


class Server:
    """A gateway in a process of its own, with the toy ``demo@v1``."""

    def __init__(self, command: Command) -> None:
        self.command = command
        self.url = command.url()
        self.headers = {"Authorization": f"Bearer {command.key}"}
        self.http = httpx.Client(base_url=self.url, headers=self.headers, timeout=TIMEOUT_S, trust_env=False)

    def restore(self) -> None:
        """Have `demo` READY, with a policy that lets nothing run long, and nothing else."""
        end = time.monotonic() + 60
        while True:
            found = {d["name"]: d for d in self.http.get("/api/deployments").json()}
            for name in found.keys() - {"demo"}:
                self.http.delete(f"/api/deployments/{name}")
            versions = {v["version"]: v for v in found.get("demo", {"versions": []})["versions"]}
            for name in versions.keys() - {"v1"}:
                self.http.post("/api/deployments/demo/rollout/rollback")
                self.http.delete(f"/api/deployments/demo/versions/{name}")
            if versions.keys() == {"v1"} and versions["v1"]["state"] == "READY" and found.keys() == {"demo"}:
                break
            assert time.monotonic() < end, found
            if "v1" not in versions or versions["v1"]["state"] in ("STOPPED", "FAILED"):
                self.http.post("/api/deployments", json={"name": "demo", "version": "v1", "model": TOY})
            time.sleep(0.05)
        self.http.put("/api/deployments/demo/route", json={"weights": {"v1": 100.0}})
        policy = {"rate": 0.0, "max_in_flight": 0, "timeout_s": 0.1, "fallback": "", "fallback_answer": "", "rules": []}
        answer = self.http.put("/api/deployments/demo/policy", json={**policy, "breaker_failures": 1000})
        assert answer.status_code == 200, answer.text


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    data_dir = tmp_path_factory.mktemp("every") / "data"
    options = ("--memory-budget", "4000000B", "--drain", "0")
    with Command(data_dir, *options) as command:
        found = Server(command)
        yield found
        found.http.close()
        assert command.process.poll() is None  # whatever was asked, it runs
        command.process.terminate()
        command.process.wait(30)
        assert "Traceback" not in command.output()


@pytest.fixture
def ready(server: Server) -> Server:
    server.restore()
    return server


def tame(case: Any) -> None:
    """Ask mostly for what is there, and load nothing but small toys."""
    parts = case.path_parameters
    for name, there in (("name", "demo"), ("version", "v1")):
        if name in parts and zlib.crc32(repr(parts[name]).encode()) % 3:
            parts[name] = there
    if case.query and "wait_s" in case.query:
        case.query["wait_s"] = min(float(case.query["wait_s"]), 0.1) if _is_number(case.query["wait_s"]) else "x"
    if case.path.startswith("/api/") and isinstance(case.body, dict):
        _tame(case.body)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _tame(body: Any) -> None:
    if isinstance(body, list):
        for each in body:
            _tame(each)
    if isinstance(body, dict):
        for key, value in body.items():
            if key == "model" and isinstance(value, str):
                body[key] = TOY
            elif key == "python" and isinstance(value, str):
                body[key] = ""
            elif key in ("replicas", "max", "min") and _is_number(value) and 2 < value <= 64:  # more are refused
                body[key] = 2
            else:
                _tame(value)


def ask(case: Any, server: Server) -> None:
    tame(case)
    case.call_and_validate(
        base_url=server.url,
        headers=server.headers,
        timeout=TIMEOUT_S,
        excluded_checks=UNFIT,
    )


@SCHEMA.parametrize()
@settings(max_examples=2, derandomize=True, database=None, deadline=None, suppress_health_check=QUIET)
def test_whatever_is_asked_is_answered_as_the_document_says(case: Any, ready: Server) -> None:
    ask(case, ready)


@pytest.mark.long
@pytest.mark.timeout(3600)
@SCHEMA.parametrize()
@settings(max_examples=25, derandomize=True, database=None, deadline=None, suppress_health_check=QUIET)
def test_the_same_with_more_examples(case: Any, ready: Server) -> None:
    ask(case, ready)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_what_an_answer_names_is_asked_for_next(ready: Server) -> None:
    """Keys, deployments, versions and traces that an answer tells of, in calls one after another."""
    machine: Any = SCHEMA.as_state_machine()

    class Caller(machine):  # type: ignore[misc]
        def setup(self) -> None:
            ready.restore()

        def before_call(self, case: Any) -> None:
            tame(case)

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return {"base_url": ready.url, "headers": ready.headers, "timeout": TIMEOUT_S}

        def validate_response(self, response: Any, case: Any, additional_checks: Any = (), **_: Any) -> None:
            case.validate_response(response, excluded_checks=UNFIT, headers=ready.headers)

    Caller.run(
        settings=settings(
            max_examples=50,
            stateful_step_count=8,
            derandomize=True,
            database=None,
            deadline=None,
            suppress_health_check=QUIET,
        )
    )
