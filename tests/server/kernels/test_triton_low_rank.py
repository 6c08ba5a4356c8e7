"""The Triton kernels against the plain reference: on a CUDA device where there is one, else in
Triton's interpreter on the CPU:

    TRITON_INTERPRET=1 python -m pytest tests/server/kernels/test_triton_low_rank.py

The variable must be set before anything imports triton, so no test can set it.
"""

import os

import pytest
import torch
from graftwork_server.kernels.low_rank import (
    LowRankTable,
    PackedLowRank,
    add_low_rank_reference,
)
from graftwork_server.kernels.segments import TILE_ROWS, Segments
from hypothesis import given, settings
from hypothesis import strategies as st

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
pytest.importorskip("triton", reason="triton is not installed")
if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs a CUDA device or TRITON_INTERPRET=1", allow_module_level=True)

from graftwork_server.kernels.triton_low_rank import add_low_rank_triton  # noqa: E402

SLOTS = 5


def make_table(in_features, out_features, ranks, dtypes):
    table = LowRankTable(SLOTS, in_features, out_features)
    for slot, (rank, dtype) in enumerate(zip(ranks, dtypes, strict=True)):
        if rank > 0:
            a, b = torch.randn(rank, in_features), torch.randn(out_features, rank)
            pair = PackedLowRank.pack(a.to(DEVICE, dtype), b.to(DEVICE, dtype))
            table.set(slot, pair)
    return table


FACTOR_DTYPES = st.sampled_from([torch.float32, torch.bfloat16])


@settings(max_examples=40)
@given(
    in_features=st.sampled_from([1, 7, 64, 100]),
    out_features=st.sampled_from([1, 32, 64, 77]),
    ranks=st.lists(st.sampled_from([0, 1, 8, 16, 19, 33]), min_size=SLOTS, max_size=SLOTS),
    dtypes=st.lists(FACTOR_DTYPES, min_size=SLOTS, max_size=SLOTS),
    lengths=st.lists(
        st.tuples(st.integers(-1, SLOTS - 1), st.sampled_from([0, 1, 2, 16, 21])), max_size=8
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
)
def test_agrees_with_the_reference(in_features, out_features, ranks, dtypes, lengths, dtype):
    torch.manual_seed(0)
    table = make_table(in_features, out_features, ranks, dtypes)
    segments = Segments.from_lengths(lengths)
    x = torch.randn(segments.num_rows, in_features).to(DEVICE, dtype)
    before = torch.randn(segments.num_rows, out_features).to(DEVICE, dtype)
    y, expected = before.clone(), before.float()
    add_low_rank_triton(y, x, table, segments)
    add_low_rank_reference(expected, x.float(), table, segments)
    close = {"rtol": 1e-4, "atol": 1e-3} if dtype == torch.float32 else {"rtol": 2e-2, "atol": 2e-2}
    torch.testing.assert_close(y.float(), expected, **close)
    base = segments.slot_of_row() < 0
    assert torch.equal(y[base], before[base])


def test_rows_come_back_in_the_order_they_were_given():
    torch.manual_seed(0)
    table = make_table(48, 40, [4, 8, 16, 19, 0], [torch.float32] * SLOTS)
    slots = [3, -1, 0, 2, 4, 1, 0, 3]
    x = torch.randn(len(slots), 48, device=DEVICE)
    y = torch.zeros(len(slots), 40, device=DEVICE)
    add_low_rank_triton(y, x, table, Segments.from_lengths([(slot, 1) for slot in slots]))
    order = [5, 2, 7, 0, 6, 1, 4, 3]
    shuffled = torch.zeros_like(y)
    segments = Segments.from_lengths([(slots[row], 1) for row in order])
    add_low_rank_triton(shuffled, x[order], table, segments)
    torch.testing.assert_close(shuffled, y[order])


def test_a_replaced_pair_is_the_one_that_is_read():
    table = make_table(8, 8, [2, 0, 0, 0, 0], [torch.float32] * SLOTS)
    segments, x = Segments.from_lengths([(0, 1)]), torch.ones(1, 8, device=DEVICE)
    add_low_rank_triton(torch.zeros(1, 8, device=DEVICE), x, table, segments)
    ones = torch.ones(1, 8, device=DEVICE), torch.ones(8, 1, device=DEVICE)
    table.set(0, PackedLowRank.pack(*ones))
    y = torch.zeros(1, 8, device=DEVICE)
    add_low_rank_triton(y, x, table, segments)
    assert torch.equal(y, torch.full_like(y, 8.0))
    table.clear(0)
    add_low_rank_triton(y, x, table, segments)
    assert torch.equal(y, torch.full_like(y, 8.0))


def test_strided_rows_leave_what_lies_between_them():
    torch.manual_seed(0)
    table = make_table(16, 32, [4] * SLOTS, [torch.float32] * SLOTS)
    segments = Segments.from_lengths([(0, 3), (1, 2)])
    x, y = torch.randn(5, 40, device=DEVICE), torch.zeros(5, 50, device=DEVICE)
    expected = torch.zeros(5, 32, device=DEVICE)
    add_low_rank_triton(y[:, 8:40], x[:, 4:20], table, segments)
    add_low_rank_reference(expected, x[:, 4:20], table, segments)
    torch.testing.assert_close(y[:, 8:40], expected, rtol=1e-4, atol=1e-4)
    assert not y[:, :8].any()
    assert not y[:, 40:].any()


def test_shapes_that_do_not_fit_are_refused():
    table = make_table(8, 8, [1] * SLOTS, [torch.float32] * SLOTS)
    with pytest.raises(ValueError, match="side by side"):
        add_low_rank_triton(
            torch.zeros(1, 8), torch.zeros(1, 8), table, Segments.from_lengths([(0, 2)])
        )


def test_tiles_cover_each_run_once():
    segments = Segments.from_lengths([(-1, 3), (2, TILE_ROWS + 1), (0, 1)])
    tiles = segments.tiles(torch.device("cpu")).tolist()
    assert tiles == [[2, 3, 3 + TILE_ROWS], [2, 3 + TILE_ROWS, 4 + TILE_ROWS], [0, 20, 21]]
    assert segments.tiles(torch.device("cpu")) is segments.tiles(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA device")
def test_a_row_alone_has_the_bits_it_has_among_others():
    torch.manual_seed(0)
    table = make_table(100, 77, [16, 8, 3, 19, 0], [torch.float32, torch.bfloat16] * 2 + [None])
    segments = Segments.from_lengths([(-1, 3), (0, 21), (1, 1), (2, 9), (3, 12), (4, 2)])
    x = torch.randn(segments.num_rows, 100, device=DEVICE)
    y = torch.zeros(segments.num_rows, 77, device=DEVICE)
    add_low_rank_triton(y, x, table, segments)
    for row, slot in enumerate(segments.slot_of_row().tolist()):
        alone = torch.zeros(1, 77, device=DEVICE)
        add_low_rank_triton(alone, x[row : row + 1], table, Segments.from_lengths([(slot, 1)]))
        assert torch.equal(alone[0], y[row])
