"""What adapters of many slots add to the output of a linear module beyond the low-rank pair, in one
call: for each slot a term of any kind.

Kinds and layouts are those of csrc/terms.h and the headers beside it; the reference of each is its
class in `packed_terms`. Values that are read once a row may be rounded to bfloat16, as low-rank
factors are.
"""

from dataclasses import dataclass
from functools import lru_cache
from math import pi

import torch
from graftwork_adapters.base_file.panels import PANEL, to_panels
from graftwork_adapters.canonical_linear import (
    AddedTerm,
    Circulant,
    DenseDelta,
    Kronecker,
    SharedBases,
    SharedLowRank,
    SparseDelta,
    SpectralDelta,
)
from graftwork_adapters.shared_tensors import SharedTensors, share
from torch import Tensor
from torch.nn import functional

from graftwork_server.kernels.arena import in_one_piece
from graftwork_server.kernels.segments import Segments
from graftwork_server.kernels.slot_table import SlotTable
from graftwork_server.kernels.sparse_bundles import pack_bundles

_DENSE, _KRONECKER, _CIRCULANT, _SPARSE = range(1, 5)
_SHARED_LOW_RANK, _SHARED_BASES, _SPECTRAL = range(5, 8)
_WIDEST = 16  # lanes; inner dimensions are padded to a multiple


@dataclass(frozen=True, slots=True)
class KernelTerm:
    """An added term in kernel layout."""

    kind: int
    parameters: Tensor  # int64: addresses and sizes, the fields of the kind's struct
    data: Tensor  # uint8: what is read for each row
    common: tuple[Tensor, ...] = ()  # what else `parameters` points to, common to many terms
    shared: SharedTensors | None = None  # what `common` was derived from

    def tensors(self) -> list[Tensor]:
        return [self.parameters, self.data, *self.common]


class TermTable(SlotTable[KernelTerm]):
    """The added terms of one linear module by adapter slot."""

    def __init__(self, max_slots: int) -> None:
        super().__init__(max_slots, 4)

    def place(self, slot: int, term: KernelTerm) -> None:
        parameters, data = term.parameters.data_ptr(), term.data.data_ptr()
        self.set(slot, term, (term.kind, parameters, data, term.data.nbytes))


def add_terms(y: Tensor, x: Tensor, table: TermTable, segments: Segments) -> None:
    """Adds each row's term to y, in place; rows of slots without one stay as they are.

    y: (rows, out_features), x: (rows, in_features), float32, rows may be strided

    Raises RuntimeError where shapes or dtypes do not fit.
    """
    torch.ops.graftwork.add_terms.default(y, x, table.addresses, segments.run_table)


def pack_kernel_term(term: AddedTerm, in_features: int, dtype: torch.dtype) -> KernelTerm:
    """dtype: float32 or bfloat16, of what may be rounded."""
    packed: KernelTerm
    match term:
        case DenseDelta():
            packed = _kernel_term(_DENSE, [to_panels(term.delta.float())], *term.delta.T.shape)
        case Kronecker():
            packed = _pack_kronecker(term)
        case Circulant():
            packed = _pack_circulant(term, dtype)
        case SparseDelta():
            packed = _pack_sparse(term, dtype)
        case SharedLowRank():
            packed = _pack_shared_low_rank(term, in_features, dtype)
        case SharedBases():
            packed = _pack_shared_bases(term, dtype)
        case SpectralDelta():
            packed = _pack_spectral(term)
    return packed


def _kernel_term(
    kind: int,
    parts: list[Tensor],
    *sizes: int,
    common: tuple[Tensor, ...] = (),
    shared: SharedTensors | None = None,
) -> KernelTerm:
    """The kind's struct has the addresses of `common`, of `parts`, and the sizes, in this order."""
    data, addresses = in_one_piece(parts)
    addresses = [*(tensor.data_ptr() for tensor in common), *addresses]
    return KernelTerm(kind, torch.tensor([*addresses, *sizes]), data, common, shared)


def _padded(matrix: Tensor) -> Tensor:
    return functional.pad(matrix, (0, -matrix.shape[-1] % _WIDEST))


def _pack_kronecker(term: Kronecker) -> KernelTerm:
    (a, c), (b, d) = term.left.shape, term.right.shape
    right_first = c * b * d + a * b * c <= a * c * d + a * b * d  # multiplications a row
    parts = [term.left.float(), _padded(term.right.float().T)]
    return _kernel_term(_KRONECKER, parts, a, c, b, d, int(right_first))


def _pack_circulant(term: Circulant, dtype: torch.dtype) -> KernelTerm:
    out_blocks, in_blocks, size = term.kernels.shape
    spectra = torch.fft.rfft(term.kernels.float()).conj()
    planes = _padded(torch.stack([spectra.real, spectra.imag], dim=2)).to(dtype)
    sizes = in_blocks, out_blocks, size, spectra.shape[-1], int(dtype == torch.bfloat16)
    return _kernel_term(_CIRCULANT, [planes], *sizes, common=_transforms(size))


