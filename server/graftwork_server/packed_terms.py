"""What adapters add to the output of a linear module beyond the low-rank pair, as a step computes
it: prepared once, off the engine's thread, then a few torch operations for each run of rows, in
float32.
"""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass

import torch
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
from graftwork_adapters.shared_tensors import SharedTensors
from torch import Tensor

from graftwork_server.spans import Runs, Span, by_row, gather, split


@dataclass(frozen=True, slots=True)
class PackedSharedLowRank:
    shared: SharedTensors  # on the module's device
    a_scale: Tensor  # (rank,)
    b_scale: Tensor  # (out_features,)

    def tensors(self) -> list[Tensor]:
        return [self.shared.a, self.shared.b, self.a_scale, self.b_scale]

    def apply(self, x: Tensor) -> Tensor:
        return _shared_low_rank(self.shared, x, self.a_scale, self.b_scale)


def _shared_low_rank(shared: SharedTensors, x: Tensor, a_scale: Tensor, b_scale: Tensor) -> Tensor:
    """x: (rows, in_features); the scales: of all rows, or one for each."""
    a, b = shared.a[:, : x.shape[1]], shared.b[: b_scale.shape[-1]]
    added: Tensor = (((x.float() @ a.T) * a_scale) @ b.T) * b_scale
    return added


@dataclass(frozen=True, slots=True)
class PackedSharedBases:
    shared: SharedTensors  # on the module's device
    row_scale: Tensor  # (rank, num_bases)
    column_scale: Tensor  # (num_bases, least)
    out_features: int
    in_features: int

    def tensors(self) -> list[Tensor]:
        return [self.shared.a, self.shared.b, self.row_scale, self.column_scale]

    def apply(self, x: Tensor) -> Tensor:
        rank, num_bases = self.row_scale.shape
        most = max(self.out_features, self.in_features)
        a = self.shared.a[:, : self.column_scale.shape[1]]  # (rank, least)
        b = self.shared.b[:most, :num_bases].flatten(1)  # (most, num_bases * rank)
        x = x.float()
        if self.in_features <= self.out_features:
            hidden = (x.unsqueeze(1) * self.column_scale) @ a.T  # (rows, num_bases, rank)
            hidden = (hidden.transpose(1, 2) * self.row_scale).reshape(x.shape[0], -1)
            return hidden @ b.T
        hidden = (x @ b).view(-1, rank, num_bases) * self.row_scale
        return ((hidden.transpose(1, 2) @ a) * self.column_scale).sum(1)


@dataclass(frozen=True, slots=True)
class PackedKronecker:
    left: Tensor  # (a, c)
    right: Tensor  # (b, d)
    right_first: bool

    @classmethod
    def pack(cls, term: Kronecker, device: torch.device) -> "PackedKronecker":
        (a, c), (b, d) = term.left.shape, term.right.shape
        right_first = c * b * d + a * b * c <= a * c * d + a * b * d  # multiplications a row
        return cls(term.left.to(device), term.right.to(device), right_first)

    def tensors(self) -> list[Tensor]:
        return [self.left, self.right]

    def apply(self, x: Tensor) -> Tensor:
        """(rows, c * d) to (rows, a * b)."""
        grid = x.float().reshape(-1, self.left.shape[1], self.right.shape[1])
        if self.right_first:
            return torch.matmul(self.left, grid @ self.right.T).reshape(x.shape[0], -1)
        return (torch.matmul(self.left, grid) @ self.right.T).reshape(x.shape[0], -1)


@dataclass(frozen=True, slots=True)
class PackedCirculant:
    """By the convolution theorem: at each frequency, one small matrix over the blocks."""

    spectra: Tensor  # (size // 2 + 1, input blocks, output blocks) complex64
    size: int

    @classmethod
    def pack(cls, term: Circulant, device: torch.device) -> "PackedCirculant":
        spectra = torch.fft.rfft(term.kernels).conj().permute(2, 1, 0)
        spectra = spectra.resolve_conj().contiguous()
        return cls(spectra.to(device), term.kernels.shape[-1])

    def tensors(self) -> list[Tensor]:
        return [self.spectra]

    def apply(self, x: Tensor) -> Tensor:
        blocks = torch.fft.rfft(x.float().reshape(x.shape[0], -1, self.size))
        out = torch.bmm(blocks.permute(2, 0, 1), self.spectra).permute(1, 2, 0)
        added: Tensor = torch.fft.irfft(out, n=self.size).reshape(x.shape[0], -1)
        return added


