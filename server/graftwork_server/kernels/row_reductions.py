"""Reductions of rows of logits, each in one order whatever the rows beside it."""

import torch
from torch import Tensor

from graftwork_server.kernels.build import kernels_loaded


def row_peaks(x: Tensor) -> tuple[Tensor, Tensor]:
    """The largest value of each row and the first place where it stands; of a row with NaNs, the
    first of them.

    x: (rows, columns) float32, with at least one column
    returns: (rows,) float32 and (rows,) int64
    """
    if x.device.type == "cpu" and kernels_loaded():
        values, places = torch.ops.graftwork.row_peaks.default(x.contiguous())
        return values, places
    return row_peaks_reference(x)


def row_peaks_reference(x: Tensor) -> tuple[Tensor, Tensor]:
    """The same in plain torch, on any device."""
    values, places = x.max(dim=-1)
    return values, places


def row_logsumexp(x: Tensor) -> Tensor:
    """`log(sum(exp(x)))` of each row, without overflow.

    x: (rows, columns) float32, with at least one column
    returns: (rows,) float32
    """
    if x.device.type == "cpu" and kernels_loaded():
        y: Tensor = torch.ops.graftwork.row_logsumexp.default(x.contiguous())
        return y
    return row_logsumexp_reference(x)


def row_logsumexp_reference(x: Tensor) -> Tensor:
    """The same in plain torch, on any device."""
    return x.logsumexp(dim=-1)
