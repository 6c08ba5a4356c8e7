"""What the quantized linear modules share: they look like nn.Linear and can be trained through."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers.pytorch_utils import Conv1D


class QuantizedLinear(nn.Linear):
    """A linear module with a frozen quantized weight.

    It is an nn.Linear for PEFT, which refuses anything else, and its `weight` is the dequantized
    one. Gradients reach its input through the dequantized weight; the weight itself takes none.
    The packed weight is in buffers, so that state_dict holds every number the module computes with.
    """

    def __init__(self, in_features: int, out_features: int, bias: Tensor | None) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would allocate a float weight
        self.in_features = in_features
        self.out_features = out_features
        if bias is None:
            self.register_parameter("bias", None)
        else:
            self.bias = nn.Parameter(bias.detach().to(torch.float32), requires_grad=False)

    def dequantized_weight(self) -> Tensor:
        """(out_features, in_features) float32, computed anew at each call."""
        raise NotImplementedError

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """x: (rows, in_features) contiguous -> (rows, out_features), without gradient."""
        raise NotImplementedError

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # computed, so read-only
        return self.dequantized_weight()

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features) float32 -> (..., out_features) float32."""
        rows = x.reshape(-1, self.in_features).contiguous()
        if torch.is_grad_enabled() and (rows.requires_grad or self._bias_requires_grad()):
            y: Tensor = _Multiply.apply(rows, self.bias, self)  # type: ignore[no-untyped-call]
        else:
            y = self.multiply(rows, self.bias)
        return y.reshape(*x.shape[:-1], self.out_features)

    def _bias_requires_grad(self) -> bool:
        return self.bias is not None and self.bias.requires_grad


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, module: QuantizedLinear) -> Tensor:
        ctx.module = module
        return module.multiply(x, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        weight = ctx.module.dequantized_weight()
        grad_x = grad @ weight.to(grad.dtype) if ctx.needs_input_grad[0] else None
        grad_bias = grad.sum(0) if ctx.needs_input_grad[1] else None
        return grad_x, grad_bias, None


def weight_of(linear: nn.Linear | Conv1D) -> Tensor:
    """(out_features, in_features); GPT-2's Conv1D holds its transpose."""
    weight = linear.weight.detach()
    return weight.T if isinstance(linear, Conv1D) else weight
