"""docs/openai.md speaks of every field that the installed `openai` package knows, and says of it what is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from openai.types import completion_create_params, embedding_create_params
from openai.types.chat import ChatCompletionMessageParam
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from jupyter_dsserve.gateway.bodies import validated
from jupyter_dsserve.gateway.openai_bodies import ChatBody, ChatMessage, CompletionBody
from jupyter_dsserve.gateway.responses_bodies import ResponseBody
from jupyter_dsserve.gateway.text_bodies import EmbeddingsBody
from jupyter_dsserve.protocol.errors import InvalidRequest

DOCS = (Path(__file__).parent.parent / "docs/openai.md").read_text()
ASKED: dict[str, tuple[Any, ...]] = {
    "Completions": (
        completion_create_params.CompletionCreateParamsNonStreaming,
        completion_create_params.CompletionCreateParamsStreaming,
    ),
    "Chat completions": (
        chat_create_params.CompletionCreateParamsNonStreaming,
        chat_create_params.CompletionCreateParamsStreaming,
    ),
    "Responses": (
        response_create_params.ResponseCreateParamsNonStreaming,
        response_create_params.ResponseCreateParamsStreaming,
    ),
    "Messages": get_args(ChatCompletionMessageParam),
    "Embeddings": (embedding_create_params.EmbeddingCreateParams,),
}
BODIES: dict[str, Any] = {
    "Completions": CompletionBody,
    "Chat completions": ChatBody,
    "Responses": ResponseBody,
    "Messages": ChatMessage,
    "Embeddings": EmbeddingsBody,
}
LEAST: dict[str, Any] = {
    "Completions": {"model": "demo", "prompt": "x"},
    "Chat completions": {"model": "demo", "messages": [{"role": "user", "content": "x"}]},
    "Responses": {"model": "demo", "input": "x"},
    "Messages": {"role": "assistant", "content": "x"},
    "Embeddings": {"model": "demo", "input": "x"},
}


def table(title: str) -> dict[str, str]:
    """Field → what is said of it."""
    section = re.split(r"^#+ ", DOCS.partition(f"# {title}\n")[2], maxsplit=1, flags=re.MULTILINE)[0]
    return dict(re.findall(r"^\| `(\w+)` \| (.*) \|$", section, re.MULTILINE))


@pytest.mark.parametrize("title", ASKED)
def test_every_field_is_in_its_table(title: str) -> None:
    known = {field for kind in ASKED[title] for field in kind.__annotations__}
    assert len(known) > 4
    assert known <= table(title).keys()


@pytest.mark.parametrize("title", ASKED)
def test_what_is_refused_is_refused_by_name_and_what_is_not_is_known(title: str) -> None:
    kind = BODIES[title]
    for name, said in table(title).items():
        if said.startswith("refused"):
            with pytest.raises(InvalidRequest, match=name):
                validated(kind, {**LEAST[title], name: {"type": "any"}})
        else:
            assert name in kind.model_fields, f"{name}: {said}"


@pytest.mark.parametrize("title", ASKED)
def test_only_the_values_that_are_named_are_taken(title: str) -> None:
    for name, said in table(title).items():
        if not (only := re.match(r"only (.*)", said)) or name == "best_of":
            continue
        values = [value.strip("`") for value in only[1].split(", ")]
        for value in values:
            read = {"false": False, '["text"]': ["text"]}.get(value, value)
            validated(BODIES[title], {**LEAST[title], name: read})
        with pytest.raises(InvalidRequest, match=name) as refused:
            validated(BODIES[title], {**LEAST[title], name: "other"})
        assert refused.value.message.endswith("leave it out")


def test_best_of_may_be_n_and_nothing_else() -> None:
    assert CompletionBody(model="m", prompt="x", n=2, best_of=2).requests().num_choices == 2
    with pytest.raises(InvalidRequest, match="best_of is 3 and n is 2"):
        CompletionBody(model="m", prompt="x", n=2, best_of=3).requests()
