"""AdaLoRA's pruning, which PEFT leaves to who trains, and what of it a checkpoint must hold."""

import json
from collections.abc import Mapping
from typing import Any

from peft import PeftModel
from peft.tuners.adalora import AdaLoraModel
from torch import Tensor, nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

# What the allocator keeps of each factor: (rank, in) or (out, rank) float32.
_KEPT = ("ipt", "exp_avg_ipt", "exp_avg_unc")
_PREFIX = "rank_allocation"
_PATTERN = "rank_pattern"


class RankAllocation(TrainerCallback):
    """Prunes after each optimizer step, while the gradients are there."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def on_optimizer_step(
        self,
        args: TrainingArguments,  # noqa: ARG002
        state: TrainerState,
        control: TrainerControl,  # noqa: ARG002
        **_: Any,
    ) -> None:
        if (tuner := _tuner(self._model)) is not None:
            tuner.update_and_allocate(state.global_step)


def allocation_state(model: Any) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata for a checkpoint; both are empty for other methods."""
    tuner = _tuner(model)
    if tuner is None:
        return {}, {}
    tensors = {
        f"{_PREFIX}.{kind}.{name}": tensor.detach().cpu()
        for kind in _KEPT
        for name, tensor in getattr(tuner.rankallocator, kind).items()
    }
    pattern = tuner.peft_config[tuner.trainable_adapter_name].rank_pattern
    return tensors, {_PATTERN: json.dumps(pattern)}


def restore_allocation(
    model: Any, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Puts back what `allocation_state` gave; other tensors are not looked at."""
    tuner = _tuner(model)
    if tuner is None:
        return
    device = next(model.parameters()).device
    for name, tensor in tensors.items():
        if name.startswith(f"{_PREFIX}."):
            _, kind, parameter = name.split(".", maxsplit=2)
            getattr(tuner.rankallocator, kind)[parameter] = tensor.to(device)
    config = tuner.peft_config[tuner.trainable_adapter_name]
    config.rank_pattern = json.loads(metadata[_PATTERN])


def _tuner(model: nn.Module) -> Any:
    """The part of a PeftModel that allocates ranks; None where there is none."""
    if isinstance(model, PeftModel) and isinstance(model.base_model, AdaLoraModel):
        return model.base_model
    return None
