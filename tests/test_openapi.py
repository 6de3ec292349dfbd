"""``/openapi.json`` tells of every route, and of nothing else; and it is what OpenAPI says a document is."""

from __future__ import annotations

import re
from typing import Any

import schemathesis

from jupyter_dsserve.gateway.describe import describes
from jupyter_dsserve.gateway.handlers import Handler, methods_of
from jupyter_dsserve.gateway.openapi import document, undescribed
from jupyter_dsserve.gateway.server import ROUTES

DOCUMENT = document(ROUTES)


def test_every_method_of_every_route_is_described() -> None:
    missing = "\n  ".join(undescribed(ROUTES))
    assert not missing, (
        f"these methods do not say what they take and give:\n  {missing}\nWrite above each, from gateway/describe.py, "
        '@describes("What it does.", {200: TypeOfTheAnswer}, body=TypeOfTheBody, example={...}, query={"name": type}, '
        "errors=(NotFound, ...)): the types of answers are records of protocol/records.py or TypedDicts in "
        "gateway/answers.py"
    )


def test_every_path_of_the_document_leads_to_the_handler_that_describes_it() -> None:
    for path, methods in DOCUMENT["paths"].items():
        example = re.sub(r"\{\w+\}", "x", path)
        handler = next(handler for pattern, handler in ROUTES if re.fullmatch(pattern, example))
        for method, told in methods.items():
            assert getattr(handler, method).description.summary == told["summary"]
    routes = [(p, h) for p, h in ROUTES if methods_of(h)]
    assert len(DOCUMENT["paths"]) == len({p for p, _ in routes})


def test_it_is_a_valid_document_with_one_id_for_each_operation() -> None:
    schemathesis.openapi.from_dict(DOCUMENT).validate()
    ids = [told["operationId"] for methods in DOCUMENT["paths"].values() for told in methods.values()]
    assert len(ids) == len(set(ids))


def test_a_method_that_says_nothing_is_named() -> None:
    class Silent(Handler):
        def get(self, name: str) -> None: ...

    assert undescribed([("/x/([^/]+)", Silent)]) == ["GET /x/{name} (Silent.get)"]


def test_parts_of_a_path_are_named_as_the_parameters_and_answers_need_all_their_fields() -> None:
    told = DOCUMENT["paths"]["/api/deployments/{name}/versions/{version}/logs"]["get"]
    assert [(p["name"], p["in"]) for p in told["parameters"]] == [
        ("name", "path"),
        ("version", "path"),
        ("lines", "query"),
    ]
    status: Any = DOCUMENT["components"]["schemas"]["VersionStatus"]
    assert set(status["required"]) == set(status["properties"])


def test_who_may_ask_and_how_errors_look_follow_from_the_handler() -> None:
    paths = DOCUMENT["paths"]
    assert paths["/health/live"]["get"]["security"] == []
    assert paths["/v1/embeddings"]["post"]["security"] == [{"key": ["infer"]}]
    assert paths["/api/keys"]["post"]["security"] == [{"key": ["admin"]}]
    assert paths["/metrics"]["get"]["security"] == [{"key": ["metrics"]}]
    assert _error(paths["/v1/embeddings"]["post"]).endswith("/OpenAIFaultAnswer")
    assert _error(paths["/v2/models/{name}/infer"]["post"]).endswith("/OIPFaultAnswer")
    assert "403" in paths["/api/keys"]["post"]["responses"]
    assert "403" in paths["/v1/embeddings"]["post"]["responses"], "a key that only reads metrics"


def _error(told: Any) -> str:
    return str(told["responses"]["400"]["content"]["application/json"]["schema"]["$ref"])


def test_a_stream_is_told_beside_the_whole_answer() -> None:
    content = DOCUMENT["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]
    assert set(content) == {"application/json", "text/event-stream"}
    assert content["text/event-stream"]["x-itemSchema"]["$ref"].endswith("/ChatChunk")


def test_one_handler_may_have_several_routes() -> None:
    class Twice(Handler):
        @describes("Twice.", {200: str})
        def get(self, name: str, version: str = "") -> None: ...

    paths = document([("/a/([^/]+)", Twice), ("/b/([^/]+)/([^/]+)", Twice)])["paths"]
    assert set(paths) == {"/a/{name}", "/b/{name}/{version}"}
