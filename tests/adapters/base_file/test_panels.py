import pytest
import torch
from bitsandbytes.functional import get_4bit_type
from graftwork_adapters.base_file.panels import (
    NF4_VALUES,
    dequantize_int8,
    dequantize_nf4,
    from_panels,
    to_panels,
)
from graftwork_server.kernels.nf4_linear import pack_nf4
from hypothesis import given
from hypothesis import strategies as st

outs = st.integers(1, 70)
groups = st.integers(1, 5)
group_sizes = st.sampled_from([1, 7, 16, 64])


def test_nf4_values_are_those_of_bitsandbytes():
    assert torch.equal(torch.tensor(NF4_VALUES), get_4bit_type("nf4", device="cpu"))


@given(out=outs, n=st.integers(1, 40))
def test_panels_lead_back(out, n):
    weight = torch.randn(out, n)
    assert torch.equal(from_panels(to_panels(weight), out), weight)


@pytest.mark.parametrize("given_memory", [False, True])
@given(out=outs, num_groups=groups, size=group_sizes)
def test_int8_is_code_times_scale(given_memory, out, num_groups, size):
    codes = torch.randint(-127, 128, (out, num_groups * size), dtype=torch.int8)
    scales = torch.randn(out, num_groups)
    panels = to_panels(codes)
    memory = torch.full((panels.numel(),), torch.nan) if given_memory else None
    found = dequantize_int8(panels, to_panels(scales), out, memory)
    assert torch.equal(found, codes * scales.repeat_interleave(size, dim=1))


@pytest.mark.parametrize("given_memory", [False, True])
@given(out=outs, num_groups=groups, size=group_sizes)
def test_nf4_is_value_times_scale(given_memory, out, num_groups, size):
    codes = torch.randint(0, 16, (out, num_groups * size), dtype=torch.uint8)
    scales = torch.randn(out, num_groups)
    packed = pack_nf4(codes)
    memory = torch.full((packed.numel() * 2,), torch.nan) if given_memory else None
    found = dequantize_nf4(packed, to_panels(scales), out, memory)
    expected = torch.tensor(NF4_VALUES)[codes.int()] * scales.repeat_interleave(size, dim=1)
    assert torch.equal(found, expected)
