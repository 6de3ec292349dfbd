"""What may stand in the bodies of ``/v1/classify``, ``/v1/score`` and ``/v1/rerank``: texts, and pairs of texts."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field

from jupyter_dsserve.gateway.bodies import Body, Priority, TimeoutS
from jupyter_dsserve.gateway.openai_bodies import MAX_TEXTS, TextsBody, TokenIds, requests_of
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Pair, Request, Text

TextList = Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]
TextPair = Annotated[list[str], Field(min_length=2, max_length=2)]


class ClassifyBody(TextsBody):
    """Texts, the token ids of texts, or pairs of texts (``[["premise", "hypothesis"], …]``), each for itself."""

    input: (
        str
        | TextList
        | Annotated[TokenIds, Field(min_length=1)]
        | Annotated[list[Annotated[TokenIds, Field(min_length=1)]], Field(min_length=1, max_length=MAX_TEXTS)]
        | Annotated[list[TextPair], Field(min_length=1, max_length=MAX_TEXTS)]  # type: ignore[assignment]
    )

    def texts(self) -> list[Text]:
        given: Any = self.input
        is_pairs = isinstance(given, list) and isinstance(given[0], list) and isinstance(given[0][0], str)
        return [Pair(*pair) for pair in given] if is_pairs else super().texts()


class ScoreBody(Body):
    """One ``text_1`` is held against every ``text_2``; several against as many, each against its own."""

    model: str
    text_1: str | TextList
    text_2: str | TextList
    user: str | None = None
    priority: Priority = 0
    timeout_s: TimeoutS | None = None

    def requests(self) -> list[Request]:
        """Raises `InvalidRequest` for two numbers of texts that do not go together."""
        first, second = ([text] if isinstance(text, str) else text for text in (self.text_1, self.text_2))
        if len(first) == 1:
            first = first * len(second)
        if len(first) != len(second):
            raise InvalidRequest(
                f"text_1 has {len(first)} texts and text_2 {len(second)}: send one text_1, or as many as there are "
                "of text_2",
                param="text_1",
            )
        return requests_of(list(map(Pair, first, second)), self.priority, self.timeout_s)


class RerankBody(Body):
    """``top_n`` 0: all documents come back."""

    model: str
    query: str
    documents: TextList
    top_n: Annotated[int, Field(ge=0, lt=2**31)] = 0
    return_documents: bool = True
    user: str | None = None
    priority: Priority = 0
    timeout_s: TimeoutS | None = None

    def requests(self) -> list[Request]:
        return requests_of([Pair(self.query, each) for each in self.documents], self.priority, self.timeout_s)
