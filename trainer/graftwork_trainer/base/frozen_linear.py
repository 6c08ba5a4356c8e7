"""A linear module over quantized weights that gradients pass through."""

from typing import Any

import torch
from graftwork_adapters.base_file.description import PackedLinear
from graftwork_adapters.base_file.panels import PANEL, dequantize_int8, dequantize_nf4
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional


class Workspace:
    """Memory that holds one dequantized weight at a time, for as long as its product takes.

    A fresh allocation for each product would be returned to the system and zeroed by it each time.
    Belongs to one thread.
    """

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def take(self, num_elements: int, device: torch.device) -> Tensor:
        """(num_elements,) float32; what was taken before is overwritten."""
        if self._memory.numel() < num_elements or self._memory.device != device:
            self._memory = torch.empty(num_elements, device=device)
        return self._memory[:num_elements]


class FrozenLinear(nn.Linear):
    """`x W^T + bias` with W in the panels of `graftwork_adapters.base_file.panels`.

    An nn.Linear, as PEFT demands; `weight` is dequantized at each access, and has no gradient.
    """

    codes: Tensor
    scales: Tensor

    def __init__(
        self,
        packed: PackedLinear,
        *,
        codes: Tensor,  # (panels, in_features, 32) int8, or (panels, in_features, 16) uint8: NF4
        scales: Tensor,  # (panels, groups, 32) float32
        bias: Tensor | None,
        workspace: Workspace,
    ) -> None:
        nn.Module.__init__(self)  # nn.Linear's own would allocate a weight
        self._packed = packed
        self.in_features = packed.in_features
        self.out_features = packed.out_features
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)  # type: ignore[assignment]
        # PEFT's LLaMA-Adapter asks an attention's first parameter for device and dtype.
        self.placeholder = nn.Parameter(
            codes.new_empty(0, dtype=torch.float32), requires_grad=False
        )
        self._workspace = workspace

    @property
    def weight(self) -> Tensor:  # type: ignore[override]  # computed, so read-only
        """(out_features, in_features) float32, the caller's own."""
        return self._dequantize(None)

    def passing_weight(self) -> Tensor:
        """The same, in memory that the next product of any module overwrites."""
        return self._dequantize(
            self._workspace.take(self.codes.shape[0] * PANEL * self.in_features, self.codes.device)
        )

    def forward(self, x: Tensor) -> Tensor:
        """x: (..., in_features) float32 -> (..., out_features) float32."""
        y: Tensor = _Multiply.apply(x, self.bias, self)  # type: ignore[no-untyped-call]
        return y

    @torch.no_grad()
    def _dequantize(self, out: Tensor | None) -> Tensor:
        unpack = dequantize_int8 if self.codes.dtype == torch.int8 else dequantize_nf4
        return unpack(self.codes, self.scales, self.out_features, out)

    def __deepcopy__(self, memo: dict[int, Any]) -> "FrozenLinear":
        """Another module; the weights and the workspace stay shared unless `memo` has copies."""
        bias = None if self.bias is None else memo.get(id(self.bias), self.bias)
        return FrozenLinear(
            self._packed,
            codes=memo.get(id(self.codes), self.codes),
            scales=memo.get(id(self.scales), self.scales),
            bias=bias,
            workspace=self._workspace,
        )


class _Multiply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, module: FrozenLinear) -> Tensor:
        ctx.module = module
        return functional.linear(x, module.passing_weight(), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        module: FrozenLinear = ctx.module
        grad_x = grad @ module.passing_weight() if ctx.needs_input_grad[0] else None
        grad_bias = grad.flatten(0, -2).sum(0) if ctx.needs_input_grad[1] else None
        return grad_x, grad_bias, None
