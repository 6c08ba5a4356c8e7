"""Linear modules whose weights are held quantized, drop-in for nn.Linear."""

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from graftwork_server.quantization.int8 import Int8Linear
from graftwork_server.quantization.linear import QuantizedLinear


def quantize_linear(
    linear: nn.Linear | Conv1D, quantization: str, device: torch.device
) -> QuantizedLinear:
    """The quantized form of a linear module: "int8"."""
    return Int8Linear.from_linear(linear).to(device)
