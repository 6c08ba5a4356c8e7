"""QLoRA's linear modules (arXiv:2305.14314) on CUDA: bitsandbytes' NF4, scales quantized too."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from graftwork_adapters.base_file.description import PackedLinear
from torch import Tensor, nn

if TYPE_CHECKING:
    from bitsandbytes.nn import Linear4bit

_BLOCK = 64  # weights that share a scale
_SCALES_BLOCK = 256  # scales that share a scale of their own


def build_linear4bit(
    packed: PackedLinear, tensors: Mapping[str, Tensor], device: torch.device
) -> "Linear4bit":
    """The module over the "nf4_blocks" tensors of a base's file: the very codes that serve."""
    # It takes over a second to import, and only CUDA needs it.
    from bitsandbytes.nn import Linear4bit, Params4bit  # noqa: PLC0415

    statistics = {
        "absmax": tensors["scale_codes"],
        "quant_map": tensors["code_values"],
        "nested_absmax": tensors["scale_scales"],
        "nested_quant_map": tensors["scale_values"],
        "nested_blocksize": _SCALES_BLOCK,
        "nested_dtype": "float32",
        "nested_offset": float(tensors["scale_offset"]),
        "quant_type": "nf4",
        "blocksize": _BLOCK,
        "dtype": "float32",
        "shape": [packed.out_features, packed.in_features],
    }
    bias = tensors.get("bias")
    module: Linear4bit = Linear4bit(  # type: ignore[no-untyped-call]
        packed.in_features,
        packed.out_features,
        bias=bias is not None,
        compute_dtype=torch.float32,
        device="meta",
    )
    module.weight = Params4bit.from_prequantized(
        tensors["codes"], statistics, device=device, module=module
    )
    if bias is not None:
        module.bias = nn.Parameter(bias.to(device), requires_grad=False)
    return module
