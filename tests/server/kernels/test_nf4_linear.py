import torch
from graftwork_adapters.base_file.panels import to_panels
from graftwork_server.kernels.nf4_linear import nf4_linear, nf4_linear_reference, pack_nf4
from hypothesis import given, settings
from hypothesis import strategies as st


def make_weight(out_features, in_features, groups):
    codes = pack_nf4(torch.randint(0, 16, (out_features, in_features), dtype=torch.uint8))
    return codes, to_panels(torch.rand(out_features, groups))


@settings(max_examples=40)
@given(
    rows=st.sampled_from([0, 1, 2, 3, 4, 5, 16, 31]),
    shape=st.sampled_from([(1, 1), (64, 1), (192, 3), (100, 25), (576, 9)]),
    out_features=st.sampled_from([1, 31, 32, 33, 96]),
    has_bias=st.booleans(),
)
def test_kernel_agrees_with_reference(rows, shape, out_features, has_bias):
    torch.manual_seed(0)
    in_features, groups = shape
    codes, scales = make_weight(out_features, in_features, groups)
    x = torch.randn(rows, in_features)
    bias = torch.randn(out_features) if has_bias else None
    y = nf4_linear(x, codes, scales, bias, out_features)
    expected = nf4_linear_reference(x, codes, scales, bias, out_features)
    torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-4)


def test_a_row_has_the_same_bits_whatever_the_number_of_rows():
    torch.manual_seed(0)
    codes, scales = make_weight(72, 192, 3)
    x = torch.randn(40, 192)
    whole = nf4_linear(x, codes, scales, None, 72)
    for rows in (1, 2, 3, 4, 5, 12, 13, 39):
        part = nf4_linear(x[40 - rows :].contiguous(), codes, scales, None, 72)
        assert torch.equal(part, whole[40 - rows :]), rows
