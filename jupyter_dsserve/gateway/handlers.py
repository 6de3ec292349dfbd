"""What all handlers share: the key, the body's limit, errors as JSON, cancelling when the caller leaves."""

from __future__ import annotations

import asyncio
import json
import logging
from asyncio import Future
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import wraps
from http.client import responses
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, TypeVar

import orjson
from tornado.httputil import HTTPHeaders
from tornado.iostream import StreamClosedError
from tornado.web import HTTPError, RequestHandler, stream_request_body

from jupyter_dsserve.gateway.answers import FaultAnswer
from jupyter_dsserve.gateway.asker import Asker
from jupyter_dsserve.gateway.bodies import B, read_body
from jupyter_dsserve.gateway.connections import check_headers
from jupyter_dsserve.gateway.context import Context
from jupyter_dsserve.protocol.errors import (
    DSServeError,
    InvalidRequest,
    NotAllowed,
    NotFound,
    TooLarge,
    TooManyRequests,
    Unauthorized,
    Unavailable,
)
from jupyter_dsserve.protocol.records import Scope
from jupyter_dsserve.protocol.traces import Attribute

log = logging.getLogger(__name__)

# Headers that a page from elsewhere may send, and may read.
_FROM_PAGES = "Authorization, Content-Type, X-DSServe-Priority, Traceparent, Tracestate"
_TO_PAGES = "X-DSServe-Version, X-DSServe-Degraded, X-Request-Id, Retry-After"


def is_number(text: str) -> bool:
    return text.isdecimal() and len(text) < 10


def _json(value: object) -> bytes:
    """Also whole numbers of more than 64 bits, which a registry may hold from before they were refused."""
    try:
        return orjson.dumps(value)
    except TypeError:
        return json.dumps(value, default=_plain).encode()


def _plain(value: Any) -> object:
    """What orjson would make of it, for what the standard encoder does not know."""
    if is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, Enum):
        return value.value
    raise TypeError(f"{type(value).__name__} is not JSON")


def methods_of(handler: type[RequestHandler]) -> list[str]:
    """Those that it answers, in lower case; OPTIONS aside, which every one does."""
    none = RequestHandler._unimplemented_method
    return [method for method in ("get", "head", "post", "put", "delete") if getattr(handler, method) is not none]


H = TypeVar("H", bound="Handler")
P = ParamSpec("P")


def until_caller_leaves(
    method: Callable[Concatenate[H, P], Awaitable[None]],
) -> Callable[Concatenate[H, P], Awaitable[None]]:
    """Cancel the method when its connection closes: nobody would read the answer."""

    @wraps(method)
    async def cancellable(self: H, /, *args: P.args, **kwargs: P.kwargs) -> None:
        self.work = asyncio.current_task()
        try:
            await method(self, *args, **kwargs)
        except StreamClosedError:
            self.caller_left = True  # while we wrote
        except asyncio.CancelledError:
            if not self.caller_left:
                raise
        except Exception as fault:
            self.fault = fault
            raise
        finally:
            self.work = None
            self.end_call()

    return cancellable


