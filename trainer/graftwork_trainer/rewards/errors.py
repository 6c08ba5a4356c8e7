"""What can be wrong with a reward as a whole. Every leaf knows its gRPC code and its reason.

TrainerError                   errors.py
└── RewardError
    ├── UnknownPlugin          NOT_FOUND            no installed package has it
    ├── NotARewardModel        FAILED_PRECONDITION  the adapter gives no single score
    ├── RewardUnavailable      UNAVAILABLE          the plug-in or the judge cannot be reached
    └── InvalidJudgement       FAILED_PRECONDITION  the judge answers what was not asked
"""

from collections.abc import Iterable

import grpc

from graftwork_trainer.errors import TrainerError


class RewardError(TrainerError):
    """Root of what can be wrong with rewards."""


class UnknownPlugin(RewardError):
    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_REWARD_PLUGIN"

    def __init__(self, name: str, installed: Iterable[str]) -> None:
        found = ", ".join(sorted(installed)) or "none"
        super().__init__(
            f'no installed package has a reward plug-in "{name[:80]}"; installed: {found}',
            metadata={"plugin": name[:80]},
        )


class NotARewardModel(RewardError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "NOT_A_REWARD_MODEL"

    def __init__(self, adapter: str) -> None:
        super().__init__(
            f'adapter "{adapter}" gives no reward: name one with a SEQ_CLS head of one label, as '
            "the recipe reward trains it",
            metadata={"adapter": adapter},
        )


class RewardUnavailable(RewardError):
    code = grpc.StatusCode.UNAVAILABLE
    reason = "REWARD_UNAVAILABLE"


class InvalidJudgement(RewardError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "INVALID_JUDGEMENT"
