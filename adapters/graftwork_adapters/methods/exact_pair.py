"""A dense change of a weight as a low-rank pair, where nothing of lower rank is exact."""

import torch
from torch import Tensor

from graftwork_adapters.canonical import LowRank


def exact_pair(delta: Tensor) -> LowRank:
    """`delta`, (out_features, in_features) float32, times an identity of the smaller dimension: no
    rounding, and no factorization."""
    out_features, in_features = delta.shape
    if in_features <= out_features:
        return LowRank(torch.eye(in_features), delta.contiguous())
    return LowRank(delta.contiguous(), torch.eye(out_features))
