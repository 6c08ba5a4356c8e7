import pytest
import torch
from graftwork_adapters.canonical import KhatriRaoPair
from graftwork_server.kernels.low_rank import (
    LowRankTable,
    PackedKhatriRao,
    PackedLowRank,
    add_low_rank,
    add_low_rank_reference,
)
from graftwork_server.kernels.segments import Segments
from hypothesis import given, settings
from hypothesis import strategies as st

SLOTS = 5


def khatri_rao(in_features, out_features, rank):
    return KhatriRaoPair.of(
        *(torch.randn(rank, in_features) for _ in range(2)),
        *(torch.randn(out_features, rank) for _ in range(2)),
    )


def make_table(in_features, out_features, ranks, dtype):
    """A negative rank: Khatri-Rao products of so many."""
    table = LowRankTable(SLOTS, in_features, out_features)
    for slot, rank in enumerate(ranks):
        if rank < 0:
            pair = khatri_rao(in_features, out_features, -rank)
            table.set(slot, PackedKhatriRao.pack(pair, dtype))
        if rank > 0:
            a, b = torch.randn(rank, in_features), torch.randn(out_features, rank)
            table.set(slot, PackedLowRank.pack(a.to(dtype), b.to(dtype)))
    return table


@settings(max_examples=60)
@given(
    in_features=st.sampled_from([1, 7, 16, 48, 100]),
    out_features=st.sampled_from([1, 20, 32, 64, 77]),
    ranks=st.lists(
        st.sampled_from([0, 1, 3, 8, 16, 19, -1, -3, -8, -9]), min_size=SLOTS, max_size=SLOTS
    ),
    lengths=st.lists(
        st.tuples(st.integers(-1, SLOTS - 1), st.sampled_from([0, 1, 2, 5, 8, 21])), max_size=8
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
def test_kernel_agrees_with_reference(in_features, out_features, ranks, lengths, dtype):
    torch.manual_seed(0)
    table = make_table(in_features, out_features, ranks, dtype)
    segments = Segments.from_lengths(lengths)
    x = torch.randn(segments.num_rows, in_features)
    before = torch.randn(segments.num_rows, out_features)
    y, expected = before.clone(), before.clone()
    add_low_rank(y, x, table, segments)
    add_low_rank_reference(expected, x, table, segments)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=2e-3)
    base = segments.slot_of_row() < 0
    assert torch.equal(y[base], before[base])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_row_alone_has_the_bits_it_has_among_others(dtype):
    torch.manual_seed(0)
    table = make_table(100, 77, [16, -8, 3, 19, -3], dtype)
    lengths = [(-1, 3), (0, 21), (1, 1), (2, 9), (3, 12), (4, 2)]
    segments = Segments.from_lengths(lengths)
    x = torch.randn(segments.num_rows, 100)
    y = torch.zeros(segments.num_rows, 77)
    add_low_rank(y, x, table, segments)
    for row, slot in enumerate(segments.slot_of_row().tolist()):
        alone = torch.zeros(1, 77)
        add_low_rank(alone, x[row : row + 1], table, Segments.from_lengths([(slot, 1)]))
        assert torch.equal(alone[0], y[row])


def test_strided_rows():
    torch.manual_seed(0)
    table = make_table(16, 32, [4, 4, 4, 4, 4], torch.float32)
    segments = Segments.from_lengths([(0, 3), (1, 2)])
    x, y = torch.randn(5, 40), torch.zeros(5, 50)
    expected = torch.zeros(5, 32)
    add_low_rank(y[:, 8:40], x[:, 4:20], table, segments)
    add_low_rank_reference(expected, x[:, 4:20], table, segments)
    torch.testing.assert_close(y[:, 8:40], expected)
    assert not y[:, :8].any()
    assert not y[:, 40:].any()


def test_a_cleared_slot_adds_nothing():
    table = make_table(16, 32, [4, 0, 0, 0, 0], torch.float32)
    table.clear(0)
    y = torch.zeros(1, 32)
    add_low_rank(y, torch.randn(1, 16), table, Segments.from_lengths([(0, 1)]))
    assert not y.any()
    assert table.get(0) is None


def test_packing_keeps_the_factors():
    a, b = torch.randn(3, 10).half(), torch.randn(50, 3).half()
    pair = PackedLowRank.pack(a, b)
    assert pair.rank == 3
    assert torch.equal(pair.a, a.float())
    assert torch.equal(pair.b(), b.float())


def test_products_are_the_pair_that_they_stand_for():
    torch.manual_seed(0)
    pair = khatri_rao(20, 50, 3)
    packed = PackedKhatriRao.pack(pair, torch.float32)
    a, b = packed.factors()
    assert torch.equal(a, pair.a)
    assert torch.equal(b, pair.b)
    assert packed.num_bytes < PackedLowRank.pack(pair.a, pair.b).num_bytes


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.zeros(3, 8), torch.zeros(8, 4)),
        (torch.zeros(0, 8), torch.zeros(8, 0)),
        (torch.zeros(3, 8), torch.zeros(8, 3).bfloat16()),
        (torch.zeros(3, 8, dtype=torch.int8), torch.zeros(8, 3, dtype=torch.int8)),
    ],
)
def test_packing_refuses_what_is_no_pair(a, b):
    with pytest.raises(ValueError, match=r"pair|dtype"):
        PackedLowRank.pack(a, b)


def test_a_table_refuses_what_does_not_fit():
    table = LowRankTable(2, 8, 8)
    pair = PackedLowRank.pack(torch.zeros(1, 8), torch.zeros(9, 1))
    with pytest.raises(ValueError, match="does not fit"):
        table.set(0, pair)
    with pytest.raises(IndexError):
        table.clear(2)


def test_rows_outside_the_batch_are_an_error():
    table = LowRankTable(2, 8, 8)
    with pytest.raises(RuntimeError, match="run 0"):
        add_low_rank(torch.zeros(1, 8), torch.zeros(1, 8), table, Segments.from_lengths([(0, 2)]))
    with pytest.raises(RuntimeError, match="run 0"):
        add_low_rank(torch.zeros(1, 8), torch.zeros(1, 8), table, Segments.from_lengths([(2, 1)]))