@stream_request_body
class Handler(Asker, RequestHandler):
    """Needs a key of its ``scope``, or one that may do everything; none if it ``is_open``. Errors take `error_body`'s
    shape, which is ``error_type``. Each of its methods says what it takes and gives (`describe`)."""

    is_open = False
    scope: Scope = "admin"
    error_type: type = FaultAnswer

    def initialize(self, context: Context) -> None:
        self.enter(context)
        self.request.remote_ip = context.proxies.caller(
            self.request.remote_ip or "", self.request.headers.get_list("X-Forwarded-For")
        )
        self.work: asyncio.Task[Any] | None = None
        self._body = bytearray()
        self._is_refused = False

    def set_default_headers(self) -> None:
        self.set_header("Content-Type", "application/json")
        self.clear_header("Server")

    def prepare(self) -> None:
        self._let_page_read()
        if self.request.method == "OPTIONS":  # a browser asks it without a key
            return
        try:
            headers = list(self.request.headers.get_all())
            check_headers(len(headers), sum(len(name) + len(value) for name, value in headers))
            if not self.is_open:
                self._check_key()
        except DSServeError as fault:
            self.refuse(fault)
        length = self.request.headers.get("Content-Length", "0")
        self._check_size(int(length) if length.isdecimal() else 0)  # what is no number Tornado refuses

    def refuse(self, fault: DSServeError | HTTPError) -> None:
        """Of `prepare`: raises ``fault``, but once the request has been read to its end. Answered before, Tornado ends
        the connection, and this answer or the next may be lost. The first fault holds."""

        def raising(*_: str) -> None:
            raise fault

        self._is_refused = True
        self.__dict__.setdefault(str(self.request.method).lower(), raising)  # which Tornado calls then

    def data_received(self, chunk: bytes) -> None:
        """Keep the body up to one byte over the limit: an error can only be answered once it has all come. Of a
        refused request nothing is kept: nobody reads it, and it may have come without a key."""
        if self._is_refused:
            return
        self._body += chunk[: self.context.max_body_bytes + 1 - len(self._body)]

    def body(self, kind: type[B]) -> B:
        """Raises `InvalidRequest` for what does not fit ``kind``, `TooLarge` for a chunked body over the limit."""
        self._check_size(len(self._body))
        return read_body(kind, bytes(self._body))

    def number(self, name: str, default: str) -> int | None:
        """A number of the query; where it is not there that of ``default``, and None if that is empty. Raises
        `InvalidRequest` for what is none."""
        text = self.get_query_argument(name, None)
        if text is not None and not is_number(text):
            raise InvalidRequest(f"{name} is {text!r}: give a whole number of up to 9 digits", param=name)
        told = default if text is None else text
        return int(told) if told else None

    def on_connection_close(self) -> None:
        self.caller_left = True
        if self.work:
            self.work.cancel()

    def keep_header(self, name: str, value: str) -> None:
        super().keep_header(name, value)  # Tornado drops what was set before an error
        self.set_header(name, value)

    def drop_header(self, name: str) -> None:
        super().drop_header(name)
        self.clear_header(name)

    def options(self, *_: str) -> None:
        """What a browser asks before a page from elsewhere may send its key."""
        if "Access-Control-Allow-Origin" not in self.kept:
            raise HTTPError(405)
        self.set_header("Access-Control-Allow-Methods", "GET, POST, PUT, DELETE")
        self.set_header("Access-Control-Allow-Headers", _FROM_PAGES)
        self.set_header("Access-Control-Max-Age", "600")
        self.set_status(204)
        self.clear_header("Content-Type")
        self.finish()

    def _let_page_read(self) -> None:
        """Pages from elsewhere may read the answer if the settings name where they are from."""
        origin, allowed = self.request.headers.get("Origin"), self.context.cors_origins
        if allowed and origin and (origin in allowed or "*" in allowed):
            self.keep_header("Access-Control-Allow-Origin", origin)
            self.keep_header("Vary", "Origin")
            self.keep_header("Access-Control-Expose-Headers", _TO_PAGES)

    # ---- what an `Asker` is asked for

    @property
    def sent_headers(self) -> HTTPHeaders:
        return self.request.headers

    @property
    def passed_s(self) -> float:
        return self.request.request_time()

    def attributes(self) -> Mapping[str, Attribute]:
        status = self.fault.status if isinstance(self.fault, DSServeError) else 500 if self.fault else self.get_status()
        return {
            "http.request.method": self.request.method or "",
            "url.path": self.request.path,
            "http.response.status_code": status,
            "client.address": self.request.remote_ip or "",
        }

    # ---- answers

    def answer(self, value: object, status: int = 200) -> None:
        """Finish with JSON: a dataclass of ours, a list of them, or plain data."""
        self.set_status(status)
        self.finish(_json(value))

    def flush(self, include_footers: bool = False) -> Future[None]:
        if self.context.connections.is_leaving and not self._headers_written:
            self.set_header("Connection", "close")
        return super().flush(include_footers)

    def error_body(self, error: DSServeError) -> dict[str, Any]:
        return {"error": {"type": type(error).__name__, "message": error.message, "param": error.param}}

    def write_error(self, status_code: int, **kwargs: Any) -> None:
        fault = kwargs["exc_info"][1] if "exc_info" in kwargs else None
        error = self._as_ours(status_code, fault)
        self.set_status(error.status)
        for name, value in self.kept.items():
            self.set_header(name, value)
        if isinstance(error, Unavailable | TooManyRequests):
            self.set_header("Retry-After", str(error.retry_after_s))
        if isinstance(error, Unauthorized):
            self.set_header("WWW-Authenticate", "Bearer")
        if isinstance(error, NotAllowed):  # RFC 9110 §15.5.6
            self.set_header("Allow", ", ".join(method.upper() for method in methods_of(type(self))))
        self.finish(orjson.dumps(self.error_body(error)))

    def log_exception(
        self,
        typ: type[BaseException] | None,
        value: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if not isinstance(value, DSServeError | HTTPError):
            log.error("%s %s failed", self.request.method, self.request.path, exc_info=value)

    # ---- checks

    def _check_key(self) -> None:
        self.check_key()
        self.check_scope(self.scope, self.request.path)

    def _check_size(self, num_bytes: int) -> None:
        limit = self.context.max_body_bytes
        if num_bytes > limit:
            # What is still on its way is thrown away, and then the connection ends.
            self.keep_header("Connection", "close")
            raise TooLarge(f"the body has {num_bytes} bytes or more, over the limit of {limit}: send a smaller one")

    def _as_ours(self, status_code: int, fault: BaseException | None) -> DSServeError:
        if isinstance(fault, DSServeError):
            return fault
        if status_code == 404:
            return NotFound(f"there is no {self.request.path} here: the page /docs, or /openapi.json, lists the routes")
        if status_code == 405:
            taken = ", ".join(method.upper() for method in methods_of(type(self)))
            return NotAllowed(f"{self.request.path} does not take {self.request.method}: it takes {taken}")
        if isinstance(fault, HTTPError) and fault.status_code < 500:
            return InvalidRequest(f"the request cannot be read: {fault.log_message or fault.reason or fault}")
        return DSServeError(f"{responses.get(status_code, 'error')}: the gateway's log says more")


class UnknownPath(Handler):
    is_open = True

    def prepare(self) -> None:
        self.refuse(HTTPError(404))
