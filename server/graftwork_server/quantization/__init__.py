"""Linear modules whose weights are held quantized, drop-in for nn.Linear."""

import torch
from torch import nn
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
