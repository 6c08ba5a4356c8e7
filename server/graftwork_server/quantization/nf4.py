"""NF4 weights with double quantization, as bitsandbytes defines them (QLoRA, arXiv:2305.14314).

bitsandbytes quantizes; its own CPU module is not used, because it rewrites the shared weight in
place when it first runs. On the CPU the codes are held in panels for the kernel, with the scales
read back from their quantized form: the weight is bit for bit the one bitsandbytes dequantizes.
"""

import math

import bitsandbytes
import torch
from bitsandbytes.functional import (
    QuantState,
    dequantize_4bit,
    dequantize_blockwise,
    quantize_4bit,
)
from graftwork_adapters.base_file.panels import dequantize_nf4, to_panels
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from graftwork_server.kernels.nf4_linear import nf4_linear, pack_nf4
from graftwork_server.quantization.linear import QuantizedLinear, weight_of

_BLOCK = 64  # weights that share a scale, along the rows laid end to end
_SCALES_BLOCK = 256  # scales that share a scale of their own


def quantize_nf4(weight: Tensor) -> tuple[Tensor, QuantState]:
    """weight: (out, in) -> bitsandbytes' packed codes and their state, scales quantized too."""
    packed, state = quantize_4bit(
        weight.float().contiguous(), blocksize=_BLOCK, compress_statistics=True, quant_type="nf4"
    )
    return packed, state


class NF4Linear(QuantizedLinear):
    """A linear module with NF4 weights in panels, for the CPU."""

    codes: Tensor  # (ceil(out_features / 32), in_features, 16) uint8
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
    def from_linear(cls, linear: nn.Linear | Conv1D) -> "NF4Linear":
        """Quantizes a linear module, or GPT-2's Conv1D."""
        weight = weight_of(linear)
        out_features, in_features = weight.shape
        packed, state = quantize_nf4(weight)
        pairs = packed.flatten()
        codes = torch.stack((pairs >> 4, pairs & 15), dim=-1).flatten()[: weight.numel()]
        scales = dequantize_blockwise(state.absmax, state.state2) + state.offset
        # A block may run over the end of a row, but a group of this size lies inside one block.
        group = math.gcd(in_features, _BLOCK)
        scale_of_group = torch.repeat_interleave(scales, _BLOCK // group)
        scale_of_group = scale_of_group[: weight.numel() // group].reshape(out_features, -1)
        return cls(
            in_features,
            out_features,
            pack_nf4(codes.reshape(out_features, in_features)),
            to_panels(scale_of_group),
            linear.bias,
        )

    def dequantized_weight(self) -> Tensor:
        return dequantize_nf4(self.codes, self.scales, self.out_features)

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        return nf4_linear(x, self.codes, self.scales, bias, self.out_features)


class CudaNF4Linear(QuantizedLinear):
    """A linear module with NF4 weights in bitsandbytes' own layout, for its CUDA kernels."""

    codes: Tensor  # (out_features * in_features / 2, 1) uint8
    code_values: Tensor  # (16,) float32
    scale_codes: Tensor  # (blocks,) uint8
    scale_scales: Tensor  # (ceil(blocks / 256),) float32
    scale_values: Tensor  # (256,) float32
    scale_offset: Tensor  # () float32

    def __init__(
        self,
        in_features: int,
        out_features: int,
        codes: Tensor,
        state: QuantState,
        bias: Tensor | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.register_buffer("codes", codes)
        self.register_buffer("code_values", state.code)
        self.register_buffer("scale_codes", state.absmax)
        self.register_buffer("scale_scales", state.state2.absmax)
        self.register_buffer("scale_values", state.state2.code)
        self.register_buffer("scale_offset", state.offset)

    @classmethod
    def from_linear(cls, linear: nn.Linear | Conv1D) -> "CudaNF4Linear":
        """Quantizes a linear module, or GPT-2's Conv1D, on the device it is on."""
        weight = weight_of(linear)
        out_features, in_features = weight.shape
        return cls(in_features, out_features, *quantize_nf4(weight), linear.bias)

    def dequantized_weight(self) -> Tensor:
        weight: Tensor = dequantize_4bit(self.codes, self._state())
        return weight

    def multiply(self, x: Tensor, bias: Tensor | None) -> Tensor:
        y: Tensor = bitsandbytes.matmul_4bit(x, self.codes, self._state(), bias=bias)
        return y

    def _state(self) -> QuantState:
        scales = QuantState(  # type: ignore[no-untyped-call]
            absmax=self.scale_scales,
            code=self.scale_values,
            blocksize=_SCALES_BLOCK,
            dtype=torch.float32,
        )
        return QuantState(  # type: ignore[no-untyped-call]
            absmax=self.scale_codes,
            shape=torch.Size((self.out_features, self.in_features)),
            code=self.code_values,
            blocksize=_BLOCK,
            quant_type="nf4",
            dtype=torch.float32,
            offset=self.scale_offset,
            state2=scales,
        )
