"""Every error a caller can meet, in one tree.

    DSServeError             500  INTERNAL
    ├── InvalidRequest       400  INVALID_ARGUMENT      the caller can mend the request
    ├── Unauthorized         401  UNAUTHENTICATED       no key, or a wrong one
    ├── Forbidden            403  PERMISSION_DENIED     the key is good, but not for this
    ├── NotFound             404  NOT_FOUND             no such deployment, version or route
    ├── NotAllowed           405  UNIMPLEMENTED         the path exists, the method does not
    ├── Conflict             409  FAILED_PRECONDITION   the state of the thing forbids it now
    ├── TooLarge             413  INVALID_ARGUMENT      the body is over the limit
    ├── HeadersTooLarge      431  INVALID_ARGUMENT      the headers are over the limit
    ├── TooManyRequests      429  RESOURCE_EXHAUSTED    over a limit of the deployment or the key; carries Retry-After
    ├── Unavailable          503  UNAVAILABLE           nothing is ready to answer; carries Retry-After
    │   └── ReplicaLost      503  UNAVAILABLE           the worker died while it was answering
    ├── DeadlineExceeded     504  DEADLINE_EXCEEDED     the request's own time limit has passed
    └── EngineFailure        500  INTERNAL              the model step itself failed

A message names the thing, the value and what to do. Each face (REST, OpenAI, gRPC) maps the class in one place.
"""

from __future__ import annotations

from typing import ClassVar


class DSServeError(Exception):
    """An error with an HTTP status and a gRPC code.

    ``param`` names the field of the request that is at fault, if one is.
    """

    status: ClassVar[int] = 500
    grpc_code: ClassVar[str] = "INTERNAL"

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(DSServeError):
    status = 400
    grpc_code = "INVALID_ARGUMENT"


class Unauthorized(DSServeError):
    status = 401
    grpc_code = "UNAUTHENTICATED"


class Forbidden(DSServeError):
    status = 403
    grpc_code = "PERMISSION_DENIED"


class NotFound(DSServeError):
    status = 404
    grpc_code = "NOT_FOUND"


class NotAllowed(DSServeError):
    status = 405
    grpc_code = "UNIMPLEMENTED"


class Conflict(DSServeError):
    status = 409
    grpc_code = "FAILED_PRECONDITION"


class TooLarge(DSServeError):
    status = 413
    grpc_code = "INVALID_ARGUMENT"


class HeadersTooLarge(DSServeError):
    status = 431
    grpc_code = "INVALID_ARGUMENT"


class TooManyRequests(DSServeError):
    """More is asked than a limit lets in. ``retry_after_s`` is when there may be room, in whole seconds."""

    status = 429
    grpc_code = "RESOURCE_EXHAUSTED"

    def __init__(self, message: str, *, retry_after_s: int = 1, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class Unavailable(DSServeError):
    """Nothing is ready to answer. ``retry_after_s`` is a guess in whole seconds."""

    status = 503
    grpc_code = "UNAVAILABLE"

    def __init__(self, message: str, *, retry_after_s: int = 1, param: str | None = None) -> None:
        super().__init__(message, param=param)
        self.retry_after_s = retry_after_s


class ReplicaLost(Unavailable):
    """The worker that was answering is gone; what it had answered so far is all there is."""


class DeadlineExceeded(DSServeError):
    """The time limit that came with the request has passed; nothing is computed for it any more."""

    status = 504
    grpc_code = "DEADLINE_EXCEEDED"


class EngineFailure(DSServeError):
    """The step of the model failed; the request cannot be answered by this replica."""


def no_answer(url: str, why: object) -> Unavailable:
    """What a caller says who reaches nobody at ``url``."""
    remedy = "is it running?"
    if "CERTIFICATE_VERIFY_FAILED" in str(why):
        remedy = "trust who signed its certificate (SSL_CERT_FILE=ca.pem), and use a name that it is made out to"
    return Unavailable(f"nothing answers at {url} ({why}): {remedy}")


def error_named(name: str, message: str, param: str | None = None) -> DSServeError:
    """The error of class ``name`` (as it travels on the wire); an unknown name becomes a plain `DSServeError`."""
    return _BY_NAME.get(name, DSServeError)(message, param=param)


def error_with(status: int, message: str, param: str | None = None) -> DSServeError:
    """The most general error of an HTTP status; a `DSServeError` for one that none of ours has."""
    return next((kind for kind in _BY_NAME.values() if kind.status == status), DSServeError)(message, param=param)


def _tree(root: type[DSServeError]) -> dict[str, type[DSServeError]]:
    return {root.__name__: root} | {k: v for sub in root.__subclasses__() for k, v in _tree(sub).items()}


_BY_NAME = _tree(DSServeError)