@dataclass(frozen=True, slots=True)
class PackedSparse:
    matrix: Tensor  # (out_features, in_features), compressed rows

    @classmethod
    def pack(cls, term: SparseDelta, device: torch.device) -> "PackedSparse":
        counts = torch.bincount(term.rows, minlength=term.out_features)
        offsets = torch.zeros(term.out_features + 1, dtype=torch.int32)
        offsets[1:] = counts.cumsum(0)
        return cls(
            _compressed_rows(
                offsets.to(device),
                term.columns.to(device, torch.int32),
                term.values.to(device),
                (term.out_features, term.in_features),
            )
        )

    def tensors(self) -> list[Tensor]:
        return [self.matrix.crow_indices(), self.matrix.col_indices(), self.matrix.values()]

    def apply(self, x: Tensor) -> Tensor:
        added: Tensor = (self.matrix @ x.float().T).T
        return added


def _compressed_rows(
    offsets: Tensor, columns: Tensor, values: Tensor, shape: tuple[int, int]
) -> Tensor:
    return torch.sparse_csr_tensor(offsets, columns, values, shape, check_invariants=True)


def _hear_remarks_on_sparse_tensors() -> None:
    """Torch remarks once in a process that compressed rows are a beta feature; here, while nothing
    else runs, for `catch_warnings` is not safe among threads."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        empty = torch.zeros(0, dtype=torch.int32)
        _compressed_rows(torch.zeros(2, dtype=torch.int32), empty, torch.zeros(0), (1, 1))


_hear_remarks_on_sparse_tensors()


@dataclass(frozen=True, slots=True)
class PackedSpectral:
    """Two one-dimensional Fourier transforms with a sparse matrix between them, instead of the
    two-dimensional transform of that matrix."""

    rows: Tensor
    columns: Tensor
    values: Tensor
    out_features: int

    def tensors(self) -> list[Tensor]:
        return [self.rows, self.columns, self.values]

    def apply(self, x: Tensor) -> Tensor:
        weighted = torch.fft.ifft(x.float())[:, self.columns] * self.values
        spectrum = weighted.new_zeros(x.shape[0], self.out_features)
        spectrum.index_add_(1, self.rows, weighted)
        added: Tensor = torch.fft.ifft(spectrum).real
        return added


@dataclass(frozen=True, slots=True)
class PackedDense:
    delta: Tensor  # (out_features, in_features)

    def tensors(self) -> list[Tensor]:
        return [self.delta]

    def apply(self, x: Tensor) -> Tensor:
        return x.float() @ self.delta.T


PackedTerm = (
    PackedSharedLowRank
    | PackedSharedBases
    | PackedKronecker
    | PackedCirculant
    | PackedSparse
    | PackedSpectral
    | PackedDense
)


def pack_term(term: AddedTerm, device: torch.device) -> PackedTerm:
    packed: PackedTerm
    match term:
        case SharedLowRank():
            scales = term.a_scale.to(device), term.b_scale.to(device)
            packed = PackedSharedLowRank(term.shared.to(device), *scales)
        case SharedBases():
            scales = term.row_scale.to(device), term.column_scale.to(device)
            shape = term.out_features, term.in_features
            packed = PackedSharedBases(term.shared.to(device), *scales, *shape)
        case Kronecker():
            packed = PackedKronecker.pack(term, device)
        case Circulant():
            packed = PackedCirculant.pack(term, device)
        case SparseDelta():
            packed = PackedSparse.pack(term, device)
        case SpectralDelta():
            places = term.rows.to(device), term.columns.to(device)
            packed = PackedSpectral(*places, term.values.to(device), term.out_features)
        case DenseDelta():
            packed = PackedDense(term.delta.to(device))
    return packed


def add_terms(y: Tensor, x: Tensor, terms: Mapping[int, PackedTerm], runs: Runs) -> None:
    """Adds each run's term to y, in place; runs of slots without one stay as they are.

    Runs that share their projections go through them together.
    y: (rows, out_features), x: (rows, in_features)
    """
    sharing: dict[SharedTensors, list[tuple[PackedSharedLowRank, Span]]] = {}
    for slot, start, stop in runs:
        term = terms.get(slot)
        if term is None:
            continue
        if isinstance(term, PackedSharedLowRank):
            sharing.setdefault(term.shared, []).append((term, (start, stop)))
        else:
            y[start:stop] += term.apply(x[start:stop])
    for shared, uses in sharing.items():
        spans = [span for _, span in uses]
        a_scale = by_row([term.a_scale for term, _ in uses], spans)
        b_scale = by_row([term.b_scale for term, _ in uses], spans)
        added = _shared_low_rank(shared, gather(x, spans), a_scale, b_scale)
        for (start, stop), part in split(added, spans):
            y[start:stop] += part
