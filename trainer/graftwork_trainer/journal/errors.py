"""What can be wrong with feedback and with the journal. Every leaf knows its gRPC code and reason.

WireError                        client/graftwork/status.py
└── JournalError
    ├── UnknownTarget            NOT_FOUND            no such generation, group or episode
    ├── GenerationExpired        FAILED_PRECONDITION  older than the journal keeps generations
    ├── GenerationNotLogged      FAILED_PRECONDITION  the journal could not take it
    ├── FeedbackExists           ALREADY_EXISTS       the author has said so, or otherwise, before
    ├── UnknownFeedback          NOT_FOUND            what is to be superseded does not exist
    ├── CannotSupersede          FAILED_PRECONDITION  another's, about something else, or replaced
    ├── UnrelatedAnswers         INVALID_ARGUMENT     compared answers belong to different prompts
    ├── LabelNotInSet            INVALID_ARGUMENT     not one of the task's labels
    ├── JournalBusy              RESOURCE_EXHAUSTED   more waits to be written than is allowed
    ├── JournalFull              RESOURCE_EXHAUSTED   no room on its disk; says when to retry
    └── JournalUnavailable       UNAVAILABLE          its database does not answer; likewise

JournalNotUsable is raised at the start, where there is no caller yet.
"""

from collections.abc import Sequence

import grpc
from graftwork.status import WireError

_RETRY_AFTER_S = 5.0


class JournalNotUsable(Exception):
    """The journal cannot be opened; the message says what to change."""


class JournalError(WireError):
    """Root of what a caller of the journal sees."""


class UnknownTarget(JournalError):
    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_TARGET"

    def __init__(self, kind: str, target_id: str, *, field: str) -> None:
        why = (
            "it was never made, was made with store=false, or was deleted"
            if kind == "generation"
            else "no generation of it is kept"
        )
        super().__init__(
            f'{field}: {kind} "{target_id}" is not in the journal: {why}',
            field=field,
            metadata={kind: target_id},
        )


class GenerationExpired(JournalError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "GENERATION_EXPIRED"

    def __init__(self, target_id: str, retention_days: float, *, field: str) -> None:
        super().__init__(
            f'{field}: "{target_id}" is older than the {retention_days:g} days for which the '
            "journal keeps generations: give the prompt with the feedback instead",
            field=field,
            metadata={"generation": target_id},
        )


class GenerationNotLogged(JournalError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "GENERATION_NOT_LOGGED"

    def __init__(self, generation_id: str, *, field: str) -> None:
        super().__init__(
            f'{field}: generation "{generation_id}" could not be logged, as the journal\'s queue '
            "was full when it ended: give the prompt with the feedback instead",
            field=field,
            metadata={"generation": generation_id},
        )


class FeedbackExists(JournalError):
    code = grpc.StatusCode.ALREADY_EXISTS
    reason = "FEEDBACK_EXISTS"

    def __init__(self, feedback_id: str, kind: str, *, same: bool) -> None:
        said = "the same" if same else "something else"
        super().__init__(
            f'this author has said {said} by {kind} on this target before, in feedback "'
            f'{feedback_id}": set supersedes to that id to replace it',
            field="feedback.supersedes",
            metadata={"feedback": feedback_id},
        )


class UnknownFeedback(JournalError):
    code = grpc.StatusCode.NOT_FOUND
    reason = "UNKNOWN_FEEDBACK"

    def __init__(self, feedback_id: str) -> None:
        super().__init__(
            f'feedback.supersedes: feedback "{feedback_id}" is not in the journal',
            field="feedback.supersedes",
            metadata={"feedback": feedback_id},
        )


class CannotSupersede(JournalError):
    code = grpc.StatusCode.FAILED_PRECONDITION
    reason = "CANNOT_SUPERSEDE"

    def __init__(self, feedback_id: str, why: str) -> None:
        super().__init__(
            f'feedback.supersedes: feedback "{feedback_id}" {why}',
            field="feedback.supersedes",
            metadata={"feedback": feedback_id},
        )


class UnrelatedAnswers(JournalError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "UNRELATED_ANSWERS"

    def __init__(self, field: str, generation_id: str, target: str) -> None:
        super().__init__(
            f'{field}: generation "{generation_id}" is no answer to {target}: only answers to one '
            "prompt can be compared",
            field=field,
            metadata={"generation": generation_id},
        )


class LabelNotInSet(JournalError):
    code = grpc.StatusCode.INVALID_ARGUMENT
    reason = "LABEL_NOT_IN_SET"

    def __init__(self, label: str, task: str, labels: Sequence[str]) -> None:
        known = ", ".join(f'"{name}"' for name in labels)
        super().__init__(
            f'feedback.label: "{label[:80]}" is none of the labels of task "{task}": {known}',
            field="feedback.label",
            metadata={"task": task},
        )


class JournalBusy(JournalError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "JOURNAL_BUSY"

    def __init__(self, limit: int) -> None:
        super().__init__(
            f"{limit} items of feedback are waiting to be written already", retry_after_s=1.0
        )


class JournalFull(JournalError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = "JOURNAL_FULL"

    def __init__(self) -> None:
        super().__init__(
            "nothing was written: the journal's disk is full", retry_after_s=_RETRY_AFTER_S
        )


class JournalUnavailable(JournalError):
    code = grpc.StatusCode.UNAVAILABLE
    reason = "JOURNAL_UNAVAILABLE"

    def __init__(self) -> None:
        super().__init__(
            "the journal's database does not answer; nothing was changed",
            retry_after_s=_RETRY_AFTER_S,
        )
