"""What can be wrong with an evaluation. Every leaf knows its gRPC code and its reason.

TrainerError                 trainer/graftwork_trainer/errors.py
└── EvaluationError
    └── NothingToEvaluate    FAILED_PRECONDITION  the snapshot holds no example that can be asked
"""

import grpc

from graftwork_trainer.errors import TrainerError


class EvaluationError(TrainerError):
    """Root of what can be wrong with an evaluation."""


class NothingToEvaluate(EvaluationError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NOTHING_TO_EVALUATE"
