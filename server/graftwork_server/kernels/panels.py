"""The panel layout of weights: 32 outputs interleaved, in_features inner, so that a kernel reads a
weight once, front to back, whatever the vector width of the machine."""

import torch
from torch import Tensor
from torch.nn import functional

PANEL = 32


def to_panels(weight: Tensor) -> Tensor:
    """(out, n) -> (ceil(out / 32), n, 32), any dtype; missing outputs are zeros."""
    missing = -weight.shape[0] % PANEL
    padded = functional.pad(weight, (0, 0, 0, missing)) if missing else weight
    return padded.reshape(-1, PANEL, weight.shape[1]).transpose(1, 2).contiguous()


def from_panels(panels: Tensor, out_features: int) -> Tensor:
    """(panels, n, 32) -> (out_features, n)."""
    num_panels, n, _ = panels.shape
    return panels.transpose(1, 2).reshape(num_panels * PANEL, n)[:out_features]


def expand_groups(values: Tensor, in_features: int) -> Tensor:
    """(..., groups, 32) -> (..., in_features, 32): each group's value for each of its inputs."""
    return torch.repeat_interleave(values, in_features // values.shape[-2], dim=-2)
