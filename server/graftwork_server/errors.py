"""What goes wrong in the server's room.

Errors of a request, which the interceptor turns into gRPC statuses:

    graftwork.status.WireError
    └── ServerError
        ├── QueueFull          RESOURCE_EXHAUSTED, with the time after which to try again
        ├── NotAGenerator      FAILED_PRECONDITION
        ├── Draining           UNAVAILABLE, with the time after which to try again
        ├── DeadlineExceeded   DEADLINE_EXCEEDED
        ├── RequestCancelled   CANCELLED
        ├── SamplingFailed     ABORTED
        └── InternalError      INTERNAL, says nothing but an incident's id

Other fields that are not acceptable raise `graftwork.status.InvalidFieldError`.

Errors of a start, which the command prints without a traceback:

    StartupError
    ├── ConfigError            config.py
    ├── DefaultModelError      default_model.py
    ├── ModelNotUsable         base_model.py
    ├── TlsError               tls.py
    ├── BackupError            backup.py: of `graftwork backup` and `restore`
    └── EngineDied             serve.py, long after the start
"""

import uuid

import grpc
from graftwork.status import WireError


class ServerError(WireError):
    """Root of the errors that a caller of the server sees."""


class QueueFull(ServerError):
    """As many requests wait as the server takes."""

    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "QUEUE_FULL"

    def __init__(self, limit: int, *, retry_after_s: float = 1.0) -> None:
        super().__init__(
            f"{limit} requests are waiting already, the most that this server queues",
            retry_after_s=retry_after_s,
            metadata={"max_queued_requests": str(limit)},
        )


class NotAGenerator(ServerError):
    """A classifier's or reward model's adapter was asked for text or log-probabilities."""

    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "ADAPTER_IS_CLASSIFIER"

    def __init__(self, selector: str) -> None:
        super().__init__(
            f'adapter version "{selector}" is a classifier or reward model and generates no text: '
            "use Score",
            metadata={"adapter": selector},
        )


class Draining(ServerError):
    """The server is shutting down and takes no new requests."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = "DRAINING"

    def __init__(self) -> None:
        super().__init__("the server is shutting down", retry_after_s=1.0)


class DeadlineExceeded(ServerError):
    code = grpc.StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"


class RequestCancelled(ServerError):
    code = grpc.StatusCode.CANCELLED
    reason = "CANCELLED"


class SamplingFailed(ServerError):
    """A sequence cannot go on: its logits are not finite, or its constraint became too costly."""

    code = grpc.StatusCode.ABORTED
    reason = "SAMPLING_FAILED"


class InternalError(ServerError):
    """A fault of the server; the log holds the traceback under the incident's id."""

    code = grpc.StatusCode.INTERNAL
    reason = "INTERNAL"

    def __init__(self, incident: str | None = None) -> None:
        incident = incident or uuid.uuid4().hex[:12]
        super().__init__(
            f"internal error; the server's log has it as incident {incident}",
            metadata={"incident": incident},
        )


class StartupError(Exception):
    """The server cannot start; the message says what to change."""


class BackupError(StartupError):
    """A backup cannot be made or restored; nothing half done is left."""


class EngineDied(StartupError):
    """A defect ended the engine's thread; whoever supervises the process starts it anew."""

    def __init__(self) -> None:
        super().__init__("the engine has died of a defect; the log says which")
