"""What can be wrong with an adapter. Every leaf knows its gRPC code and its reason.

WireError                      client/graftwork/status.py
└── AdapterError
    ├── UnknownAdapter         NOT_FOUND            no such name or version
    ├── NoLiveVersion          FAILED_PRECONDITION  the name points at no version
    ├── NothingToRollBack      FAILED_PRECONDITION  no earlier live version is left
    ├── VersionInUse           FAILED_PRECONDITION  deleting what is live or in a split
    ├── EphemeralVersion       FAILED_PRECONDITION  moving traffic to what is soon gone
    ├── RequestIdReused        INVALID_ARGUMENT     one request_id, two different requests
    ├── PathNotAllowed         PERMISSION_DENIED    outside the adapter roots, after links
    ├── SourceNotFound         NOT_FOUND            nothing readable at an allowed path
    ├── StorageFull            RESOURCE_EXHAUSTED   no room on the server's disk
    ├── ArtifactTooLarge       INVALID_ARGUMENT     a file over the configured size
    ├── InvalidArtifact        INVALID_ARGUMENT     damaged, inconsistent, or not safetensors
    │   ├── UnsupportedMethod  INVALID_ARGUMENT     a PEFT method that no module lowers
    │   ├── UnsupportedField   INVALID_ARGUMENT     a config field that changes the arithmetic
    │   └── ZeroEffect         INVALID_ARGUMENT     it would answer as the base does
    ├── WrongBase              FAILED_PRECONDITION  made for another base
    │   └── UnverifiedBase     FAILED_PRECONDITION  names no base, and the server requires one
    ├── CannotCompose          FAILED_PRECONDITION  its method does not add up with others
    ├── RankOverCap            FAILED_PRECONDITION  a rank above the server's largest
    └── DamagedVersion         DATA_LOSS            its files are not those that were registered
"""

from collections.abc import Iterable

import grpc
from graftwork.status import WireError


class AdapterError(WireError):
    """Root of this package's errors."""


class UnknownAdapter(AdapterError):
    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_ADAPTER"

    def __init__(self, selector: str, *, field: str | None = None) -> None:
        super().__init__(
            f'adapter "{selector}" does not exist', field=field, metadata={"adapter": selector}
        )


class NoLiveVersion(AdapterError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NO_LIVE_VERSION"

    def __init__(self, name: str) -> None:
        super().__init__(
            f'adapter "{name}" has no live version: name one as "{name}@VERSION", or make one live',
            metadata={"adapter": name},
        )


class NothingToRollBack(AdapterError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NOTHING_TO_ROLL_BACK"

    def __init__(self, name: str) -> None:
        super().__init__(
            f'adapter "{name}" had no other live version that still exists',
            metadata={"adapter": name},
        )


class VersionInUse(AdapterError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "VERSION_IN_USE"

    def __init__(self, selector: str, role: str) -> None:
        super().__init__(
            f'adapter version "{selector}" is {role}: move the traffic away first',
            metadata={"adapter": selector},
        )


class EphemeralVersion(AdapterError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "EPHEMERAL_VERSION"

    def __init__(self, selector: str, *, field: str) -> None:
        super().__init__(
            f'adapter version "{selector}" is ephemeral: upload it without ephemeral_owner first',
            field=field,
            metadata={"adapter": selector},
        )


class RequestIdReused(AdapterError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "REQUEST_ID_REUSED"

    def __init__(self, request_id: str) -> None:
        super().__init__(
            f'request_id "{request_id}" was used for a different request', field="request_id"
        )


class PathNotAllowed(AdapterError):
    code = grpc.StatusCode.PERMISSION_DENIED
    reason = "PATH_NOT_ALLOWED"


class SourceNotFound(AdapterError):
    code = grpc.StatusCode.NOT_FOUND
    reason = "SOURCE_NOT_FOUND"


class StorageFull(AdapterError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "STORAGE_FULL"

    def __init__(self) -> None:
        super().__init__("no room is left on the disk of the adapter store: delete versions")


class ArtifactTooLarge(AdapterError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "ARTIFACT_TOO_LARGE"

    def __init__(self, filename: str, limit: int) -> None:
        super().__init__(
            f"{filename} is larger than the {limit} bytes that this server accepts",
            metadata={"file": filename, "limit": str(limit)},
        )


class InvalidArtifact(AdapterError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_ARTIFACT"


class UnsupportedMethod(InvalidArtifact):
    reason = "UNSUPPORTED_METHOD"

    def __init__(self, peft_type: str, supported: Iterable[str], why: str | None) -> None:
        """`why` is the reason for a method of PEFT's, None for a name that it does not know."""
        known = "it is no method of PEFT's that this version knows" if why is None else why
        super().__init__(
            f'adapter_config.json: peft_type "{peft_type}" is not supported: {known}; '
            f"supported are {', '.join(sorted(supported))}",
            metadata={"peft_type": peft_type},
        )


class UnsupportedField(InvalidArtifact):
    """A field of adapter_config.json changes the arithmetic in a way that no lowering knows."""

    reason = "UNSUPPORTED_FIELD"

    def __init__(self, config_field: str, value: str, supported: str) -> None:
        super().__init__(
            f"adapter_config.json: {config_field} = {value} is not supported; "
            f"supported: {supported}",
            metadata={"config_field": config_field},
        )


class ZeroEffect(InvalidArtifact):
    reason = "ZERO_EFFECT"

    def __init__(self) -> None:
        super().__init__(
            "the adapter changes nothing: every factor is zero, as in a file saved before training"
        )


class WrongBase(AdapterError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "WRONG_BASE"


class UnverifiedBase(WrongBase):
    reason = "UNVERIFIED_BASE"

    def __init__(self) -> None:
        super().__init__(
            "the adapter's files do not name the base they were trained on, and this server "
            "accepts only those that do"
        )


class CannotCompose(AdapterError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "CANNOT_COMPOSE"

    def __init__(self, selector: str, method: str, why: str) -> None:
        super().__init__(
            f'adapter "{selector}" ({method}) cannot be combined or scaled like this: {why}',
            metadata={"adapter": selector, "method": method},
        )


class RankOverCap(AdapterError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "RANK_OVER_CAP"

    def __init__(self, rank: int, cap: int, module: str) -> None:
        super().__init__(
            f"rank {rank} of {module} is over this server's cap of {cap}",
            metadata={"rank": str(rank), "cap": str(cap)},
        )


class DamagedVersion(AdapterError):
    code = grpc.StatusCode.DATA_LOSS
    reason = "DAMAGED_VERSION"

    def __init__(self, digest: str) -> None:
        super().__init__(
            f"the files of version {digest} in the adapter store have changed since they were "
            "registered: restore them from a backup, or register the adapter again",
            metadata={"digest": digest},
        )
