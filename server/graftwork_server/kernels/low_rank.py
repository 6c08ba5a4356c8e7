"""Low-rank adapters of many slots on one batch: `y[m] += (x[m] A_s^T) B_s^T`, s the slot of row m.

The kernels, C++ on the CPU and Triton on CUDA, read the factors of each slot in place through a
table of addresses. On the CPU a row's bits depend on its input and its factors only, not on its
neighbours or on how many rows share its slot.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from graftwork_adapters.base_file.panels import PANEL, from_panels, to_panels
from graftwork_adapters.canonical import KhatriRaoPair
from torch import Tensor
from torch.nn import functional

from graftwork_server.kernels.build import kernels_loaded
from graftwork_server.kernels.segments import Segments

# A build of torch for the CPU has no launcher for Triton's kernels.
HAS_TRITON = torch.version.cuda is not None and find_spec("triton") is not None


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
    def in_features(self) -> int:
        return self.a.shape[1]

    @property
    def format(self) -> int:
        return int(self.a.dtype == torch.bfloat16)

    @property
    def num_bytes(self) -> int:
        return self.a.nbytes + self.b_panels.nbytes

    def b(self) -> Tensor:
        """(out_features, rank)."""
        return from_panels(self.b_panels, self.out_features)

    def factors(self) -> tuple[Tensor, Tensor]:
        """(rank, in_features) and (out_features, rank)."""
        return self.a, self.b()


@dataclass(frozen=True, slots=True)
class PackedKhatriRao:
    """A pair whose factors are products of smaller ones, for the CPU's kernel."""

    a: Tensor  # (2, rank, in_features padded to blocks of 32), float32 or bfloat16
    b_panels: Tensor  # (ceil(out_features / 32), 2 * rank, 32), same dtype
    in_features: int
    out_features: int

    @classmethod
    def pack(cls, pair: KhatriRaoPair, dtype: torch.dtype) -> "PackedKhatriRao":
        """dtype: float32 or bfloat16."""
        a = torch.stack([pair.first_a, pair.second_a]).to(dtype)
        b = torch.cat([pair.first_b, pair.second_b], dim=1).to(dtype)
        in_features = a.shape[2]
        a = functional.pad(a, (0, -in_features % PANEL))
        return cls(_in_turns(a), _in_turns(to_panels(b)), in_features, b.shape[0])

    @property
    def rank(self) -> int:
        """Of the smaller factors."""
        return self.a.shape[1]

    @property
    def format(self) -> int:
        return 2 + int(self.a.dtype == torch.bfloat16)

    @property
    def num_bytes(self) -> int:
        return self.a.nbytes + self.b_panels.nbytes

    def factors(self) -> tuple[Tensor, Tensor]:
        """(rank^2, in_features) and (out_features, rank^2), float32."""
        b = from_panels(_in_order(self.b_panels), self.out_features).float()
        first_a, second_a = _in_order(self.a)[:, :, : self.in_features].float()
        both = KhatriRaoPair.of(first_a, second_a, b[:, : self.rank], b[:, self.rank :])
        return both.a, both.b


def _in_turns(values: Tensor) -> Tensor:
    """Of bfloat16 the halves of each block of 32 in turns, as csrc/simd.h reads them."""
    if values.dtype != torch.bfloat16:
        return values.contiguous()
    blocks = values.reshape(*values.shape[:-1], -1, 2, PANEL // 2)
    return blocks.transpose(-1, -2).reshape(values.shape)


def _in_order(values: Tensor) -> Tensor:
    """What `_in_turns` was made from."""
    if values.dtype != torch.bfloat16:
        return values
    blocks = values.reshape(*values.shape[:-1], -1, PANEL // 2, 2)
    return blocks.transpose(-1, -2).reshape(values.shape)


class LowRankTable:
    """The low-rank pairs of one linear module by adapter slot.

    Not locked: `set` and `clear` must not run while a step that uses the table does.
    """

    def __init__(self, max_slots: int, in_features: int, out_features: int) -> None:
        self.in_features = in_features
        self.out_features = out_features
        self._pairs: list[PackedLowRank | PackedKhatriRao | None] = [None] * max_slots
        # (max_slots, 4) int64: addresses of A and B, rank, format. Zeros: no pair.
        self.addresses = torch.zeros(max_slots, 4, dtype=torch.int64)
        self._rows = self.addresses.numpy()
        self._copies: dict[torch.device, Tensor] = {}  # of the addresses, on other devices

    def set(self, slot: int, pair: PackedLowRank | PackedKhatriRao) -> None:
        """Raises ValueError where the pair does not fit the module, IndexError for a bad slot."""
        if (pair.in_features, pair.out_features) != (self.in_features, self.out_features):
            raise ValueError(
                f"a pair of {pair.in_features} inputs and {pair.out_features} outputs does not fit "
                f"a module of {self.in_features} and {self.out_features}"
            )
        self._check(slot)
        self._pairs[slot] = pair
        self._rows[slot] = (pair.a.data_ptr(), pair.b_panels.data_ptr(), pair.rank, pair.format)
        self._copies.clear()

    def clear(self, slot: int) -> None:
        """Frees the slot; an empty slot adds nothing."""
        self._check(slot)
        self._rows[slot] = 0
        self._pairs[slot] = None
        self._copies.clear()

    def get(self, slot: int) -> PackedLowRank | PackedKhatriRao | None:
        self._check(slot)
        return self._pairs[slot]

    def max_rank(self, slots: Iterable[int]) -> int:
        """The highest rank among these slots; 0 where none has a pair."""
        return max((pair.rank for pair in map(self.get, slots) if pair is not None), default=0)

    def addresses_on(self, device: torch.device) -> Tensor:
        """The addresses on a device, copied there once after each change."""
        if device not in self._copies:
            self._copies[device] = self.addresses.to(device, copy=True)
        return self._copies[device]

    def _check(self, slot: int) -> None:
        if not 0 <= slot < len(self._pairs):
            raise IndexError(f"slot {slot} is outside 0 to {len(self._pairs) - 1}")


def add_low_rank(y: Tensor, x: Tensor, table: LowRankTable, segments: Segments) -> None:
    """Adds each row's low-rank term to y, in place. Rows of the base and of empty slots stay as
    they are.

    y: (rows, out_features) float32, rows may be strided; on CUDA also float16 or bfloat16
    x: (rows, in_features), the same

    Raises RuntimeError, or on CUDA ValueError, where shapes or dtypes do not fit.
    """
    if y.device.type == "cpu" and kernels_loaded():
        torch.ops.graftwork.add_low_rank.default(y, x, table.addresses, segments.run_table)
    elif y.device.type == "cuda" and HAS_TRITON:
        # triton takes seconds to import, and is not there at all beside a torch for the CPU.
        from graftwork_server.kernels.triton_low_rank import add_low_rank_triton  # noqa: PLC0415

        add_low_rank_triton(y, x, table, segments)
    else:
        add_low_rank_reference(y, x, table, segments)


def add_low_rank_reference(y: Tensor, x: Tensor, table: LowRankTable, segments: Segments) -> None:
    """The same in plain torch, on any device."""
    for slot, start, stop in segments.runs:
        pair = table.get(slot)
        if pair is not None:
            a, b = pair.factors()
            y[start:stop] += x[start:stop] @ a.to(x.dtype).T @ b.to(x.dtype).T
