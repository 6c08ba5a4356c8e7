"""The fused elementwise kernels against their references, and row by row."""

import pytest
import torch
from graftwork_server.kernels.elementwise import (
    rms_norm,
    rms_norm_reference,
    rotate_heads,
    rotate_heads_reference,
    silu_multiply,
    silu_multiply_reference,
)
from hypothesis import given
from hypothesis import strategies as st

ROWS = st.integers(1, 40)
FEATURES = st.integers(1, 150)


def randn(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(ROWS, FEATURES, st.sampled_from([0.0, 1.0]))
def test_rms_norm(rows: int, features: int, offset: float) -> None:
    x, weight = randn(rows, features, seed=0) * 3, randn(features, seed=1)
    y = rms_norm(x, weight, offset=offset, eps=1e-6)
    torch.testing.assert_close(y, rms_norm_reference(x, weight, offset=offset, eps=1e-6))
    alone = torch.cat([rms_norm(row[None], weight, offset=offset, eps=1e-6) for row in x])
    assert torch.equal(y, alone)


@given(ROWS, FEATURES)
def test_silu_multiply(rows: int, features: int) -> None:
    gate, up = randn(rows, features, seed=0) * 20, randn(rows, features, seed=1)
    expected = silu_multiply_reference(gate, up)
    alone = torch.cat(
        [silu_multiply(g[None].clone(), u[None]) for g, u in zip(gate, up, strict=True)]
    )
    y = silu_multiply(gate.clone(), up)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(alone, expected)


def test_silu_of_extremes() -> None:
    gate = torch.tensor([[-1e30, -200.0, -88.5, 0.0, 88.5, 1e30] * 8])
    y = silu_multiply(gate.clone(), torch.ones_like(gate))
    torch.testing.assert_close(y, silu_multiply_reference(gate, torch.ones_like(gate)))


@given(ROWS, st.integers(1, 5), st.integers(1, 40))
def test_rotate_heads(tokens: int, heads: int, half: int) -> None:
    x = randn(tokens, heads, 2 * half, seed=0)
    cosine, sine = randn(tokens, 2 * half, seed=1), randn(tokens, 2 * half, seed=2)
    expected = rotate_heads_reference(x, cosine, sine)
    torch.testing.assert_close(rotate_heads(x.clone(), cosine, sine), expected)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(RuntimeError, match="does not fit"):
        rms_norm(torch.zeros(2, 3), torch.zeros(4), offset=0.0, eps=1e-6)
    with pytest.raises(RuntimeError, match="differ"):
        silu_multiply(torch.zeros(2, 3), torch.zeros(2, 4))
    with pytest.raises(RuntimeError, match="do not fit"):
        rotate_heads(torch.zeros(2, 1, 4), torch.zeros(3, 4), torch.zeros(3, 4))
