"""The loss of completions, without the logits of every token.

The output head is a fifth of a small model's work and, with a vocabulary of fifty thousand, most of
its activations. Prompts are not learned by default, so that only the tokens that predict a
completion go through it, and their gradient is computed along with the loss, a few rows at a time:
the weight is dequantized once and no logits are kept.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional
from transformers import PreTrainedModel

from graftwork_trainer.base.frozen_linear import FrozenLinear

IGNORED = -100  # a label that is not learned
_ROWS_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class LogitScaling:
    """What some families do to their logits: `cap * tanh(factor * logits / cap)`."""

    factor: float = 1.0
    cap: float | None = None

    @classmethod
    def of(cls, model: PreTrainedModel) -> "LogitScaling":
        config = model.config
        divisor = getattr(config, "logits_scaling", None)  # Granite's
        factor = getattr(config, "logit_scale", None)  # Cohere's
        return cls(
            factor if factor is not None else 1 / divisor if divisor else 1.0,
            getattr(config, "final_logit_softcapping", None),  # Gemma's
        )

    def apply(self, logits: Tensor) -> Tensor:
        """With gradient."""
        logits = logits if self.factor == 1 else logits * self.factor
        return logits if self.cap is None else self.cap * torch.tanh(logits / self.cap)


@dataclass(slots=True)
class CompletionLoss:
    """What a model with `add_completion_loss` returns. PEFT adds AdaLoRA's regularization to it."""

    loss: Tensor  # () float32, with gradient: negative log-likelihood of the labels
    num_correct: Tensor  # () int64: labels that were the likeliest token


def add_completion_loss(model: PreTrainedModel) -> None:
    """Lets `model(..., completion_labels=labels)` return a CompletionLoss, as a sum over labels, or
    as a mean with `num_items_in_batch=count`. Call it before PEFT wraps the model.

    labels: (batch, num_tokens) int64 at the places of their tokens, -100 for what is not learned;
    the first of a sequence cannot be learned. Virtual tokens before the sequence have no place.
    """
    original = model.forward
    scaling = LogitScaling.of(model)

    def forward(
        *args: Any,
        completion_labels: Tensor | None = None,
        num_items_in_batch: Tensor | int = 1,
        **kwargs: Any,
    ) -> Any:
        if completion_labels is None:
            return original(*args, **kwargs)
        kwargs.pop("labels", None)  # PEFT passes it on as None
        hidden = model.base_model(*args, **kwargs).last_hidden_state
        num_virtual = hidden.shape[1] - completion_labels.shape[1]
        targets = completion_labels[:, 1:]
        is_learned = targets != IGNORED
        found = completion_loss(
            hidden[:, num_virtual:-1][is_learned],
            targets[is_learned],
            model.get_output_embeddings(),
            scaling,
        )
        found.loss = found.loss / num_items_in_batch
        return found

    model.forward = forward


def completion_loss(
    hidden: Tensor,  # (num_labels, hidden_size): what the head is given to predict each label
    labels: Tensor,  # (num_labels,) int64
    head: nn.Module,
    scaling: LogitScaling,
) -> CompletionLoss:
    """The loss of the labels under the head, frozen or trained."""
    if any(parameter.requires_grad for parameter in head.parameters()) or not isinstance(
        head, nn.Linear
    ):
        logits = scaling.apply(head(hidden)).float()
        loss = functional.cross_entropy(logits, labels, reduction="sum")
        return CompletionLoss(loss, (logits.argmax(-1) == labels).sum())
    loss, num_correct = _FrozenHeadLoss.apply(hidden, labels, head, scaling)  # type: ignore[no-untyped-call]
    return CompletionLoss(loss, num_correct)


class _FrozenHeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, labels: Tensor, head: nn.Linear, scaling: LogitScaling
    ) -> tuple[Tensor, Tensor]:
        weight = head.passing_weight() if isinstance(head, FrozenLinear) else head.weight
        needs_gradient = ctx.needs_input_grad[0]
        gradient = torch.empty_like(hidden) if needs_gradient else None
        loss = hidden.new_zeros(())
        num_correct = labels.new_zeros(())
        for start in range(0, len(labels), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            logits = functional.linear(hidden[rows], weight, head.bias)
            with torch.enable_grad():
                own = logits.detach().requires_grad_(needs_gradient)
                part = functional.cross_entropy(scaling.apply(own), labels[rows], reduction="sum")
            loss += part.detach()
            num_correct += (logits.argmax(-1) == labels[rows]).sum()
            if gradient is not None:
                (of_logits,) = torch.autograd.grad(part, own)
                gradient[rows] = of_logits @ weight
        ctx.mark_non_differentiable(num_correct)
        ctx.gradient = gradient
        return loss, num_correct

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, of_loss: Tensor, _: Tensor) -> tuple[Tensor | None, None, None, None]:
        return None if ctx.gradient is None else ctx.gradient * of_loss, None, None, None
