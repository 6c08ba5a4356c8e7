"""What adapters of many slots make of the input of a linear module, in one call: scaled features,
or chains of block rotations.

A rotation is held as its difference from the identity, so that rounding it to bfloat16 rounds what
the adapter does and not the input. The reference is `packed_transforms.transform_rows`.
"""

from dataclasses import dataclass

import torch
from graftwork_adapters.canonical_linear import (
    BlockRotation,
    InputScale,
    InputTransform,
)
from torch import Tensor
from torch.nn import functional

from graftwork_server.kernels.arena import in_one_piece
from graftwork_server.kernels.segments import Segments
from graftwork_server.kernels.slot_table import SlotTable

_WIDEST = 16  # lanes; the columns of a matrix are padded to a multiple
_SMALL = (2, 4)  # sizes of blocks that lie within any vector


@dataclass(frozen=True, slots=True)
class KernelInput:
    """An input transform in kernel layout (csrc/input_transforms.h)."""

    scale: Tensor | None  # (in_features,) float32
    rotations: Tensor  # (num_rotations, 6) int64: change, order, blocks, size, bfloat16, is small
    data: Tensor  # uint8: the changes, one after the other
    orders: tuple[Tensor, ...]

    @classmethod
    def pack(cls, transform: InputTransform, dtype: torch.dtype) -> "KernelInput":
        """dtype: float32 or bfloat16, of the rotations."""
        if isinstance(transform, InputScale):
            none = torch.zeros(0, 6, dtype=torch.int64)
            return cls(transform.scale.float().contiguous(), none, torch.zeros(0), ())
        changes = [_change(rotation) for rotation in transform.rotations]
        data, addresses = in_one_piece([change.to(dtype) for change, _ in changes])
        rows: list[list[int]] = []
        orders: list[Tensor] = []
        for rotation, address, (_, is_small) in zip(
            transform.rotations, addresses, changes, strict=True
        ):
            order = 0
            if rotation.order is not None:
                orders.append(rotation.order.contiguous())
                order = orders[-1].data_ptr()
            num_blocks, size, _ = rotation.matrices.shape
            is_bfloat16 = int(dtype == torch.bfloat16)
            rows.append([address, order, num_blocks, size, is_bfloat16, int(is_small)])
        return cls(None, torch.tensor(rows), data, tuple(orders))

    def tensors(self) -> list[Tensor]:
        own = [self.rotations, self.data, *self.orders]
        return own if self.scale is None else [self.scale, *own]


def _change(rotation: BlockRotation) -> tuple[Tensor, bool]:
    """(num_blocks, size, padded size), or of small blocks (size, num_blocks * size): what input
    j ^ d of a block adds to output j, at d."""
    num_blocks, size, _ = rotation.matrices.shape
    change = rotation.matrices - torch.eye(size)
    if size in _SMALL and num_blocks > 1:
        outputs = torch.arange(size)
        return torch.stack([change[:, outputs ^ d, outputs].flatten() for d in range(size)]), True
    return functional.pad(change, (0, -size % _WIDEST)), False


class InputTable(SlotTable[KernelInput]):
    """The input transforms of one linear module by adapter slot."""

    def __init__(self, max_slots: int) -> None:
        super().__init__(max_slots, 5)

    def place(self, slot: int, entry: KernelInput) -> None:
        scale = 0 if entry.scale is None else entry.scale.data_ptr()
        rotations, count = entry.rotations.data_ptr(), entry.rotations.shape[0]
        self.set(slot, entry, (scale, rotations, count, entry.data.data_ptr(), entry.data.nbytes))


def transform_inputs(x: Tensor, table: InputTable, segments: Segments) -> Tensor:
    """A copy of x (rows, in_features) float32 with the rows of slots that have a transform changed.

    Raises RuntimeError where shapes or dtypes do not fit.
    """
    changed: Tensor = torch.ops.graftwork.transform_inputs.default(
        x, table.addresses, segments.run_table
    )
    return changed
