"""What can be wrong in this room. Every leaf knows its gRPC code and its reason.

WireError                      client/graftwork/status.py
└── TrainerError
    └── DatasetError
        ├── InvalidExample     INVALID_ARGUMENT     a line that is no example of its format
        ├── EmptyDataset       FAILED_PRECONDITION  the selection holds nothing, or nothing is left
        ├── DatasetTooSmall    FAILED_PRECONDITION  too few examples to split
        ├── OneClass           FAILED_PRECONDITION  nothing to tell apart
        ├── UnknownSnapshot    NOT_FOUND            no snapshot under this digest
        ├── DamagedSnapshot    DATA_LOSS            its files do not match its digest
        └── DatasetDiskFull    RESOURCE_EXHAUSTED   no room for a snapshot
"""

import contextlib
from collections.abc import Iterator, Mapping

import grpc
from graftwork.status import WireError
from graftwork_adapters.durable import is_disk_full


class TrainerError(WireError):
    """Root of this package's errors."""


class DatasetError(TrainerError):
    """Root of what can be wrong with examples and data sets."""


class InvalidExample(DatasetError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_EXAMPLE"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}", field=field)


class EmptyDataset(DatasetError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "EMPTY_DATASET"

    def __init__(self, received: int, dropped: Mapping[str, int]) -> None:
        if received:
            reasons = ", ".join(f"{name} {count}" for name, count in sorted(dropped.items()))
            message = (
                f"none of the {received} examples can be used; they are left out as: {reasons}"
            )
        else:
            message = (
                "the selection holds no examples: widen its tasks, times, origins and sources, or "
                "choose the format that the feedback at hand gives"
            )
        super().__init__(message, metadata={"received": str(received)})


class DatasetTooSmall(DatasetError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "DATASET_TOO_SMALL"

    def __init__(self, what: str, found: int, needed: int) -> None:
        super().__init__(
            f"{what}: {found} found, {needed} needed; collect more feedback or widen the selection",
            metadata={"found": str(found), "needed": str(needed)},
        )


class OneClass(DatasetError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "ONE_CLASS"

    def __init__(self, task: str | None, label: str, count: int) -> None:
        """`task` is None where the classes are not a task's own, as good and bad are."""
        of_task = "" if task is None else f' of task "{task}"'
        super().__init__(
            f'all {count} examples{of_task} to train on are of the class "{label}", so there is '
            "nothing to tell apart: collect feedback of another class",
            metadata={"task": task or "", "class": label},
        )


class UnknownSnapshot(DatasetError):
    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_SNAPSHOT"

    def __init__(self, digest: str) -> None:
        super().__init__(
            f'there is no snapshot "{digest[:80]}": name the digest that an earlier job reports',
            field="dataset.snapshot",
        )


class DamagedSnapshot(DatasetError):
    code = grpc.StatusCode.DATA_LOSS
    reason = "DAMAGED_SNAPSHOT"

    def __init__(self, digest: str, what: str) -> None:
        super().__init__(
            f'snapshot "{digest}" is damaged: {what}; restore it from a backup, or build it anew'
        )


class DatasetDiskFull(DatasetError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "DISK_FULL"

    def __init__(self) -> None:
        super().__init__("no room is left on the disk for a snapshot of the data set: free some")


@contextlib.contextmanager
def disk_full_is_told() -> Iterator[None]:
    """Where writing a data set meets a full disk. Raises DatasetDiskFull."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise DatasetDiskFull from error
        raise