@lru_cache(maxsize=16)
def _transforms(size: int) -> tuple[Tensor, Tensor]:
    """The real Fourier transform of `size` values and its inverse, as matrices: (size, 2 * padded
    frequencies), the real parts and then the imaginary ones, and (as many, padded size)."""
    frequencies = size // 2 + 1
    step = torch.arange(size).unsqueeze(1) * torch.arange(frequencies) % size
    angle = step.double() * (2 * pi / size)
    forward = torch.cat([_padded(angle.cos()), _padded(-angle.sin())], dim=1)
    weight = torch.full((frequencies,), 2.0 / size, dtype=torch.float64)
    weight[0] = 1.0 / size
    if size % 2 == 0:
        weight[-1] = 1.0 / size
    inverse = torch.cat([_padded(angle.cos() * weight), _padded(-angle.sin() * weight)], dim=1)
    return forward.float().contiguous(), _padded(inverse.T.float()).contiguous()


def _pack_sparse(term: SparseDelta, dtype: torch.dtype) -> KernelTerm:
    bundles = pack_bundles(term)
    values = bundles.values.to(dtype)
    parts = [values, bundles.gaps, bundles.lengths, bundles.outputs]
    sizes = bundles.lengths.shape[0], term.in_features, int(dtype == torch.bfloat16)
    return _kernel_term(_SPARSE, parts, *sizes)


def _pack_shared_low_rank(term: SharedLowRank, in_features: int, dtype: torch.dtype) -> KernelTerm:
    def panels(shared: SharedTensors) -> tuple[Tensor, Tensor]:
        b = functional.pad(shared.b, (0, -shared.b.shape[1] % PANEL))
        return to_panels(shared.a.to(dtype)), to_panels(b.to(dtype))

    rank, a_features = term.shared.a.shape
    sizes = rank, in_features, term.b_scale.shape[0], a_features, int(dtype == torch.bfloat16)
    return _kernel_term(
        _SHARED_LOW_RANK,
        [term.a_scale.float(), term.b_scale.float()],
        *sizes,
        common=term.shared.derived(f"panels of {dtype}", panels),
        shared=term.shared,
    )


def _pack_shared_bases(term: SharedBases, dtype: torch.dtype) -> KernelTerm:
    is_wide = term.in_features <= term.out_features
    rank, num_bases = term.row_scale.shape

    def padded(ranks: Tensor) -> Tensor:
        return functional.pad(ranks.to(dtype), (0, -rank % PANEL))

    def by_base(shared: SharedTensors) -> Tensor:
        """B by the base and rank of the row of L that each of its columns meets: (most, num_bases,
        padded rank)."""
        columns = shared.b[:, :num_bases].reshape(-1, rank, num_bases)
        return padded(columns.transpose(1, 2))

    def wide(shared: SharedTensors) -> tuple[Tensor, Tensor]:
        return to_panels(shared.a.to(dtype)), to_panels(by_base(shared).flatten(1))

    def tall(shared: SharedTensors) -> tuple[Tensor, Tensor]:
        panels = by_base(shared).reshape(shared.b.shape[0], -1, PANEL).transpose(0, 1)
        return panels.contiguous(), to_panels(padded(shared.a.T))

    name = f"{num_bases} {'wide' if is_wide else 'tall'} bases of {dtype}"
    row_scale = functional.pad(term.row_scale.float().T, (0, -rank % PANEL))
    first_features = term.shared.a.shape[1] if is_wide else term.shared.b.shape[0]
    sizes = num_bases, row_scale.shape[1], term.in_features, term.out_features, first_features
    return _kernel_term(
        _SHARED_BASES,
        [row_scale, term.column_scale.float()],
        *sizes,
        int(dtype == torch.bfloat16),
        common=term.shared.derived(name, wide if is_wide else tall),
        shared=term.shared,
    )


def _pack_spectral(term: SpectralDelta) -> KernelTerm:
    """Values stay float32: there are few."""
    order = (term.rows * term.in_features + term.columns).argsort()
    places = share(term.rows[order], term.columns[order])

    def pairs(shared: SharedTensors) -> tuple[Tensor, ...]:
        return (torch.stack([shared.a, shared.b], dim=1).int().contiguous(),)

    size = term.in_features * term.out_features
    roots = _roots_of_unity(term.in_features), _roots_of_unity(term.out_features)
    return _kernel_term(
        _SPECTRAL,
        [_padded(term.values[order].double() / size).float()],
        order.shape[0],
        term.in_features,
        term.out_features,
        common=(*places.derived("pairs", pairs), *roots),
        shared=places,
    )


@lru_cache(maxsize=16)
def _roots_of_unity(size: int) -> Tensor:
    """(size, 2): the cosine and sine of 2 pi k / size."""
    angle = torch.arange(size).double() * (2 * pi / size)
    return torch.stack([angle.cos(), angle.sin()], dim=1).float()
