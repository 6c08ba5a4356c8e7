"""The kernels of input transforms, added terms and pair rotations agree with torch, in any mix of
slots, and a row's bits do not depend on its neighbours."""

import pytest
import torch
from graftwork_adapters.canonical_linear import (
    BlockRotation,
    BlockRotations,
    Circulant,
    DenseDelta,
    InputScale,
    Kronecker,
    PairRotation,
    SharedBases,
    SharedLowRank,
    SparseDelta,
    SpectralDelta,
)
from graftwork_adapters.shared_tensors import share
from graftwork_server.kernels.input_transforms import InputTable, KernelInput, transform_inputs
from graftwork_server.kernels.pair_rotation import (
    KernelPairRotation,
    PairRotationTable,
    rotate_pairs,
)
from graftwork_server.kernels.segments import Segments
from graftwork_server.kernels.terms import TermTable, add_terms, pack_kernel_term
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.adapters.expand import delta, input_matrix, transform_output

LENGTHS = [(-1, 2), (3, 1), (0, 5), (1, 1), (2, 21), (4, 3), (0, 1), (5, 70), (1, 2), (6, 0)]
SHAPES = [(12, 24), (36, 12), (48, 48), (96, 12), (12, 600)]


def shared_low_rank(out_features, in_features):
    generator = torch.Generator().manual_seed(7)
    a, b = torch.randn(40, 700, generator=generator), torch.randn(100, 40, generator=generator)
    return SharedLowRank(share(a, b), torch.randn(40), torch.randn(out_features))


