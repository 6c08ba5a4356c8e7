"""What can be wrong with an evaluation. Every leaf knows its gRPC code and its reason.

WireError                    client/graftwork/status.py
└── EvaluationError
    ├── NothingToEvaluate    FAILED_PRECONDITION  the snapshot holds no example that can be asked
    └── InvalidSnapshot      DATA_LOSS            a file of the snapshot is not what it should be
"""

import grpc
from graftwork.status import WireError


class EvaluationError(WireError):
    """Root of what can be wrong with an evaluation."""


class NothingToEvaluate(EvaluationError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NOTHING_TO_EVALUATE"


class InvalidSnapshot(EvaluationError):
    code = grpc.StatusCode.DATA_LOSS
    reason = "INVALID_SNAPSHOT"
