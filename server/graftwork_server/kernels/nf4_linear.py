"""`x W^T + bias` for NF4 weights (QLoRA, arXiv:2305.14314) with float32 scales by groups of inputs.

As in `int8_linear`, a row's bits on the CPU do not depend on the rows beside it.
"""

import torch
from graftwork_adapters.base_file.panels import PANEL, dequantize_nf4, to_panels
from torch import Tensor
from torch.nn import functional

from graftwork_server.kernels.build import kernels_loaded


def nf4_linear(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, out_features: int
) -> Tensor:
    """
    x: (rows, in_features) float32, contiguous
    codes: (panels, in_features, 16) uint8, as `pack_nf4` makes them
    scales: (panels, groups, 32) float32; in_features must be a multiple of groups
    bias: (out_features,) float32
    returns: (rows, out_features) float32

    Raises RuntimeError where shapes or dtypes do not fit.
    """
    if x.device.type == "cpu" and kernels_loaded():
        y: Tensor = torch.ops.graftwork.nf4_linear.default(x, codes, scales, bias, out_features)
        return y
    return nf4_linear_reference(x, codes, scales, bias, out_features)


def nf4_linear_reference(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, out_features: int
) -> Tensor:
    """The same in plain torch, on any device and with x in any float dtype."""
    weight = dequantize_nf4(codes, scales, out_features)
    return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))


def pack_nf4(codes: Tensor) -> Tensor:
    """(out_features, in_features) uint8 codes 0 to 15 -> (panels, in_features, 16) uint8: output i
    of a panel in the low half of byte i, output i + 16 in the high half."""
    panels = to_panels(codes)
    return panels[..., : PANEL // 2] | panels[..., PANEL // 2 :] << 4