def shared_bases(out_features, in_features):
    least = min(out_features, in_features)
    num_bases = -(-least // 5)
    generator = torch.Generator().manual_seed(9)
    a = torch.randn(5, 200, generator=generator)
    b = torch.randn(700, 41, 5, generator=generator)
    scales = torch.randn(5, num_bases), torch.randn(num_bases, least)
    return SharedBases(share(a, b), *scales, out_features, in_features)


def sparse(out_features, in_features):
    count = max(3, out_features * in_features // 40)
    places = torch.randperm(out_features * in_features)[:count].sort().values
    rows, columns = places // in_features, places % in_features
    return SparseDelta(rows, columns, torch.randn(count), out_features, in_features)


def spectral(count):
    def make(out_features, in_features):
        generator = torch.Generator().manual_seed(3)  # as adapters of one seed: the same places
        places = torch.randperm(out_features * in_features, generator=generator)[:count]
        rows, columns = places // in_features, places % in_features
        return SpectralDelta(rows, columns, 9 * torch.randn(count), out_features, in_features)

    return make


TERMS = {
    "shared low-rank": shared_low_rank,
    "shared bases": shared_bases,
    "kronecker": lambda o, i: Kronecker(torch.randn(4, 2), torch.randn(o // 4, i // 2)),
    "kronecker, left first": lambda o, i: Kronecker(torch.randn(2, 6), torch.randn(o // 2, i // 6)),
    "circulant": lambda o, i: Circulant(torch.randn(o // 12, i // 12, 12)),
    "odd circulant": lambda o, i: Circulant(torch.randn(o // 3, i // 3, 3)),
    "circulant of one": lambda o, i: Circulant(torch.randn(o, i, 1)),
    "sparse": sparse,
    "spectral": spectral(100),
    "spectral at few places": spectral(7),
    "dense": lambda o, i: DenseDelta(torch.randn(o, i)),
}


def table_of(terms, in_features, dtype=torch.float32):
    table = TermTable(max_slots=8)
    for slot, term in terms.items():
        table.place(slot, pack_kernel_term(term, in_features, dtype))
    return table


@settings(max_examples=40)
@given(
    shape=st.sampled_from(SHAPES),
    kinds=st.lists(st.sampled_from(sorted(TERMS)), min_size=6, max_size=6),
    seed=st.integers(0, 100),
)
def test_terms_of_any_kinds_equal_their_deltas(shape, kinds, seed):
    torch.manual_seed(seed)
    terms = {slot: TERMS[kind](*shape) for slot, kind in enumerate(kinds) if slot != 4}
    segments = Segments.from_lengths(LENGTHS)
    x, before = torch.randn(segments.num_rows, shape[1]), torch.randn(segments.num_rows, shape[0])
    expected = before.clone()
    for slot, start, stop in segments.runs:
        if slot in terms:
            expected[start:stop] += x[start:stop] @ delta(terms[slot], *shape).T
    found = before.clone()
    add_terms(found, x, table_of(terms, shape[1]), segments)
    torch.testing.assert_close(found, expected, atol=2e-3, rtol=1e-4)
    idle = segments.slot_of_row() < 0
    assert torch.equal(found[idle], before[idle])


@pytest.mark.parametrize("kind", TERMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_rows_term_has_the_bits_it_has_alone(kind, dtype):
    torch.manual_seed(0)
    term = TERMS[kind](48, 60)
    table = table_of(dict.fromkeys(range(7), term), 60, dtype)
    segments = Segments.from_lengths(LENGTHS)
    x = torch.randn(segments.num_rows, 60)
    together = torch.zeros(segments.num_rows, 48)
    add_terms(together, x, table, segments)
    for row, slot in enumerate(segments.slot_of_row().tolist()):
        alone = torch.zeros(1, 48)
        add_terms(alone, x[row : row + 1], table, Segments.from_lengths([(slot, 1)]))
        assert torch.equal(alone[0], together[row])


@pytest.mark.parametrize("kind", ["sparse", "circulant", "shared low-rank", "shared bases"])
def test_rounded_terms_are_near(kind):
    torch.manual_seed(0)
    term, x = TERMS[kind](48, 60), torch.randn(1, 60)
    found = torch.zeros(1, 48)
    segments = Segments.from_lengths([(0, 1)])
    add_terms(found, x, table_of({0: term}, 60, torch.bfloat16), segments)
    expected = x @ delta(term, 48, 60).T
    assert (found - expected).norm() < 0.01 * expected.norm()


def test_strided_rows():
    torch.manual_seed(0)
    terms = {slot: TERMS[kind](48, 60) for slot, kind in enumerate(sorted(TERMS)[-7:])}
    segments = Segments.from_lengths(LENGTHS)
    wide_x, wide_y = torch.randn(segments.num_rows, 80), torch.zeros(segments.num_rows, 60)
    x, y = wide_x[:, 10:70], wide_y[:, 6:54]
    expected = torch.zeros(segments.num_rows, 48)
    table = table_of(terms, 60)
    add_terms(expected, x.contiguous(), table, segments)
    add_terms(y, x, table, segments)
    assert torch.equal(y, expected)
    assert not wide_y[:, :6].any()
    assert not wide_y[:, 54:].any()


INPUTS = {
    "scale": lambda: InputScale(torch.randn(48)),
    "blocks of 16": lambda: BlockRotations((BlockRotation(torch.randn(3, 16, 16)),)),
    "blocks of 12": lambda: BlockRotations((BlockRotation(torch.randn(4, 12, 12)),)),
    "blocks of 4": lambda: BlockRotations((BlockRotation(torch.randn(12, 4, 4)),)),
    "blocks of 2": lambda: BlockRotations((BlockRotation(torch.randn(24, 2, 2)),)),
    "one of 4 for all": lambda: BlockRotations((BlockRotation(torch.randn(1, 4, 4)),)),
    "one of 48": lambda: BlockRotations((BlockRotation(torch.randn(1, 48, 48)),)),
    "butterfly": lambda: BlockRotations(
        (
            BlockRotation(torch.randn(12, 4, 4), torch.randperm(48)),
            BlockRotation(torch.randn(6, 8, 8), torch.randperm(48)),
            BlockRotation(torch.randn(3, 16, 16)),
        )
    ),
}


def test_inputs_of_all_kinds_equal_their_matrices():
    torch.manual_seed(0)
    segments = Segments.from_lengths([(slot, 1 + 6 * slot % 19) for slot in range(-1, 9)])
    transforms = {slot: make() for slot, make in enumerate(INPUTS.values())}
    table = InputTable(max_slots=9)
    for slot, transform in transforms.items():
        table.place(slot, KernelInput.pack(transform, torch.float32))
    wide = torch.randn(segments.num_rows, 60)
    x = wide[:, 5:53]
    before, expected = x.clone(), x.clone()
    for slot, start, stop in segments.runs:
        if slot in transforms:
            expected[start:stop] = x[start:stop] @ input_matrix(transforms[slot], 48)
    found = transform_inputs(x, table, segments)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-4)
    assert torch.equal(x, before)
    for row, slot in enumerate(segments.slot_of_row().tolist()):
        alone = transform_inputs(x[row : row + 1], table, Segments.from_lengths([(slot, 1)]))
        assert torch.equal(alone[0], found[row])


def test_rounding_a_rotation_rounds_what_it_changes():
    change = torch.randn(3, 16, 16) * 1e-3
    transform = BlockRotations((BlockRotation(torch.eye(16) + change),))
    table = InputTable(max_slots=1)
    table.place(0, KernelInput.pack(transform, torch.bfloat16))
    x = torch.randn(2, 48)
    found = transform_inputs(x, table, Segments.from_lengths([(0, 2)])) - x
    expected = x @ input_matrix(transform, 48) - x
    assert (found - expected).norm() < 0.01 * expected.norm()


def test_pair_rotations_equal_their_definition():
    torch.manual_seed(0)
    groups = [2, 6, 48, 24, 16]
    rotations = {s: PairRotation(torch.randn(48), torch.randn(48), g) for s, g in enumerate(groups)}
    table = PairRotationTable(max_slots=8)
    for slot, rotation in rotations.items():
        table.place(slot, KernelPairRotation.pack(rotation))
    segments = Segments.from_lengths(LENGTHS)
    wide = torch.randn(segments.num_rows, 60)
    y = wide[:, 4:52]
    expected = wide.clone()
    for slot, start, stop in segments.runs:
        if slot in rotations:
            expected[start:stop, 4:52] = transform_output(rotations[slot], y[start:stop])
    rotate_pairs(y, table, segments)
    torch.testing.assert_close(wide, expected)


def test_a_cleared_slot_does_nothing():
    terms, inputs = TermTable(2), InputTable(2)
    terms.place(1, pack_kernel_term(DenseDelta(torch.randn(8, 8)), 8, torch.float32))
    inputs.place(1, KernelInput.pack(InputScale(torch.randn(8)), torch.float32))
    segments = Segments.from_lengths([(1, 2)])
    assert terms.concerns(segments)
    for table in (terms, inputs):
        table.clear(1)
        assert not table.concerns(segments)
        with pytest.raises(IndexError):
            table.clear(2)
    x, y = torch.randn(2, 8), torch.zeros(2, 8)
    add_terms(y, x, terms, segments)
    assert not y.any()
    assert torch.equal(transform_inputs(x, inputs, segments), x)
