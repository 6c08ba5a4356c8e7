"""Reports a trainer's steps: loss, rate, what remains."""

import time
from collections.abc import Callable
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from graftwork_trainer.recipes.run import TrainingProgress

_KNOWN = {"loss", "learning_rate", "epoch", "num_tokens"}


class ProgressReporter(TrainerCallback):
    """Calls back after every step, and keeps the losses."""

    def __init__(self, report: Callable[[TrainingProgress], None]) -> None:
        self._report = report
        self._started = 0.0
        self._now = 0.0
        self._first_step = 0
        self.num_tokens = 0  # counted by the trainer
        self.losses: list[float] = []

    @property
    def seconds(self) -> float:
        """From the first step of this process to the end of the last."""
        return self._now - self._started

    @property
    def final_loss(self) -> float:
        """Mean of the last tenth of the steps."""
        last = self.losses[-max(1, len(self.losses) // 10) :]
        return sum(last) / len(last)

    def on_train_begin(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        self._started = self._now = time.monotonic()
        self._first_step = state.global_step

    def on_log(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        logs: dict[str, float] | None = None,
        **_: Any,
    ) -> None:
        if logs is None or "loss" not in logs:
            return
        self._now = time.monotonic()
        self.losses.append(logs["loss"])
        done = max(1, state.global_step - self._first_step)
        self._report(
            TrainingProgress(
                step=state.global_step,
                total_steps=state.max_steps,
                epoch=float(state.epoch or 0),
                loss=logs["loss"],
                learning_rate=logs["learning_rate"],
                tokens_per_second=self.num_tokens / max(self.seconds, 1e-9),
                remaining_s=self.seconds / done * (state.max_steps - state.global_step),
                metrics={k: float(v) for k, v in logs.items() if k not in _KNOWN},
            )
        )
