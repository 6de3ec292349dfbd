"""The shapes that ``/openapi.json`` tells are those of what is sent."""

from __future__ import annotations

from typing import Any, cast

import pydantic
import pytest

from jupyter_dsserve.gateway.answers import ResponseAnswer
from jupyter_dsserve.gateway.responses import Told
from jupyter_dsserve.gateway.responses_bodies import ResponseBody
from jupyter_dsserve.gateway.tools import Reader

LEAST = {"model": "demo", "input": "hi"}
MORE = {
    **LEAST,
    "instructions": "Be brief.",
    "max_output_tokens": 5,
    "metadata": {"a": "b"},
    "reasoning": {"effort": "none"},
    "tools": [{"type": "function", "name": "time"}],
    "tool_choice": {"type": "function", "name": "time"},
    "text": {"format": {"type": "json_schema", "name": "a", "schema": {}}},
    "user": "me",
}


class Exact(ResponseAnswer):
    __pydantic_config__ = pydantic.ConfigDict(extra="forbid", strict=True)  # type: ignore[misc]


ALLOWED = {"type": "allowed_tools", "mode": "auto", "tools": [MORE["tool_choice"]]}


@pytest.mark.parametrize("body", [LEAST, MORE, MORE | {"tool_choice": ALLOWED}])
def test_a_response_has_the_fields_that_are_told_and_no_others(body: dict[str, Any]) -> None:
    told = Told("a", ResponseBody.model_validate(body), cast(Reader, None))
    pydantic.TypeAdapter(Exact).validate_python(told.response("completed"))
