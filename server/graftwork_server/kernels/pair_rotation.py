"""Pair rotations of many slots on the output of a linear module, in one call.

The reference is `packed_transforms.PackedPairRotation`.
"""

from dataclasses import dataclass

import torch
from graftwork_adapters.canonical_linear import PairRotation
from torch import Tensor

from graftwork_server.kernels.segments import Segments
from graftwork_server.kernels.slot_table import SlotTable


@dataclass(frozen=True, slots=True)
class KernelPairRotation:
    cosine: Tensor  # (out_features,) float32
    sine: Tensor  # the same
    half: int  # of a group of features

    @classmethod
    def pack(cls, rotation: PairRotation) -> "KernelPairRotation":
        cosine, sine = rotation.cosine.float(), rotation.sine.float()
        return cls(cosine.contiguous(), sine.contiguous(), rotation.group_size // 2)

    def tensors(self) -> list[Tensor]:
        return [self.cosine, self.sine]


class PairRotationTable(SlotTable[KernelPairRotation]):
    """The pair rotations of one linear module by adapter slot."""

    def __init__(self, max_slots: int) -> None:
        super().__init__(max_slots, 3)

    def place(self, slot: int, entry: KernelPairRotation) -> None:
        self.set(slot, entry, (entry.cosine.data_ptr(), entry.sine.data_ptr(), entry.half))


def rotate_pairs(y: Tensor, table: PairRotationTable, segments: Segments) -> None:
    """Rotates the rows of y (rows, out_features) float32 whose slots have a rotation, in place.

    Raises RuntimeError where shapes or dtypes do not fit.
    """
    torch.ops.graftwork.rotate_pairs.default(y, table.addresses, segments.run_table)
