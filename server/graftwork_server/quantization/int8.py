"""Int8 weights, symmetric, one float32 scale per output and group of 64 inputs (as llama.cpp's Q8_0
does with 32). Activations stay float32, or 16 bits by groups in the CPU's kernel, which is what
keeps it near lossless."""

import torch
from graftwork_adapters.base_file.panels import dequantize_int8, to_panels
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from graftwork_server.kernels.int8_linear import int8_linear
from graftwork_server.quantization.linear import QuantizedLinear, weight_of

_GROUPS = (64, 32, 16)
_LARGEST_CODE = 127


def group_size(in_features: int) -> int:
    """64, or the largest of 32 and 16 that divides in_features, or all of it."""
    return next((size for size in _GROUPS if in_features % size == 0), in_features)


def quantize_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """weight: (out, in) -> codes (panels, in, 32) int8 and scales (panels, groups, 32) float32."""
    out_features, in_features = weight.shape
    groups = weight.float().reshape(out_features, -1, group_size(in_features))
    scales = groups.abs().amax(dim=-1) / _LARGEST_CODE  # (out, groups)
    divisors = torch.where(scales > 0, scales, 1.0).unsqueeze(-1)
    codes = (groups / divisors).round().clamp(-_LARGEST_CODE, _LARGEST_CODE).to(torch.int8)
    return to_panels(codes.reshape(out_features, in_features)), to_panels(scales)


class Int8Linear(QuantizedLinear):
    """A linear module with int8 weights, held packed for the kernel and nowhere else."""

    codes: Tensor  # (ceil(out_features / 32), in_features, 32) int8
    scales: Tensor  # (ceil(out_features / 32), groups, 32) float32

    def __init__(
        self,
        in_features: int,
        out_features: int,
        codes: Tensor,
        scales: Tensor,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("codes", codes)
        self.register_buffer("scales", scales)

    @classmethod
    def from_linear(cls, linear: nn.Linear | Conv1D) -> "Int8Linear":
        """Quantizes a linear module, or GPT-2's Conv1D."""
        weight = weight_of(linear)
        out_features, in_features = weight.shape
        return cls(in_features, out_features, *quantize_int8(weight), linear.bias)

    def dequantized_weight(self) -> Tensor:
        return dequantize_int8(self.codes, self.scales, self.out_features)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return int8_linear(x, self.codes, self.scales, bias, self.out_features)
