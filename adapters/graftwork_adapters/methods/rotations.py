"""Rotations out of free parameters."""

import torch
from torch import Tensor


def cayley(skew: Tensor) -> Tensor:
    """Cayley's formula, (I - S)(I + S)^-1, of skew-symmetric matrices (..., size, size)."""
    identity = torch.eye(skew.shape[-1], dtype=skew.dtype)
    rotation: Tensor = torch.linalg.solve(identity + skew, identity - skew, left=False)
    return rotation
