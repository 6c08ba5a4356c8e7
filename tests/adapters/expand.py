"""What each primitive of canonical_linear.py means, as a plain matrix or loop."""

import torch
from graftwork_adapters.canonical_linear import (
    AddedTerm,
    BiasedScale,
    BlockRotations,
    Circulant,
    DenseDelta,
    InputScale,
    InputTransform,
    Kronecker,
    OutputTransform,
    PairRotation,
    SharedBases,
    SharedLowRank,
    SparseDelta,
    SpectralDelta,
)
from torch import Tensor


def input_matrix(transform: InputTransform, in_features: int) -> Tensor:
    """M, where x' = x M."""
    if isinstance(transform, InputScale):
        return torch.diag(transform.scale)
    assert isinstance(transform, BlockRotations)
    matrix = torch.eye(in_features)
    for rotation in transform.rotations:
        size = rotation.matrices.shape[-1]
        blocks = rotation.matrices.expand(in_features // size, -1, -1)
        order = torch.arange(in_features) if rotation.order is None else rotation.order
        in_order = torch.eye(in_features)[order]  # x[order] = in_order x
        matrix = matrix @ in_order.T @ torch.block_diag(*blocks) @ in_order
    return matrix


def delta(term: AddedTerm, out_features: int, in_features: int) -> Tensor:
    """D, where y += x D^T: (out_features, in_features)."""
    match term:
        case SharedLowRank():
            a = term.a_scale.unsqueeze(1) * term.shared.a[:, :in_features]
            return (term.b_scale.unsqueeze(1) * term.shared.b[:out_features]) @ a
        case SharedBases():
            return _shared_bases(term, out_features, in_features)
        case Kronecker():
            return torch.kron(term.left, term.right)
        case Circulant():
            return _circulant(term, out_features, in_features)
        case SparseDelta():
            dense = torch.zeros(out_features, in_features)
            dense[term.rows, term.columns] = term.values
            return dense
        case SpectralDelta():
            spectrum = torch.zeros(out_features, in_features)
            spectrum[term.rows, term.columns] = term.values
            return torch.fft.ifft2(spectrum).real
        case DenseDelta():
            return term.delta


def _shared_bases(term: SharedBases, out_features: int, in_features: int) -> Tensor:
    least, most = min(out_features, in_features), max(out_features, in_features)
    rank, num_bases = term.row_scale.shape
    rows = [
        term.row_scale[r, n] * term.shared.a[r, :least] * term.column_scale[n]
        for r in range(rank)
        for n in range(num_bases)
    ]
    product = term.shared.b[:most, :num_bases].flatten(1) @ torch.stack(rows)  # (most, least)
    return product if in_features <= out_features else product.T


def _circulant(term: Circulant, out_features: int, in_features: int) -> Tensor:
    size = term.kernels.shape[-1]
    dense = torch.zeros(out_features, in_features)
    for row in range(out_features):
        for column in range(in_features):
            kernel = term.kernels[row // size, column // size]
            dense[row, column] = kernel[(column - row) % size]
    return dense


def transform_output(transform: OutputTransform, y: Tensor) -> Tensor:
    if isinstance(transform, BiasedScale):
        return transform.scale * y
    assert isinstance(transform, PairRotation)
    half = transform.group_size // 2
    swapped = torch.empty_like(y)
    for column in range(y.shape[1]):
        if column % transform.group_size < half:
            swapped[:, column] = -y[:, column + half]
        else:
            swapped[:, column] = y[:, column - half]
    return transform.cosine * y + transform.sine * swapped
