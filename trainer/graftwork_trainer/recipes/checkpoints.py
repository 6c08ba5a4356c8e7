"""Checkpoints that a killed run goes on from exactly: only whole ones count."""

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from graftwork_adapters.durable import sync, sync_tree
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from graftwork_trainer.methods.rank_allocation import allocation_state, restore_allocation

_COMPLETE_FILE = "complete"  # written last
_WEIGHTS_FILE = "trained.safetensors"
_FOLDER = "checkpoint-{}"


def last_checkpoint(folder: Path) -> Path | None:
    """The latest whole checkpoint; removes what a kill left half-written."""
    whole = []
    for path in folder.glob(_FOLDER.format("*")):
        if (path / _COMPLETE_FILE).exists():
            whole.append(path)
        else:
            shutil.rmtree(path)
    return max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)


def complete(checkpoint: Path) -> None:
    """Makes a checkpoint that is written count, durably."""
    sync_tree(checkpoint)
    (checkpoint / _COMPLETE_FILE).touch()
    sync(checkpoint)
    sync(checkpoint.parent)


class CheckpointedTrainer(Trainer):
    """Mixed into a trainer of TRL before it: saves what is trained and nothing else, in one way for
    all methods, beside what transformers keeps of optimizer, schedule, random numbers and place in
    the data."""

    def _save(
        self,
        output_dir: str | None = None,
        state_dict: dict[str, Any] | None = None,  # noqa: ARG002 - transformers' signature
    ) -> None:
        folder = Path(output_dir or str(self.args.output_dir))
        folder.mkdir(parents=True, exist_ok=True)
        trained = {name: p.detach().cpu() for name, p in _trained(self.model).items()}
        more, metadata = allocation_state(self.model)
        save_file({**trained, **more}, folder / _WEIGHTS_FILE, metadata=metadata)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        # TRL's own writes a model card, for which it asks a hub.
        Trainer._save_checkpoint(self, model, trial)  # noqa: SLF001
        output = Path(str(self.args.output_dir))
        complete(output / _FOLDER.format(self.state.global_step))

    def _load_from_checkpoint(
        self, resume_from_checkpoint: str, model: nn.Module | None = None
    ) -> None:
        with safe_open(Path(resume_from_checkpoint) / _WEIGHTS_FILE, framework="pt") as file:
            saved = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata() or {}
        trained = _trained(model or self.model)
        if not saved.keys() >= trained.keys():
            raise ValueError(f"{resume_from_checkpoint} is of another adapter: remove it")
        restore_allocation(model or self.model, saved, metadata)
        with torch.no_grad():
            for name, parameter in trained.items():
                parameter.copy_(saved[name])


class CheckpointClock(TrainerCallback):
    """Asks for a checkpoint whenever so much time has passed, and a last one when told to stop."""

    def __init__(self, interval_s: float, should_stop: Callable[[], bool]) -> None:
        self._interval_s = interval_s
        self._should_stop = should_stop
        self._last = time.monotonic()
        self.was_stopped = False

    def on_step_end(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,
        **_: Any,
    ) -> None:
        now = time.monotonic()
        if state.global_step >= state.max_steps:
            return  # the adapter itself is written next
        if self._should_stop():
            self.was_stopped = True
            control.should_training_stop = True
        if self.was_stopped or now - self._last >= self._interval_s:
            control.should_save = True
            self._last = now


def _trained(model: Any) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}
