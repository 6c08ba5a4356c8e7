"""Primitives of one linear module beyond the low-rank pair: what is done to its input, what is
added to its output, and what is done to the output as a whole.

All tensors are float32 (indices int64), on the CPU, contiguous. x: (rows, in_features),
y: (rows, out_features).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork_adapters.shared_tensors import SharedTensors

# --- What the module's input becomes, before the base and every added term see it.


@dataclass(frozen=True, slots=True)
class InputScale:
    """`x' = scale * x`."""

    scale: Tensor  # (in_features,)

    def tensors(self) -> list[Tensor]:
        return [self.scale]

    def has_effect(self) -> bool:
        return bool((self.scale != 1).any())


@dataclass(frozen=True, slots=True)
class BlockRotation:
    """The features in some order, cut into blocks, each block times its matrix, and back in order:
    `x'[order].block(i) = x[order].block(i) @ matrices[i]`."""

    matrices: Tensor  # (num_blocks, size, size), or (1, size, size): the same for all blocks
    order: Tensor | None = None  # (in_features,) a permutation; None: as they are

    def tensors(self) -> list[Tensor]:
        return [self.matrices] if self.order is None else [self.matrices, self.order]

    def has_effect(self) -> bool:
        return bool((self.matrices != torch.eye(self.matrices.shape[-1])).any())


@dataclass(frozen=True, slots=True)
class BlockRotations:
    """One block rotation after another."""

    rotations: tuple[BlockRotation, ...]

    def tensors(self) -> list[Tensor]:
        return [tensor for rotation in self.rotations for tensor in rotation.tensors()]

    def has_effect(self) -> bool:
        return any(rotation.has_effect() for rotation in self.rotations)


InputTransform = InputScale | BlockRotations

# --- What is added to the module's output, inside any output scale.


@dataclass(frozen=True, slots=True)
class SharedLowRank:
    """`y += b_scale * (B (a_scale * (A x)))`, A and B cut out of larger shared ones: A = a[:, :in],
    B = b[:out]."""

    shared: SharedTensors  # a: (rank, at least in_features), b: (at least out_features, rank)
    a_scale: Tensor  # (rank,)
    b_scale: Tensor  # (out_features,)

    def tensors(self) -> list[Tensor]:
        return [self.shared.a, self.shared.b, self.a_scale, self.b_scale]

    def has_effect(self) -> bool:
        return bool((self.a_scale != 0).any()) and bool((self.b_scale != 0).any())


@dataclass(frozen=True, slots=True)
class SharedBases:
    """`y += x D^T`, D of full rank, the sum of many scaled random products, as in RandLoRA.

    With least and most the smaller and the larger of the module's dimensions, out of larger shared
    tensors: A = a[:, :least] and B = b[:most, :num_bases], the latter as a matrix (most,
    num_bases * rank). Each of A's rows comes once for each base: L, of shape (rank * num_bases,
    least), is `row_scale[r, n] * A[r] * column_scale[n]` at row r * num_bases + n. D is B L where
    the inputs are not more than the outputs, else its counterpart L^T B^T.
    """

    shared: SharedTensors  # a: (rank, at least least), b: (at least most, bases, rank)
    row_scale: Tensor  # (rank, num_bases), with every scale folded in
    column_scale: Tensor  # (num_bases, least)
    out_features: int
    in_features: int

    def tensors(self) -> list[Tensor]:
        return [self.shared.a, self.shared.b, self.row_scale, self.column_scale]

    def has_effect(self) -> bool:
        return bool((self.row_scale != 0).any()) and bool((self.column_scale != 0).any())


@dataclass(frozen=True, slots=True)
class Kronecker:
    """`y += x kron(left, right)^T`, with every scale folded into left."""

    left: Tensor  # (a, c)
    right: Tensor  # (b, d), where out_features = a * b and in_features = c * d

    def tensors(self) -> list[Tensor]:
        return [self.left, self.right]

    def has_effect(self) -> bool:
        return bool((self.left != 0).any()) and bool((self.right != 0).any())


@dataclass(frozen=True, slots=True)
class Circulant:
    """`y.block(m)[i] += sum over n, j of kernels[m, n, (j - i) mod size] * x.block(n)[j]`, with
    every scale folded in."""

    kernels: Tensor  # (out_features / size, in_features / size, size)

    def tensors(self) -> list[Tensor]:
        return [self.kernels]

    def has_effect(self) -> bool:
        return bool((self.kernels != 0).any())


@dataclass(frozen=True, slots=True)
class SparseDelta:
    """`y += x D^T`, where `D[rows[k], columns[k]] = values[k]`, and zero elsewhere."""

    rows: Tensor  # (num_values,), ascending; no position comes twice
    columns: Tensor  # (num_values,), ascending within a row
    values: Tensor  # (num_values,)
    out_features: int
    in_features: int

    def tensors(self) -> list[Tensor]:
        return [self.rows, self.columns, self.values]

    def has_effect(self) -> bool:
        return bool((self.values != 0).any())


@dataclass(frozen=True, slots=True)
class SpectralDelta:
    """`y += x D^T`, where D is the real part of the inverse 2D Fourier transform of a matrix
    (out_features, in_features) that holds `values[k]` at `(rows[k], columns[k])`."""

    rows: Tensor  # (num_values,); no position comes twice
    columns: Tensor  # (num_values,)
    values: Tensor  # (num_values,)
    out_features: int
    in_features: int

    def tensors(self) -> list[Tensor]:
        return [self.rows, self.columns, self.values]

    def has_effect(self) -> bool:
        return bool((self.values != 0).any())


@dataclass(frozen=True, slots=True)
class DenseDelta:
    """`y += x D^T`: exact for anything, and as large as the module's weight."""

    delta: Tensor  # (out_features, in_features)

    def tensors(self) -> list[Tensor]:
        return [self.delta]

    def has_effect(self) -> bool:
        return bool((self.delta != 0).any())


AddedTerm = (
    SharedLowRank | SharedBases | Kronecker | Circulant | SparseDelta | SpectralDelta | DenseDelta
)

# --- What the whole output becomes, with all biases in it.


@dataclass(frozen=True, slots=True)
class BiasedScale:
    """`y' = scale * y`, the bias inside, as in IA3."""

    scale: Tensor  # (out_features,)

    def tensors(self) -> list[Tensor]:
        return [self.scale]

    def has_effect(self) -> bool:
        return bool((self.scale != 1).any())


@dataclass(frozen=True, slots=True)
class PairRotation:
    """`y' = cosine * y + sine * swapped`, where swapped has the halves of each group exchanged and
    the new first half negated."""

    cosine: Tensor  # (out_features,), times the pair's scale
    sine: Tensor  # (out_features,), the same
    group_size: int  # even; divides out_features

    def tensors(self) -> list[Tensor]:
        return [self.cosine, self.sine]

    def has_effect(self) -> bool:
        return bool((self.cosine != 1).any()) or bool((self.sine != 0).any())


OutputTransform = BiasedScale | PairRotation
