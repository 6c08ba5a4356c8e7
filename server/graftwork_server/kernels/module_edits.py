"""Norms and bottlenecks of many slots on the output of one module, in one call each.

The references are `packed_parts.ReplacedModule` and `packed_parts.PackedBottleneck`.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork_server.kernels.low_rank import PackedLowRank
from graftwork_server.kernels.segments import Segments
from graftwork_server.kernels.slot_table import SlotTable

ACTIVATIONS = {
    "gelu": 0,
    "gelu_new": 1,
    "leakyrelu": 2,
    "relu": 3,
    "sigmoid": 4,
    "silu": 5,
    "swish": 5,
    "tanh": 6,
}


@dataclass(frozen=True, slots=True)
class KernelNorm:
    """The weight of an RMS norm in place of the base's."""

    weight: Tensor  # (features,) float32, contiguous
    offset: float
    eps: float


class NormTable(SlotTable[KernelNorm]):
    """The weights of one RMS norm by adapter slot."""

    def __init__(self, max_slots: int) -> None:
        super().__init__(max_slots, 1)

    def place(self, slot: int, norm: KernelNorm) -> None:
        self.set(slot, norm, (norm.weight.data_ptr(),))


def replace_rms_norm(
    y: Tensor, x: Tensor, table: NormTable, segments: Segments, *, offset: float, eps: float
) -> None:
    """Overwrites the rows of y whose slots have a weight with the norms of x's rows.

    y, x: (rows, features) float32, contiguous

    Raises RuntimeError where shapes or dtypes do not fit.
    """
    torch.ops.graftwork.replace_rms_norm.default(
        y, x, table.addresses, segments.run_table, offset, eps
    )


@dataclass(frozen=True, slots=True)
class KernelBottleneck:
    factors: PackedLowRank  # down and up
    down_bias: Tensor  # (bottleneck_size,) float32, contiguous
    up_bias: Tensor  # (features,) float32, contiguous
    non_linearity: str  # a key of ACTIVATIONS


class BottleneckTable(SlotTable[KernelBottleneck]):
    """The bottlenecks behind one module by adapter slot."""

    def __init__(self, max_slots: int) -> None:
        super().__init__(max_slots, 7)

    def place(self, slot: int, entry: KernelBottleneck) -> None:
        factors = entry.factors
        row = (
            factors.a.data_ptr(),
            factors.b_panels.data_ptr(),
            factors.rank,
            int(factors.a.dtype == torch.bfloat16),
            entry.down_bias.data_ptr(),
            entry.up_bias.data_ptr(),
            ACTIVATIONS[entry.non_linearity],
        )
        self.set(slot, entry, row)


def add_bottlenecks(y: Tensor, table: BottleneckTable, segments: Segments) -> None:
    """`y += f(y down^T + down_bias) up^T + up_bias` for the rows whose slots have one, in place.

    y: (rows, features) float32, rows may be strided

    Raises RuntimeError where shapes or dtypes do not fit.
    """
    torch.ops.graftwork.add_bottlenecks.default(y, table.addresses, segments.run_table)
