"""What contenders answered, side by side: the material of metrics, gate and report."""

import enum
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from graftwork_adapters.durable import write_file


class Role(enum.Enum):
    """Why a contender takes part."""

    CANDIDATE = "candidate"
    INCUMBENT = "incumbent"  # the version that is live now
    BASE = "base"  # the plain base model
    FEW_SHOT = "few-shot"  # the base with worked examples in its prompt


class Split(enum.Enum):
    VALIDATION = "validation"
    GOLDEN = "golden"


def task_name(task: str, split: Split) -> str:
    """For people: the task, and the split where it is not the usual one."""
    name = task or "(no task)"
    return name if split is Split.VALIDATION else f"{name} (golden set)"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one contender made of one example. After an `error` nothing else is known."""

    example_id: str
    logprob: float = math.nan  # of the right answer, summed over its tokens, in nats
    num_tokens: int = 0  # of the right answer
    answer: str = ""  # generated without constraint, greedily
    predicted: str = ""  # generated under a choice among the classes, where there are classes
    error: str = ""


@dataclass(frozen=True, slots=True)
class TaskEvidence:
    """One task's examples in one split, with what each contender made of them, in one order."""

    task: str
    split: Split
    classes: tuple[str, ...]  # none for free text
    positive: str  # the class whose F1 is told; "" unless there are two
    references: tuple[str, ...]
    outcomes: Mapping[Role, tuple[Outcome, ...]]

    @property
    def name(self) -> str:
        return task_name(self.task, self.split)

    def answered(self, *roles: Role) -> list[int]:
        """Positions of the examples that all these contenders could answer."""
        columns = [self.outcomes[role] for role in roles]
        return [
            index
            for index in range(len(self.references))
            if not any(column[index].error for column in columns)
        ]

    def right(self, role: Role, positions: Sequence[int]) -> list[bool]:
        """Whether the predicted class is the right one."""
        outcomes = self.outcomes[role]
        return [outcomes[index].predicted == self.references[index] for index in positions]

    def logprobs(self, role: Role, positions: Sequence[int]) -> list[float]:
        return [self.outcomes[role][index].logprob for index in positions]


def save_outcomes(path: Path, outcomes: Sequence[Outcome]) -> None:
    """Written as a whole or not at all: a killed job does not find half of them."""
    write_file(path, json.dumps([asdict(outcome) for outcome in outcomes]).encode())


def load_outcomes(path: Path) -> tuple[Outcome, ...] | None:
    """None where nothing has been saved under this name."""
    if not path.exists():
        return None
    return tuple(Outcome(**fields) for fields in json.loads(path.read_text()))
