import pytest
import torch
from graftwork_server.kernels.int8_linear import int8_linear, int8_linear_reference
from graftwork_server.quantization.int8 import quantize_int8
from hypothesis import given, settings
from hypothesis import strategies as st


@settings(max_examples=60)
@given(
    rows=st.sampled_from([0, 1, 2, 3, 4, 5, 12, 13, 16, 31, 130]),
    in_features=st.sampled_from([1, 24, 64, 100, 160, 192, 576]),
    out_features=st.sampled_from([1, 31, 32, 33, 96, 200]),
    has_bias=st.booleans(),
)
def test_kernel_agrees_with_reference(rows, in_features, out_features, has_bias):
    torch.manual_seed(0)
    codes, scales = quantize_int8(torch.randn(out_features, in_features))
    x = torch.randn(rows, in_features)
    bias = torch.randn(out_features) if has_bias else None
    y = int8_linear(x, codes, scales, bias, out_features)
    expected = int8_linear_reference(x, codes, scales, bias, out_features)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


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
