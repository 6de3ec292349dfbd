"""What may stand in the bodies of ``/v1/embeddings``, ``/v1/classify``, ``/v1/score`` and ``/v1/rerank``: texts and
pairs of texts, and how they are cut into requests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import Field

from jupyter_dsserve.gateway.bodies import Body, Priority, TimeoutS, TokenIds, new_id
from jupyter_dsserve.protocol.errors import InvalidRequest
from jupyter_dsserve.protocol.request import Pair, Request, Text, Texts, text_size

# OpenAI's own limits.
MAX_TEXTS = 2048
TextList = Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS)]
TextPair = Annotated[list[str], Field(min_length=2, max_length=2)]
# Of one request to a worker: enough to fill batches, and few enough that a long list spreads over the replicas.
_TEXTS_A_REQUEST = 32
# Nor more characters, but for one long text: a worker tokenizes a request at one go, and others wait for it meanwhile.
_CHARS_A_REQUEST = 1 << 18


class TextsBody(Body):
    """Texts, or the token ids of texts, each for itself."""

    model: str
    input: (
        str
        | TextList
        | Annotated[TokenIds, Field(min_length=1)]
        | Annotated[list[Annotated[TokenIds, Field(min_length=1)]], Field(min_length=1, max_length=MAX_TEXTS)]
    )
    user: str | None = None
    priority: Priority = 0
    timeout_s: TimeoutS | None = None

    def texts(self) -> list[Text]:
        given: list[Any] = self.input if isinstance(self.input, list) else [self.input]
        if isinstance(given[0], int):
            given = [given]
        return [text if isinstance(text, str) else tuple(text) for text in given]

    def requests(self) -> list[Request]:
        return requests_of(self.texts(), self.priority, self.timeout_s)


def requests_of(texts: Sequence[Text], priority: int, timeout_s: float | None) -> list[Request]:
    """The texts of a call, cut into requests that can run side by side."""
    parts: list[list[Text]] = []
    num_chars = 0
    for text in texts:
        num_chars += text_size(text)
        if not parts or len(parts[-1]) == _TEXTS_A_REQUEST or num_chars > _CHARS_A_REQUEST:
            parts.append([])
            num_chars = text_size(text)
        parts[-1].append(text)
    return [Request(new_id("texts"), Texts(tuple(part)), priority=priority, timeout_s=timeout_s) for part in parts]


class EmbeddingsBody(TextsBody):
    """``dimensions`` keeps the first of each vector's numbers and makes its length 1 again."""

    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1, lt=2**31)] | None = None


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
