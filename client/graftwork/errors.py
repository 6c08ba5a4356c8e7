"""What a call can raise.

GraftworkError
├── InvalidArgument      a value is not acceptable; `field` names it (also a ValueError)
├── NotFound             no such adapter, version or generation
├── AlreadyExists        this author has given such feedback before
├── PermissionDenied     the credentials are missing, or do not allow this
├── FailedPrecondition   not in this state: another base, a rank over the cap, a live version
├── ResourceExhausted    the queue or a quota is full; `retry_after_s` says when to try again
├── Unavailable          no server answers, or it is draining
├── DeadlineExceeded     the timeout passed
├── Cancelled            the call was cancelled
└── Internal             the server failed, or sent what it must not

A status that is none of these raises GraftworkError itself; `code` tells it.
"""

from typing import cast

import grpc

from graftwork.status import ErrorDetails, details_of


class GraftworkError(Exception):
    """A call failed.

    `code` is the gRPC status, `reason` the server's machine-readable one ("" where it gave none),
    `field` the path of the request's field at fault, such as "sampling.top_p".
    """

    code: grpc.StatusCode = grpc.StatusCode.UNKNOWN

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        field: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.reason = reason
        self.field = field
        self.retry_after_s = retry_after_s


class InvalidArgument(GraftworkError, ValueError):
    """A value is not acceptable: found before the call, or by the server."""

    code = grpc.StatusCode.INVALID_ARGUMENT


class NotFound(GraftworkError):
    code = grpc.StatusCode.NOT_FOUND


class AlreadyExists(GraftworkError):
    code = grpc.StatusCode.ALREADY_EXISTS


class PermissionDenied(GraftworkError):
    code = grpc.StatusCode.PERMISSION_DENIED


class FailedPrecondition(GraftworkError):
    code = grpc.StatusCode.FAILED_PRECONDITION


class ResourceExhausted(GraftworkError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED


class Unavailable(GraftworkError):
    code = grpc.StatusCode.UNAVAILABLE


class DeadlineExceeded(GraftworkError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED


class Cancelled(GraftworkError):
    code = grpc.StatusCode.CANCELLED


class Internal(GraftworkError):
    code = grpc.StatusCode.INTERNAL


_LEAVES: tuple[type[GraftworkError], ...] = (
    InvalidArgument,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    FailedPrecondition,
    ResourceExhausted,
    Unavailable,
    DeadlineExceeded,
    Cancelled,
    Internal,
)
_BY_CODE = {leaf.code: leaf for leaf in _LEAVES} | {
    grpc.StatusCode.UNAUTHENTICATED: PermissionDenied,
    grpc.StatusCode.DATA_LOSS: Internal,
}


def from_rpc_error(error: grpc.RpcError) -> GraftworkError:
    """The error that a sync or aio call's status stands for; raise it `from` the original."""
    code = cast("grpc.StatusCode | None", error.code()) or grpc.StatusCode.UNKNOWN
    details: ErrorDetails = details_of(error)
    found = _BY_CODE.get(code, GraftworkError)(
        error.details() or code.name.lower().replace("_", " "),
        reason=details.reason,
        field=details.field,
        retry_after_s=details.retry_after_s,
    )
    found.code = code
    return found
