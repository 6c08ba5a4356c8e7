"""Tensors laid end to end in one piece of memory, so that a kernel can ask for all of it ahead."""

from collections.abc import Sequence

import torch
from torch import Tensor

_LINE = 64  # bytes


def in_one_piece(tensors: Sequence[Tensor]) -> tuple[Tensor, list[int]]:
    """A uint8 tensor with the bytes of all, and the address of each in it, on a line of its own."""
    offsets, end = [], 0
    for tensor in tensors:
        offsets.append(end)
        end += -(-tensor.nbytes // _LINE) * _LINE
    arena = torch.zeros(end, dtype=torch.uint8)
    for tensor, offset in zip(tensors, offsets, strict=True):
        piece = arena[offset : offset + tensor.nbytes].view(tensor.dtype)
        piece.copy_(tensor.flatten())
    return arena, [arena.data_ptr() + offset for offset in offsets]
