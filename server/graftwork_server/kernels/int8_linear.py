"""`x W^T + bias` for int8 weights with float32 scales by groups of in_features.

On the CPU each group of a row's activations becomes 16-bit integers under a scale of its own, so
that the products within a group are exact sums of integers, at twice the rate of float32; groups of
an odd or great length stay float32. Either way a row's bits do not depend on the rows beside it.
"""

import torch
from graftwork_adapters.base_file.panels import dequantize_int8
from torch import Tensor
from torch.nn import functional

from graftwork_server.kernels.build import kernels_loaded


def int8_linear(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, out_features: int
) -> Tensor:
    """
    x: (rows, in_features) float32, contiguous
    codes: (panels, in_features, 32) int8
    scales: (panels, groups, 32) float32; in_features must be a multiple of groups
    bias: (out_features,) float32
    returns: (rows, out_features) float32

    Raises RuntimeError where shapes or dtypes do not fit.
    """
    if x.device.type == "cpu" and kernels_loaded():
        y: Tensor = torch.ops.graftwork.int8_linear.default(x, codes, scales, bias, out_features)
        return y
    return int8_linear_reference(x, codes, scales, bias, out_features)


def int8_linear_reference(
    x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None, out_features: int
) -> Tensor:
    """The same in plain torch, on any device, with x as it is, in any float dtype."""
    weight = dequantize_int8(codes, scales, out_features)
    return functional.linear(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
