"""What can be wrong in this room. Every leaf knows its gRPC code and its reason.

WireError                      client/graftwork/status.py
└── TrainerError
    └── DatasetError
        ├── InvalidExample     INVALID_ARGUMENT     a line that is no example of its format
        ├── EmptyDataset       FAILED_PRECONDITION  the selection holds nothing, or nothing is left
        ├── DatasetTooSmall    FAILED_PRECONDITION  too few examples to split
        ├── OneClass           FAILED_PRECONDITION  nothing to tell apart
        ├── UnknownSnapshot    NOT_FOUND            no snapshot under this digest
        └── DamagedSnapshot    DATA_LOSS            its files do not match its digest
"""

import grpc
from graftwork.status import WireError


class TrainerError(WireError):
    """Root of this package's errors."""


class DatasetError(TrainerError):
    """Root of what can be wrong with examples and data sets."""


class InvalidExample(DatasetError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "INVALID_EXAMPLE"

    def __init__(self, field: str, message: str) -> None:
        super().__init__(f"{field}: {message}", field=field)
