"""Low-rank adapters of many slots on CUDA, in Triton: `y[m] += (x[m] A_s^T) B_s^T`.

As in Punica's BGMV and SGMV (arXiv:2310.18547), factors are read where they lie, through a table of
addresses by slot, and no row costs a launch of its own. One pair of kernels serves decoding and
prefill alike: it walks tiles of up to 16 rows of one slot, which in a decode step are single rows.
So a row's sums have one order, whether the rows beside it decode or prefill.

Import it only where triton is installed. The reference is `low_rank.add_low_rank_reference`.
"""

# ruff: noqa: ANN001, ANN202, N803, PLR0917
# Triton compiles the kernels: their arguments are pointers and numbers, constants in capitals.

import torch
import triton
import triton.language as tl
from graftwork_adapters.base_file.panels import PANEL
from torch import Tensor

from graftwork_server.kernels.low_rank import LowRankTable
from graftwork_server.kernels.segments import TILE_ROWS, Segments

_RANK_BLOCK = 16  # the least that tl.dot takes
_IN_BLOCK = 64
_OUT_BLOCK = 64


@triton.jit
def _load_factor(address, offsets, mask, is_bfloat16):  # type: ignore[no-untyped-def]
    """A tile of a factor as float32."""
    if is_bfloat16 != 0:
        narrow = tl.load(address.to(tl.pointer_type(tl.bfloat16)) + offsets, mask, other=0.0)
        tile = narrow.to(tl.float32)
    else:
        tile = tl.load(address.to(tl.pointer_type(tl.float32)) + offsets, mask, other=0.0)
    return tile


@triton.jit  # type: ignore[untyped-decorator]
def _shrink(  # type: ignore[no-untyped-def]
    x,
    hidden,  # (rows, max_rank) float32
    table,  # (max_slots, 4) int64
    tiles,  # (tiles, 3) int32
    x_stride,
    max_rank,
    in_features,
    ROWS: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
    IN_BLOCK: tl.constexpr,
):
    """hidden[m, r] = sum over k of x[m, k] A[r, k]; program: (tile, block of ranks)."""
    tile = tiles + tl.program_id(0) * 3
    entry = table + tl.load(tile).to(tl.int64) * 4
    rows = tl.load(tile + 1) + tl.arange(0, ROWS)
    ranks = tl.program_id(1) * RANK_BLOCK + tl.arange(0, RANK_BLOCK)
    rank = tl.load(entry + 2)
    if tl.program_id(1) * RANK_BLOCK < rank:
        address, is_bfloat16 = tl.load(entry), tl.load(entry + 3)
        in_tile = rows < tl.load(tile + 2)
        total = tl.zeros((ROWS, RANK_BLOCK), dtype=tl.float32)
        for start in range(0, in_features, IN_BLOCK):
            inputs = start + tl.arange(0, IN_BLOCK)
            x_tile = tl.load(
                x + rows[:, None].to(tl.int64) * x_stride + inputs[None, :],
                in_tile[:, None] & (inputs < in_features)[None, :],
                other=0.0,
            )
            a_tile = _load_factor(
                address,
                ranks[None, :] * in_features + inputs[:, None],
                (ranks < rank)[None, :] & (inputs < in_features)[:, None],
                is_bfloat16,
            )
            total = tl.dot(x_tile.to(tl.float32), a_tile, total, input_precision="ieee")
        tl.store(
            hidden + rows[:, None].to(tl.int64) * max_rank + ranks[None, :],
            total,
            in_tile[:, None] & (ranks < rank)[None, :],
        )


@triton.jit  # type: ignore[untyped-decorator]
def _expand(  # type: ignore[no-untyped-def]
    y,
    hidden,
    table,
    tiles,
    y_stride,
    max_rank,
    out_features,
    ROWS: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
    OUT_BLOCK: tl.constexpr,
    PANEL_WIDTH: tl.constexpr,
):
    """y[m, n] += sum over r of hidden[m, r] B[n, r]; program: (tile, block of outputs)."""
    tile = tiles + tl.program_id(0) * 3
    entry = table + tl.load(tile).to(tl.int64) * 4
    rows = tl.load(tile + 1) + tl.arange(0, ROWS)
    rank = tl.load(entry + 2)
    if rank > 0:
        address, is_bfloat16 = tl.load(entry + 1), tl.load(entry + 3)
        in_tile = rows < tl.load(tile + 2)
        outputs = tl.program_id(1) * OUT_BLOCK + tl.arange(0, OUT_BLOCK)
        in_panel = (outputs // PANEL_WIDTH) * rank * PANEL_WIDTH + outputs % PANEL_WIDTH
        total = tl.zeros((ROWS, OUT_BLOCK), dtype=tl.float32)
        for start in range(0, rank, RANK_BLOCK):
            ranks = start + tl.arange(0, RANK_BLOCK)
            h_tile = tl.load(
                hidden + rows[:, None].to(tl.int64) * max_rank + ranks[None, :],
                in_tile[:, None] & (ranks < rank)[None, :],
                other=0.0,
            )
            b_tile = _load_factor(
                address,
                in_panel[None, :] + ranks[:, None] * PANEL_WIDTH,
                (ranks < rank)[:, None] & (outputs < out_features)[None, :],
                is_bfloat16,
            )
            total = tl.dot(h_tile, b_tile, total, input_precision="ieee")
        places = y + rows[:, None].to(tl.int64) * y_stride + outputs[None, :]
        mask = in_tile[:, None] & (outputs < out_features)[None, :]
        before = tl.load(places, mask, other=0.0)
        tl.store(places, (before.to(tl.float32) + total).to(before.dtype), mask)


def add_low_rank_triton(y: Tensor, x: Tensor, table: LowRankTable, segments: Segments) -> None:
    """Adds each row's low-rank term to y, in place; sums are float32, rounded once into y's dtype.

    y: (rows, out_features), x: (rows, in_features): float32, float16 or bfloat16 on one device,
    rows may be strided. Raises ValueError where shapes or strides do not fit.
    """
    expected = (segments.num_rows, table.out_features), (segments.num_rows, table.in_features)
    if (tuple(y.shape), tuple(x.shape)) != expected or y.stride(1) != 1 or x.stride(1) != 1:
        raise ValueError(
            f"y {tuple(y.shape)} and x {tuple(x.shape)} are not {expected[0]} and {expected[1]} "
            "with features side by side"
        )
    max_rank = table.max_rank(segments.slots)
    if max_rank == 0:
        return
    tiles, addresses = segments.tiles(x.device), table.addresses_on(x.device)
    hidden = torch.empty(x.shape[0], max_rank, dtype=torch.float32, device=x.device)
    _shrink[(tiles.shape[0], triton.cdiv(max_rank, _RANK_BLOCK))](
        x,
        hidden,
        addresses,
        tiles,
        x.stride(0),
        max_rank,
        table.in_features,
        ROWS=TILE_ROWS,
        RANK_BLOCK=_RANK_BLOCK,
        IN_BLOCK=_IN_BLOCK,
    )
    _expand[(tiles.shape[0], triton.cdiv(table.out_features, _OUT_BLOCK))](
        y,
        hidden,
        addresses,
        tiles,
        y.stride(0),
        max_rank,
        table.out_features,
        ROWS=TILE_ROWS,
        RANK_BLOCK=_RANK_BLOCK,
        OUT_BLOCK=_OUT_BLOCK,
        PANEL_WIDTH=PANEL,
    )
