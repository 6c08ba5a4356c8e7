"""Each packed primitive computes what its definition says, for any number of rows."""

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
from graftwork_server.packed_terms import add_terms, pack_term
from graftwork_server.packed_transforms import PackedPairRotation, pack_input, transform_rows

from tests.adapters.expand import delta, input_matrix, transform_output

CPU = torch.device("cpu")


def shared_low_rank(out_features, in_features, seed=0):
    torch.manual_seed(7)
    shared = share(torch.randn(6, 30), torch.randn(40, 6))
    torch.manual_seed(seed)
    return SharedLowRank(shared, torch.randn(6), torch.randn(out_features))


def shared_bases(out_features, in_features):
    least, most = sorted((out_features, in_features))
    num_bases = -(-least // 4)
    shared = share(torch.randn(4, least + 3), torch.randn(most + 2, num_bases + 1, 4))
    scales = torch.randn(4, num_bases), torch.randn(num_bases, least)
    return SharedBases(shared, *scales, out_features, in_features)


def sparse(out_features, in_features, kind=SparseDelta):
    places = torch.randperm(out_features * in_features)[:40].sort().values
    rows, columns = places // in_features, places % in_features
    return kind(rows, columns, torch.randn(40), out_features, in_features)


TERMS = {
    "shared low-rank": shared_low_rank,
    "shared bases": shared_bases,
    "kronecker": lambda o, i: Kronecker(torch.randn(4, 2), torch.randn(o // 4, i // 2)),
    "kronecker, left first": lambda o, i: Kronecker(torch.randn(2, 6), torch.randn(o // 2, i // 6)),
    "circulant": lambda o, i: Circulant(torch.randn(o // 4, i // 4, 4)),
    "odd circulant": lambda o, i: Circulant(torch.randn(o // 3, i // 3, 3)),
    "sparse": sparse,
    "spectral": lambda o, i: sparse(o, i, SpectralDelta),
    "dense": lambda o, i: DenseDelta(torch.randn(o, i)),
}


@pytest.mark.parametrize("name", TERMS)
@pytest.mark.parametrize(("out_features", "in_features"), [(12, 24), (36, 12), (12, 12)])
@pytest.mark.parametrize("num_rows", [1, 5])
def test_a_term_equals_its_delta(name, out_features, in_features, num_rows):
    torch.manual_seed(0)
    term = TERMS[name](out_features, in_features)
    x = torch.randn(num_rows, in_features)
    torch.testing.assert_close(
        pack_term(term, CPU).apply(x),
        x @ delta(term, out_features, in_features).T,
        atol=1e-4,
        rtol=1e-4,
    )


def test_runs_that_share_projections_go_together_and_others_alone():
    torch.manual_seed(0)
    terms = {slot: shared_low_rank(12, 24, seed=slot) for slot in (1, 2)}
    terms[3] = DenseDelta(torch.randn(12, 24))
    packed = {slot: pack_term(term, CPU) for slot, term in terms.items()}
    runs = [(1, 0, 2), (3, 2, 3), (2, 4, 7), (9, 7, 8), (1, 8, 9)]
    x = torch.randn(9, 24)
    y = torch.randn(9, 12)
    expected = y.clone()
    for slot, start, stop in runs:
        if slot in terms:
            expected[start:stop] += x[start:stop] @ delta(terms[slot], 12, 24).T
    add_terms(y, x, packed, runs)
    torch.testing.assert_close(y, expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("num_rows", [1, 5])
@pytest.mark.parametrize(
    "transform",
    [
        InputScale(torch.arange(12.0)),
        BlockRotations((BlockRotation(torch.randn(3, 4, 4)),)),
        BlockRotations((BlockRotation(torch.randn(1, 4, 4)),)),
        BlockRotations(
            (
                BlockRotation(torch.randn(3, 4, 4), torch.randperm(12)),
                BlockRotation(torch.randn(6, 2, 2), torch.randperm(12)),
            )
        ),
    ],
)
def test_an_input_transform_equals_its_matrix(transform, num_rows):
    x = torch.randn(num_rows, 12)
    torch.testing.assert_close(
        pack_input(transform, CPU).apply(x), x @ input_matrix(transform, 12), atol=1e-5, rtol=1e-5
    )


def test_a_pair_rotation_equals_its_definition():
    rotation = PairRotation(torch.randn(24), torch.randn(24), group_size=6)
    y = torch.randn(3, 24)
    found = PackedPairRotation.pack(rotation, CPU).apply(y)
    torch.testing.assert_close(found, transform_output(rotation, y))


@pytest.mark.parametrize("runs", [[(1, 0, 2), (2, 2, 3)], [(2, 0, 1), (3, 1, 2), (1, 3, 6)]])
def test_rotations_and_scales_of_several_slots(runs):
    rotations = {s: PairRotation(torch.randn(12), torch.randn(12), 2 * s) for s in (1, 2, 3)}
    rotations[4] = PairRotation(torch.randn(12), torch.randn(12), 2)
    scales = {slot: InputScale(torch.randn(12)) for slot in (1, 2, 3)}
    y = torch.randn(8, 12)
    rotated, scaled = y.clone(), y.clone()
    runs = [*runs, (4, 6, 7), (5, 7, 8)]
    for slot, start, stop in runs:
        if slot in rotations:
            rotated[start:stop] = transform_output(rotations[slot], y[start:stop])
        if slot in scales:
            scaled[start:stop] = y[start:stop] * scales[slot].scale
    packed = {slot: PackedPairRotation.pack(r, CPU) for slot, r in rotations.items()}
    torch.testing.assert_close(transform_rows(y, packed, runs), rotated)
    packed = {slot: pack_input(scale, CPU) for slot, scale in scales.items()}
    torch.testing.assert_close(transform_rows(y, packed, runs), scaled)


def test_only_the_rows_of_a_slot_are_transformed_and_the_input_is_left_alone():
    x = torch.randn(4, 12)
    before = x.clone()
    transforms = {1: pack_input(InputScale(torch.full((12,), 2.0)), CPU)}
    found = transform_rows(x, transforms, [(0, 0, 1), (1, 1, 3)])
    assert torch.equal(x, before)
    assert torch.equal(found, before * torch.tensor([[1.0], [2.0], [2.0], [1.0]]))
    assert transform_rows(x, transforms, [(0, 0, 4)]) is x
