"""TRL's SFTTrainer with the loss computed at completions only, over packed rows."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from trl import SFTTrainer

from graftwork_trainer.base.completion_loss import IGNORED, CompletionLoss
from graftwork_trainer.base.packed_rows import PackedRows
from graftwork_trainer.recipes.checkpoints import CheckpointedTrainer
from graftwork_trainer.recipes.reporting import ProgressReporter


def loss_of_batch(
    model: nn.Module, batch: dict[str, Any], *, group_size: int = 0, num_items: Tensor | int = 1
) -> CompletionLoss:
    """The loss of a batch that `batches` made, under a model with `add_completion_loss`."""
    inputs = dict(batch)
    labels = inputs.pop("labels")
    lengths = inputs.pop("lengths", None)
    if lengths is not None:
        inputs["packed_rows"] = PackedRows.of(
            lengths.tolist(), group_size=group_size, device=labels.device
        )
    found: CompletionLoss = model(
        **inputs, completion_labels=labels, num_items_in_batch=num_items, use_cache=False
    )
    return found


class CompletionSftTrainer(CheckpointedTrainer, SFTTrainer):
    """Takes batches of `batches.packed` or `batches.padded`."""

    def __init__(self, *, reporter: ProgressReporter, group_size: int, **arguments: Any) -> None:
        super().__init__(callbacks=[reporter], **arguments)
        self.model_accepts_loss_kwargs = True  # counts the labels of all accumulated batches
        self._reporter = reporter
        self._group_size = group_size

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor | Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        labels = inputs["labels"]
        count = (labels != IGNORED).sum()
        found = loss_of_batch(
            model,
            inputs,
            group_size=self._group_size,
            num_items=count if num_items_in_batch is None else num_items_in_batch,
        )
        mode = "train" if model.training else "eval"
        accuracy = found.num_correct / count.clamp(min=1)
        self._metrics[mode]["mean_token_accuracy"].append(float(accuracy))
        if mode == "train":
            self._reporter.num_tokens += _num_tokens(inputs)
        return (found.loss, found) if return_outputs else found.loss


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[dict[str, Tensor]]) -> float:
    """Over the learned tokens of all batches, with the attention that serves; leaves the model in
    evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    total, count = 0.0, 0
    for batch in batches:
        on_device = {name: tensor.to(device) for name, tensor in batch.items()}
        total += float(loss_of_batch(model, on_device).loss)
        count += int((batch["labels"] != IGNORED).sum())
    return total / max(1, count)


def _num_tokens(inputs: dict[str, Tensor]) -> int:
    mask = inputs.get("attention_mask")
    return inputs["input_ids"].numel() if mask is None else int(mask.sum())
