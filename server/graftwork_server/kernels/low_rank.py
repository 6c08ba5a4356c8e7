"""Low-rank adapters of many slots on one batch: `y[m] += (x[m] A_s^T) B_s^T`, s the slot of row m.

The CPU kernel reads the factors of each slot in place through a table of addresses. A row's bits
depend on its input and its factors only, not on its neighbours or on how many rows share its slot.
"""

from dataclasses import dataclass

import torch
from graftwork_adapters.base_file.panels import from_panels, to_panels
from torch import Tensor

from graftwork_server.kernels.build import kernels_loaded
from graftwork_server.kernels.segments import Segments


@dataclass(frozen=True, slots=True)
class PackedLowRank:
    """A pair of factors as the kernel reads it. Packing copies; do it off the engine's thread."""

    a: Tensor  # (rank, in_features), float32 or bfloat16
    b_panels: Tensor  # (ceil(out_features / 32), rank, 32), same dtype
    out_features: int

    @classmethod
    def pack(cls, a: Tensor, b: Tensor) -> "PackedLowRank":
        """a: (rank, in_features), b: (out_features, rank), one dtype. float16 becomes float32.

        Raises ValueError where shapes or dtypes do not fit.
        """
        if a.dim() != 2 or b.dim() != 2 or a.shape[0] != b.shape[1] or a.shape[0] == 0:
            raise ValueError(f"a {tuple(a.shape)} and b {tuple(b.shape)} are no low-rank pair")
        if a.dtype != b.dtype or a.dtype not in {torch.float32, torch.bfloat16, torch.float16}:
            raise ValueError(f"factors must share a float dtype, are {a.dtype} and {b.dtype}")
        if a.dtype == torch.float16:
            a, b = a.float(), b.float()
        return cls(a.detach().contiguous(), to_panels(b.detach()), b.shape[0])

    @property
    def rank(self) -> int:
        return self.a.shape[0]

    @property
    def num_bytes(self) -> int:
        return self.a.nbytes + self.b_panels.nbytes

    def b(self) -> Tensor:
        """(out_features, rank)."""
        return from_panels(self.b_panels, self.out_features)


class LowRankTable:
    """The low-rank pairs of one linear module by adapter slot.

    Not locked: `set` and `clear` must not run while a step that uses the table does.
    """

    def __init__(self, max_slots: int, in_features: int, out_features: int) -> None:
        self.in_features = in_features
        self.out_features = out_features
        self._pairs: list[PackedLowRank | None] = [None] * max_slots
        # (max_slots, 4) int64: addresses of A and B, rank, whether bfloat16. Zeros: no pair.
        self.addresses = torch.zeros(max_slots, 4, dtype=torch.int64)
        self._rows = self.addresses.numpy()

    def set(self, slot: int, pair: PackedLowRank) -> None:
        """Raises ValueError where the pair does not fit the module, IndexError for a bad slot."""
        if (pair.a.shape[1], pair.out_features) != (self.in_features, self.out_features):
            raise ValueError(
                f"a pair of {pair.a.shape[1]} inputs and {pair.out_features} outputs does not fit "
                f"a module of {self.in_features} and {self.out_features}"
            )
        self._check(slot)
        self._pairs[slot] = pair
        bfloat16 = int(pair.a.dtype == torch.bfloat16)
        self._rows[slot] = (pair.a.data_ptr(), pair.b_panels.data_ptr(), pair.rank, bfloat16)

    def clear(self, slot: int) -> None:
        """Frees the slot; an empty slot adds nothing."""
        self._check(slot)
        self._rows[slot] = 0
        self._pairs[slot] = None

    def get(self, slot: int) -> PackedLowRank | None:
        self._check(slot)
        return self._pairs[slot]

    def _check(self, slot: int) -> None:
        if not 0 <= slot < len(self._pairs):
            raise IndexError(f"slot {slot} is outside 0 to {len(self._pairs) - 1}")


def add_low_rank(y: Tensor, x: Tensor, table: LowRankTable, segments: Segments) -> None:
    """Adds each row's low-rank term to y, in place. Rows of the base and of empty slots stay as
    they are.

    y: (rows, out_features) float32, rows may be strided
    x: (rows, in_features) float32, rows may be strided

    Raises RuntimeError where shapes or dtypes do not fit.
    """
    if y.device.type == "cpu" and kernels_loaded():
        torch.ops.graftwork.add_low_rank.default(y, x, table.addresses, segments.run_table)
    else:
        add_low_rank_reference(y, x, table, segments)


def add_low_rank_reference(y: Tensor, x: Tensor, table: LowRankTable, segments: Segments) -> None:
    """The same in plain torch, on any device."""
    for slot, start, stop in segments.runs:
        pair = table.get(slot)
        if pair is not None:
            hidden = x[start:stop] @ pair.a.to(x.dtype).T
            y[start:stop] += hidden @ pair.b().to(x.dtype).T
