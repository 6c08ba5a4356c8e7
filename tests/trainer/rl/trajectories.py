"""Random trajectories, padded on the right, and the same as plain lists."""

import torch
from torch import Tensor


def random_mask(batch: int, time: int, seed: int) -> Tensor:
    """(batch, time): each answer has at least one token."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, time + 1, (batch,), generator=generator)
    return torch.arange(time)[None, :] < lengths[:, None]


def random_values(*shape: int, seed: int, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64) * scale


def answers(values: Tensor, mask: Tensor) -> list[list[float]]:
    """Without the padding."""
    return [
        [v for v, m in zip(row, kept, strict=True) if m]
        for row, kept in zip(values.tolist(), mask.tolist(), strict=True)
    ]
