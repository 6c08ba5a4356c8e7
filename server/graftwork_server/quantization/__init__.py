"""Linear modules whose weights are held quantized, drop-in for nn.Linear."""

from collections.abc import Mapping

import torch
from graftwork_adapters.base_file.description import InvalidBaseFile, Packing
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from graftwork_server.quantization.int8 import Int8Linear
from graftwork_server.quantization.linear import QuantizedLinear


def quantize_linear(
    linear: nn.Linear | Conv1D, quantization: str, device: torch.device
) -> QuantizedLinear:
    """A quantized copy of a linear module on `device`; quantization is "int8" or "nf4".

    Raises ValueError for any other quantization.
    """
    linear = linear.to(device)
    if quantization == "int8":
        return Int8Linear.from_linear(linear)
    if quantization == "nf4":
        # bitsandbytes takes over a second to import: only those who quantize with it pay.
        from graftwork_server.quantization.nf4 import CudaNF4Linear, NF4Linear  # noqa: PLC0415

        return (NF4Linear if device.type == "cpu" else CudaNF4Linear).from_linear(linear)
    raise ValueError(f"quantization must be int8 or nf4, is {quantization!r}")


def restore_linear(
    in_features: int, out_features: int, packing: Packing, tensors: Mapping[str, Tensor]
) -> QuantizedLinear:
    """A module on the CPU over what one of `quantize_linear` held: `codes`, `scales`, and `bias`
    where it has one.

    Raises InvalidBaseFile where one is missing, or where only CUDA computes with such.
    """
    if missing := {"codes", "scales"} - tensors.keys():
        raise InvalidBaseFile(f"a quantized module has no {' and no '.join(sorted(missing))}")
    weight, bias = (tensors["codes"], tensors["scales"]), tensors.get("bias")
    if packing == "int8":
        return Int8Linear(in_features, out_features, *weight, bias)
    if packing == "nf4":
        from graftwork_server.quantization.nf4 import NF4Linear  # noqa: PLC0415 - as above

        return NF4Linear(in_features, out_features, *weight, bias)
    raise InvalidBaseFile(f"weights packed as {packing} are not for the CPU")
