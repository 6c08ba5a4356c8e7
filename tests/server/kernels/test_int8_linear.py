import pytest
import torch
from graftwork_adapters.base_file.panels import dequantize_int8
from graftwork_server.kernels.int8_linear import (
    int8_linear,
    int8_linear_reference,
)
from graftwork_server.quantization.int8 import quantize_int8
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=80)
@given(
    rows=st.sampled_from([0, 1, 2, 3, 4, 5, 12, 13, 16, 31, 130]),
    in_features=st.sampled_from([1, 24, 64, 100, 160, 192, 530, 576]),
    out_features=st.sampled_from([1, 31, 32, 33, 96, 200]),
    magnitude=st.sampled_from([1e-20, 1.0, 1e20]),
    has_bias=st.booleans(),
)
def test_kernel_agrees_with_reference(rows, in_features, out_features, magnitude, has_bias):
    """As nearly as activations of 16 bits can: half a step of each group, times its weights."""
    torch.manual_seed(0)
    codes, scales = quantize_int8(torch.randn(out_features, in_features))
    x = torch.randn(rows, in_features) * magnitude
    bias = torch.randn(out_features) * magnitude if has_bias else None
    y = int8_linear(x, codes, scales, bias, out_features)
    expected = int8_linear_reference(x, codes, scales, bias, out_features)
    groups = scales.shape[1]
    weight = dequantize_int8(codes, scales, out_features).reshape(out_features, groups, -1).abs()
    half_steps = x.reshape(rows, groups, in_features // groups).abs().amax(-1) / 65534
    bound = half_steps @ weight.sum(-1).T + 1e-6 * (x.abs() @ weight.flatten(1).T)
    assert ((y - expected).abs() <= bound + 1e-6 * expected.abs()).all()


@pytest.mark.parametrize("rows", [1, 4, 30])
def test_activations_are_rounded_to_16_bits_by_groups(rows):
    torch.manual_seed(0)
    codes, scales = quantize_int8(torch.randn(70, 192))
    x = torch.randn(rows, 192)
    groups = x.double().reshape(rows, 3, 64)
    steps = groups.abs().amax(-1, keepdim=True) / 32767
    rounded = ((groups / steps).round() * steps).flatten(1)
    expected = rounded @ dequantize_int8(codes, scales, 70).double().T
    y = int8_linear(x, codes, scales, None, 70)
    # In float32 a few activations, half-way between two integers, go to the other one.
    torch.testing.assert_close(y.double(), expected, rtol=1e-6, atol=5e-4)
    assert (y - expected).abs().median() < 2e-6


@pytest.mark.parametrize("rows", [1, 7])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_says_so_and_spoils_no_other(rows, value):
    torch.manual_seed(0)
    codes, scales = quantize_int8(torch.randn(40, 128))
    x = torch.randn(rows, 128)
    clean = int8_linear(x, codes, scales, None, 40)
    x[0, 70] = value
    y = int8_linear(x, codes, scales, None, 40)
    assert not y[0].isfinite().any()
    assert torch.equal(y[1:], clean[1:])


def test_zeros_give_zeros():
    codes, scales = quantize_int8(torch.randn(40, 128))
    assert int8_linear(torch.zeros(5, 128), codes, scales, None, 40).eq(0).all()


@pytest.mark.parametrize("out_features", [32, 200])
def test_a_row_has_the_same_bits_whatever_the_number_of_rows(out_features):
    torch.manual_seed(0)
    codes, scales = quantize_int8(torch.randn(out_features, 576))
    bias = torch.randn(out_features)
    x = torch.randn(150, 576)
    whole = int8_linear(x, codes, scales, bias, out_features)
    for rows in (1, 2, 3, 4, 5, 7, 11, 12, 13, 16, 24, 25, 64, 129):
        part = int8_linear(x[150 - rows :].contiguous(), codes, scales, bias, out_features)
        assert torch.equal(part, whole[150 - rows :]), rows


def test_shapes_that_do_not_fit_are_errors():
    codes, scales = quantize_int8(torch.randn(40, 64))
    with pytest.raises(RuntimeError, match="do not fit"):
        int8_linear(torch.randn(1, 64), codes, scales, None, 100)
    with pytest.raises(RuntimeError, match="x must be"):
        int8_linear(torch.randn(1, 64).double(), codes, scales, None, 40)
