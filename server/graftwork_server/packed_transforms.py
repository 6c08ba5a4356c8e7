"""What adapters do to the whole input or output of a linear module, as a step computes it: prepared
once, off the engine's thread, then a few torch operations for each run of rows, in float32.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from graftwork_adapters.canonical_linear import (
    BlockRotation,
    BlockRotations,
    InputScale,
    InputTransform,
    PairRotation,
)
from torch import Tensor

from graftwork_server.spans import Runs, Span, by_row, gather, split


@dataclass(frozen=True, slots=True)
class PackedScale:
    """Scales features: of an input or of a whole output."""

    scale: Tensor

    kind: ClassVar[int] = 0  # scales and pair rotations of one kind can be joined row by row

    def of(self, tensors: Sequence[Tensor]) -> "PackedScale":
        """The same with other tensors, in the order of `tensors`; also one for each row."""
        (scale,) = tensors
        return PackedScale(scale)

    def tensors(self) -> list[Tensor]:
        return [self.scale]

    def apply(self, x: Tensor) -> Tensor:
        return x * self.scale


@dataclass(frozen=True, slots=True)
class PackedBlockRotations:
    """Each: matrices (num_blocks or 1, size, size), and the order and its inverse, if any."""

    rotations: tuple[tuple[Tensor, Tensor | None, Tensor | None], ...]

    @classmethod
    def pack(cls, rotations: BlockRotations, device: torch.device) -> "PackedBlockRotations":
        def packed(rotation: BlockRotation) -> tuple[Tensor, Tensor | None, Tensor | None]:
            matrices = rotation.matrices.to(device)
            if rotation.order is None:
                return matrices, None, None
            return matrices, rotation.order.to(device), rotation.order.argsort().to(device)

        return cls(tuple(packed(rotation) for rotation in rotations.rotations))

    def tensors(self) -> list[Tensor]:
        return [tensor for parts in self.rotations for tensor in parts if tensor is not None]

    def apply(self, x: Tensor) -> Tensor:
        """(rows, in_features) to the same."""
        x = x.float()
        for matrices, order, inverse in self.rotations:
            if order is not None:
                x = x[:, order]
            x = _rotate_blocks(x, matrices)
            if inverse is not None:
                x = x[:, inverse]
        return x


def _rotate_blocks(x: Tensor, matrices: Tensor) -> Tensor:
    num_blocks, size, _ = matrices.shape
    if num_blocks == 1:
        return (x.reshape(-1, size) @ matrices[0]).view(x.shape)
    blocks = x.reshape(-1, num_blocks, size).transpose(0, 1)
    return torch.bmm(blocks, matrices).transpose(0, 1).reshape(x.shape)


@dataclass(frozen=True, slots=True)
class PackedPairRotation:
    cosine: Tensor
    sine: Tensor  # negated in the first half of each group
    half: int

    @classmethod
    def pack(cls, rotation: PairRotation, device: torch.device) -> "PackedPairRotation":
        half = rotation.group_size // 2
        sine = rotation.sine.view(-1, 2, half) * torch.tensor([[-1.0], [1.0]])
        return cls(rotation.cosine.to(device), sine.reshape(-1).to(device), half)

    @property
    def kind(self) -> int:
        return self.half

    def of(self, tensors: Sequence[Tensor]) -> "PackedPairRotation":
        cosine, sine = tensors
        return PackedPairRotation(cosine, sine, self.half)

    def tensors(self) -> list[Tensor]:
        return [self.cosine, self.sine]

    def apply(self, y: Tensor) -> Tensor:
        """(rows, out_features) to the same."""
        swapped = y.reshape(y.shape[0], -1, 2, self.half).flip(2).view(y.shape)
        return torch.addcmul(y * self.cosine, swapped, self.sine)


PackedInput = PackedScale | PackedBlockRotations


def pack_input(transform: InputTransform, device: torch.device) -> PackedInput:
    match transform:
        case InputScale():
            return PackedScale(transform.scale.to(device))
        case BlockRotations():
            return PackedBlockRotations.pack(transform, device)


def transform_rows(
    x: Tensor, transforms: Mapping[int, PackedInput | PackedPairRotation], runs: Runs
) -> Tensor:
    """x (rows, features) with the rows of slots that have a transform changed; x itself where no
    run has one, else a copy.

    Runs whose transforms work element by element in one way go through them together.
    """
    changed: Tensor | None = None
    elementwise: dict[int, list[tuple[PackedScale | PackedPairRotation, Span]]] = {}
    for slot, start, stop in runs:
        transform = transforms.get(slot)
        if transform is None:
            continue
        if changed is None:
            changed = x.clone()
        if isinstance(transform, PackedBlockRotations):
            changed[start:stop] = transform.apply(x[start:stop])
        else:
            elementwise.setdefault(transform.kind, []).append((transform, (start, stop)))
    if changed is None:
        return x
    for uses in elementwise.values():
        spans = [span for _, span in uses]
        columns = zip(*(transform.tensors() for transform, _ in uses), strict=True)
        joined = uses[0][0].of([by_row(vectors, spans) for vectors in columns])
        for (start, stop), part in split(joined.apply(gather(x, spans)), spans):
            changed[start:stop] = part
    return changed
