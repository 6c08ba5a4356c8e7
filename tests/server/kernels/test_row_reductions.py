import pytest
import torch
from graftwork_server.kernels.row_reductions import (
    row_logsumexp,
    row_logsumexp_reference,
    row_peaks,
    row_peaks_reference,
)
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

INFINITY = float("inf")
SHAPES = st.tuples(st.integers(0, 20), st.sampled_from([1, 3, 15, 16, 17, 64, 1000]))


def rows_of(shape: tuple[int, int], seed: int, *, distinct: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    if distinct:
        return torch.randn(shape, generator=generator) * 10
    return torch.randint(-2, 2, shape, generator=generator).float()


@given(SHAPES, st.integers(0, 99), st.booleans())
def test_peaks(shape: tuple[int, int], seed: int, distinct: bool) -> None:
    """Of equals the first."""
    x = rows_of(shape, seed, distinct=distinct)
    values, places = row_peaks(x)
    assert torch.equal(values, row_peaks_reference(x)[0])
    for row, place in zip(x.tolist(), places.tolist(), strict=True):
        assert place == row.index(max(row))


@pytest.mark.parametrize("column", [0, 5, 15, 16, 36])
def test_the_first_nan_is_the_peak(column: int) -> None:
    x = rows_of((3, 37), 0)
    x[1, column:] = torch.nan
    x[2, 3] = INFINITY
    values, places = row_peaks(x)
    assert values.isnan().tolist() == [False, True, False]
    assert places[1] == column
    assert (values[2], places[2]) == (INFINITY, 3)


@pytest.mark.parametrize("column", [0, 5, 16, 36])
def test_a_row_of_nothing_but_one_token(column: int) -> None:
    x = torch.full((2, 37), -INFINITY)
    x[1, column] = -3.0
    values, places = row_peaks(x)
    assert values.tolist() == [-INFINITY, -3.0]
    assert places.tolist()[1] == column
    assert row_logsumexp(x).tolist() == [-INFINITY, -3.0]


@given(SHAPES, st.integers(0, 99), st.sampled_from([0.0, 1e4, -1e4]))
def test_logsumexp(shape: tuple[int, int], seed: int, shift: float) -> None:
    x = rows_of(shape, seed) + shift
    torch.testing.assert_close(row_logsumexp(x), row_logsumexp_reference(x), rtol=2e-6, atol=2e-6)


def test_a_row_has_the_same_bits_whatever_the_number_of_rows() -> None:
    x = rows_of((9, 1000), 1)
    whole = row_logsumexp(x)
    for row in range(9):
        assert torch.equal(row_logsumexp(x[row : row + 1]), whole[row : row + 1])


def test_shapes_that_do_not_fit_are_errors() -> None:
    with pytest.raises(RuntimeError, match="at least one column"):
        row_peaks(torch.empty(2, 0))
    with pytest.raises(RuntimeError, match="x must be"):
        row_logsumexp(torch.randn(2, 3).double())
