"""What every recipe is given, what it reports, and what it leaves behind."""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from graftwork_adapters.durable import write_file

from graftwork_trainer.base.model import TrainingBase
from graftwork_trainer.recipes.hyperparameters import Hyperparameters

ADAPTER_FOLDER = "adapter"
CHECKPOINTS_FOLDER = "checkpoints"
TENSORBOARD_FOLDER = "tensorboard"
SUMMARY_FILE = "training.json"


class TrainingStopped(Exception):
    """`should_stop` said so; a checkpoint is written, and the same run goes on from it."""


@dataclass(frozen=True, slots=True)
class TrainingProgress:
    """Where a run is after an optimizer step."""

    step: int
    total_steps: int
    epoch: float
    loss: float  # of the step, mean over the learned tokens
    learning_rate: float
    tokens_per_second: float  # of the batches, prompts included; since the run began or resumed
    remaining_s: float
    metrics: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class TrainingSummary:
    """What a finished run says about itself."""

    method: str
    steps: int
    train_loss: float  # mean of the last tenth of the steps
    validation_loss: float | None  # mean over the learned tokens; None without validation data
    train_examples: int
    validation_examples: int
    left_out: int  # examples longer than max_length
    trained_parameters: int
    tokens: int  # that went through the model, in this process
    seconds: float  # in this process
    metrics: Mapping[str, float] = field(default_factory=dict)  # others, on the validation split

    def write(self, folder: Path) -> None:
        write_file(folder / SUMMARY_FILE, json.dumps(asdict(self), indent=2).encode())


def read_summary(folder: Path) -> TrainingSummary:
    """Of a run that has finished in `folder`."""
    return TrainingSummary(**json.loads((folder / SUMMARY_FILE).read_text()))


def _ignore(_: TrainingProgress) -> None:
    pass


def _never() -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingRun:
    """One training, resumable: the same run in the same folder goes on where it was."""

    base: TrainingBase
    train: Path  # JSON lines; docs/guides/datasets.md has the format
    validation: Path | None = None
    folder: Path  # of this run alone: checkpoints, logs and the adapter
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    method: str = "LORA"
    method_config: Mapping[str, Any] = field(default_factory=dict)
    initial: Path | None = None  # an adapter's folder to go on from; excludes method_config
    progress: Callable[[TrainingProgress], None] = _ignore
    should_stop: Callable[[], bool] = _never
    threads: int | None = None  # of torch; None leaves them
    checkpoint_interval_s: float = 60.0
    gradient_checkpointing: bool = False  # a third slower, and a fraction of the memory

    @property
    def adapter_folder(self) -> Path:
        return self.folder / ADAPTER_FOLDER

    @property
    def checkpoints_folder(self) -> Path:
        return self.folder / CHECKPOINTS_FOLDER
