"""What recipes have in common: steps, arguments of TRL's trainers, the adapter, the loop around."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import torch
from graftwork.status import InvalidFieldError
from torch.utils.tensorboard import SummaryWriter
from transformers import PreTrainedModel, PrinterCallback, Trainer
from transformers.integrations import TensorBoardCallback

from graftwork_trainer.base.packed_rows import PACKED_ATTENTION
from graftwork_trainer.methods.attach import AttachedAdapter, attach_adapter, attach_initial
from graftwork_trainer.methods.method import TrainingMethod
from graftwork_trainer.recipes.checkpoints import CheckpointClock, last_checkpoint
from graftwork_trainer.recipes.hyperparameters import Hyperparameters
from graftwork_trainer.recipes.run import TENSORBOARD_FOLDER, TrainingRun, TrainingStopped


@contextlib.contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Limits torch's threads while inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def count_steps(num_examples: int, parameters: Hyperparameters) -> int:
    """Optimizer steps of a training on so many examples."""
    batches = math.ceil(num_examples / parameters.batch_size)
    steps_per_epoch = math.ceil(batches / parameters.gradient_accumulation)
    steps = math.ceil(parameters.epochs * steps_per_epoch)
    return steps if parameters.max_steps is None else min(steps, parameters.max_steps)


def training_arguments(
    run: TrainingRun, method: TrainingMethod, total_steps: int
) -> dict[str, Any]:
    """Arguments that every trainer of TRL takes."""
    parameters = run.hyperparameters
    on_cpu = run.base.model.device.type == "cpu"
    return {
        "output_dir": str(run.checkpoints_folder),
        "per_device_train_batch_size": parameters.batch_size,
        "gradient_accumulation_steps": parameters.gradient_accumulation,
        "max_steps": total_steps,
        "learning_rate": parameters.learning_rate or method.learning_rate,
        "lr_scheduler_type": parameters.schedule
        if parameters.schedule != "constant"
        else "constant_with_warmup",
        "warmup_steps": math.ceil(parameters.warmup * total_steps),
        "weight_decay": parameters.weight_decay,
        "max_grad_norm": parameters.max_gradient_norm,
        "seed": parameters.seed,
        "data_seed": parameters.seed,
        "use_cpu": on_cpu,
        # On the CPU bfloat16 has a backward pass that is hundreds of times slower.
        "bf16": False,
        "optim": "adamw_torch" if on_cpu else "paged_adamw_32bit",
        "activation_checkpointing": run.gradient_checkpointing,
        "logging_steps": 1,
        "save_strategy": "no",  # CheckpointClock asks for them
        "save_total_limit": 2,
        "report_to": "none",
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "dataloader_pin_memory": False,
    }


def attach(run: TrainingRun, model: PreTrainedModel, total_steps: int) -> AttachedAdapter:
    """The run's adapter on `model`, new or to be trained on. Raises InvalidFieldError."""
    parameters = run.hyperparameters
    if run.initial is None:
        adapter = attach_adapter(
            model,
            run.method,
            run.method_config,
            frozen_layers=parameters.frozen_layers,
            total_steps=total_steps,
        )
    else:
        if run.method_config:
            raise InvalidFieldError(
                "method_config", "is the initial version's: leave one of them out"
            )
        if parameters.frozen_layers:
            raise InvalidFieldError(
                "hyperparameters.frozen_layers", "cannot be changed for an initial version"
            )
        adapter = attach_initial(model, run.initial, run.base.description.digest)
    if run.gradient_checkpointing and adapter.method.peft_type == "PREFIX_TUNING":
        raise InvalidFieldError("method", "PREFIX_TUNING does not go with gradient checkpointing")
    _choose_attention(model, adapter.method, parameters)
    return adapter


def run_trainer(run: TrainingRun, trainer: Trainer, adapter: AttachedAdapter) -> None:
    """Trains, from the last checkpoint where there is one. Raises TrainingStopped."""
    trainer.remove_callback(PrinterCallback)  # standard output is the caller's
    clock = CheckpointClock(run.checkpoint_interval_s, run.should_stop)
    with contextlib.closing(SummaryWriter(run.folder / TENSORBOARD_FOLDER)) as writer:
        for callback in (clock, TensorBoardCallback(writer), *adapter.callbacks()):
            trainer.add_callback(callback)
        checkpoint = last_checkpoint(run.checkpoints_folder)
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if clock.was_stopped:
        raise TrainingStopped(f"stopped at step {trainer.state.global_step}")


def _choose_attention(
    model: PreTrainedModel, method: TrainingMethod, parameters: Hyperparameters
) -> None:
    if method.packs:
        model.set_attn_implementation(PACKED_ATTENTION)
    elif parameters.shifted_attention_group:
        raise InvalidFieldError(
            "hyperparameters.shifted_attention_group",
            f"does not go with {method.peft_type}, which puts tokens before the sequence",
        )
    else:
        capped = getattr(model.config, "attn_logit_softcapping", None)
        model.set_attn_implementation("eager" if capped else "sdpa")
