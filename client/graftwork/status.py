"""Errors that cross the wire: one exception that knows its gRPC status and its google.rpc details.

Each room derives its own errors from `WireError`; one interceptor of the server turns them into
statuses, and `from_rpc_error` turns a status back into what a caller can read.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

DOMAIN = "graftwork"


class WireError(Exception):
    """An error that a caller sees: `code`, a machine-readable `reason`, and the message."""

    code: grpc.StatusCode = grpc.StatusCode.INTERNAL
    reason: str = "INTERNAL"

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        retry_after_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field  # path of the request's field at fault, such as "sampling.top_p"
        self.retry_after_s = retry_after_s
        self.metadata = dict(metadata or {})


class InvalidFieldError(WireError):
    """A field of the request is not acceptable; `field` is always set."""

    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_FIELD"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}", field=field)
        self.description = message


def to_grpc_status(error: WireError) -> grpc.Status:
    """The status with ErrorInfo, and BadRequest or RetryInfo where they apply."""
    details: list[any_pb2.Any] = [
        _pack(
            error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=error.metadata)
        )
    ]
    if error.field is not None:
        violation = error_details_pb2.BadRequest.FieldViolation(
            field=error.field, description=error.message
        )
        details.append(_pack(error_details_pb2.BadRequest(field_violations=[violation])))
    if error.retry_after_s is not None:
        delay = duration_pb2.Duration()
        delay.FromNanoseconds(int(error.retry_after_s * 1e9))
        details.append(_pack(error_details_pb2.RetryInfo(retry_delay=delay)))
    code: int = error.code.value[0]
    return rpc_status.to_status(
        status_pb2.Status(code=code, message=error.message, details=details)
    )


@dataclass(frozen=True, slots=True)
class ErrorDetails:
    """What a status carries beside its code and message."""

    reason: str = ""
    field: str | None = None
    retry_after_s: float | None = None


def details_of(error: grpc.RpcError) -> ErrorDetails:
    """Reads the google.rpc details that `to_grpc_status` wrote; works for sync and aio errors."""
    reason, field, retry_after_s = "", None, None
    # The stubs give errors another type of metadata than calls; both are pairs.
    metadata = cast("Iterable[tuple[str, bytes]]", error.trailing_metadata() or ())
    for key, value in metadata:
        if key != "grpc-status-details-bin":
            continue
        for detail in status_pb2.Status.FromString(value).details:
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                info = error_details_pb2.ErrorInfo.FromString(detail.value)
                reason = info.reason
            elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                bad = error_details_pb2.BadRequest.FromString(detail.value)
                field = bad.field_violations[0].field if bad.field_violations else None
            elif detail.Is(error_details_pb2.RetryInfo.DESCRIPTOR):
                delay = error_details_pb2.RetryInfo.FromString(detail.value).retry_delay
                retry_after_s = delay.ToNanoseconds() / 1e9
    return ErrorDetails(reason, field, retry_after_s)


def _pack(message: error_details_pb2.ErrorInfo | object) -> any_pb2.Any:
    packed = any_pb2.Any()
    packed.Pack(message)  # type: ignore[arg-type]
    return packed
