"""`describes`: what a method of a handler takes and gives, said where it stands. `gateway.openapi` reads it.

Method and path are those of the route; names of the path's parts are the method's own parameters. Who may ask follows
from the handler (``is_open``, ``scope``), the shape of its errors from its ``error_type``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from jupyter_dsserve.protocol.errors import (
    Conflict,
    DeadlineExceeded,
    DSServeError,
    EngineFailure,
    NotFound,
    TooManyRequests,
    Unavailable,
)

M = TypeVar("M", bound=Callable[..., Any])
Errors = tuple[type[DSServeError], ...]

# Of what asks a model, and of what changes something that has a name.
INFERENCE_ERRORS: Errors = (NotFound, TooManyRequests, EngineFailure, Unavailable, DeadlineExceeded)
CHANGE_ERRORS: Errors = (NotFound, Conflict, Unavailable)


@dataclass(frozen=True, slots=True)
class Description:
    """``body`` is the type that the handler reads, ``example`` one of it as JSON. ``gives`` are the types of good
    answers by status (None: no body; `str`: plain text). ``events`` is the type of each event's data where the answer
    is, or can be, a stream of server-sent events. ``path`` has types of the path's parts that are not just any text;
    ``query`` and ``headers`` those of what may come besides, by name. ``errors`` come on top of those that every such
    route has: 400 and 431, 401 and 403 by its key, 413 with a body, which may be left out unless it
    ``needs_body``."""

    summary: str
    gives: Mapping[int, Any]
    body: Any = None
    example: Mapping[str, Any] = field(default_factory=dict)
    events: Any = None
    path: Mapping[str, Any] = field(default_factory=dict)
    query: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    errors: Errors = ()
    media: str = "application/json"
    needs_body: bool = True


def describes(summary: str, gives: Mapping[int, Any], **more: Any) -> Callable[[M], M]:
    """For a method of a handler: ``@describes("Make a key.", {201: MadeKey}, body=KeyBody, errors=(Unavailable,))``.

    The arguments are the fields of `Description`.
    """

    def marked(method: M) -> M:
        method.description = Description(summary, gives, **more)  # type: ignore[attr-defined]
        return method

    return marked


def description_of(method: Callable[..., Any]) -> Description | None:
    return getattr(method, "description", None)
