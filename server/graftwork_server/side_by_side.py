"""Linear modules with the same input, such as the projections of an attention, and the low-rank
terms of their adapters, in one call."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from graftwork_server.kernels.int8_linear import int8_linears
from graftwork_server.kernels.low_rank import LowRankTable
from graftwork_server.kernels.segments import Segments
from graftwork_server.quantization.int8 import Int8Linear
from graftwork_server.step_segments import NO_SEGMENTS


class Grafted(nn.Module):
    """A linear module of the base with what adapters do around it."""

    base: nn.Module

    def shares_input(self) -> bool:
        """Whether, in the step in progress, the base's module sees its input as it is."""
        raise NotImplementedError

    def low_rank(self) -> tuple[LowRankTable, Segments] | None:
        """The pairs and the rows that they are for, if the step in progress has any for this
        module."""
        raise NotImplementedError

    def finish(self, x: Tensor, y: Tensor) -> Tensor:
        """Does what else the adapters do to the output y of the base's module, once low-rank terms
        are added; in place or not.

        x: (..., in_features); y: (..., out_features)
        """
        raise NotImplementedError


def multiply_side_by_side(x: Tensor, modules: Sequence[nn.Module]) -> list[Tensor]:
    """What each of `modules` makes of x, bit for bit.

    x: (..., in_features) -> one (..., out_features) each
    """
    linears = [linear for linear in map(_plain_linear, modules) if linear is not None]
    if len(linears) < len(modules) or torch.is_grad_enabled():
        return [module(x) for module in modules]
    low_ranks, segments = _low_ranks(modules)
    ys = int8_linears(
        x.reshape(-1, x.shape[-1]).contiguous(),
        [linear.codes for linear in linears],
        [linear.scales for linear in linears],
        [linear.bias for linear in linears],
        [linear.out_features for linear in linears],
        low_ranks=low_ranks,
        segments=segments,
    )
    shaped = [y.view(*x.shape[:-1], y.shape[-1]) for y in ys]
    return [
        module.finish(x, y) if isinstance(module, Grafted) else y
        for module, y in zip(modules, shaped, strict=True)
    ]


def _low_ranks(
    modules: Sequence[nn.Module],
) -> tuple[list[tuple[int, LowRankTable]], Segments]:
    """The low-rank pairs of the step in progress, with the places of their modules."""
    tables, segments = [], NO_SEGMENTS
    for place, module in enumerate(modules):
        found = module.low_rank() if isinstance(module, Grafted) else None
        if found is not None:
            table, segments = found
            tables.append((place, table))
    return tables, segments


def _plain_linear(module: nn.Module) -> Int8Linear | None:
    """The linear module behind it, if calling that is a product and nothing else."""
    if isinstance(module, Grafted):
        if not module.shares_input():
            return None
        module = module.base
    # A hook is an adapter's that edits this module's output.
    if isinstance(module, Int8Linear) and not module._forward_hooks:  # noqa: SLF001
        return module
    return None
