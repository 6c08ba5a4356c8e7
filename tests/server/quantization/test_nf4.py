import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from graftwork_server.quantization import quantize_linear
from graftwork_server.quantization.int8 import Int8Linear
from graftwork_server.quantization.nf4 import CudaNF4Linear, NF4Linear, quantize_nf4
from torch import nn
from torch.nn import functional


def dequantize_by_bitsandbytes(weight):
    """In one row: the CPU kernel of bitsandbytes 0.50 misplaces scales where a block of 64 crosses
    rows whose length is a multiple of 16."""
    packed, state = quantize_nf4(weight)
    state.shape = torch.Size([weight.numel()])
    return dequantize_4bit(packed, state).reshape(weight.shape)


@pytest.mark.parametrize("in_features", [576, 48, 100, 7])
def test_weight_is_the_one_bitsandbytes_dequantizes(in_features):
    torch.manual_seed(0)
    linear = nn.Linear(in_features, 40)
    expected = dequantize_by_bitsandbytes(linear.weight.detach())
    assert torch.equal(NF4Linear.from_linear(linear).weight, expected)


def test_cuda_layout_holds_the_same_weight():
    torch.manual_seed(0)
    linear = nn.Linear(128, 40)
    assert torch.equal(
        CudaNF4Linear.from_linear(linear).weight, NF4Linear.from_linear(linear).weight
    )


@pytest.mark.parametrize("in_features", [576, 48, 100, 7])
def test_forward_multiplies_by_the_dequantized_weight(in_features):
    torch.manual_seed(0)
    quantized = NF4Linear.from_linear(nn.Linear(in_features, 40))
    x = torch.randn(2, 3, in_features)
    expected = functional.linear(x, quantized.weight, quantized.bias)
    torch.testing.assert_close(quantized(x), expected, rtol=1e-5, atol=1e-5)


def test_gradient_flows_through_the_dequantized_weight():
    torch.manual_seed(0)
    quantized = NF4Linear.from_linear(nn.Linear(64, 40))
    x = torch.randn(3, 64, requires_grad=True)
    grad = torch.randn(3, 40)
    quantized(x).backward(grad)
    torch.testing.assert_close(x.grad, grad @ quantized.weight)


def test_state_dict_restores_the_weight():
    for kind in (NF4Linear, CudaNF4Linear):
        first = kind.from_linear(nn.Linear(64, 40))
        second = kind.from_linear(nn.Linear(64, 40))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first.weight, second.weight)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_multiplies_by_the_dequantized_weight():
    torch.manual_seed(0)
    quantized = quantize_linear(nn.Linear(64, 40), "nf4", torch.device("cuda"))
    x = torch.randn(3, 64, device="cuda")
    expected = functional.linear(x, quantized.weight, quantized.bias)
    torch.testing.assert_close(quantized(x), expected, rtol=1e-3, atol=1e-3)


def test_quantization_by_name():
    cpu = torch.device("cpu")
    assert isinstance(quantize_linear(nn.Linear(64, 40), "int8", cpu), Int8Linear)
    assert isinstance(quantize_linear(nn.Linear(64, 40), "nf4", cpu), NF4Linear)
    with pytest.raises(ValueError, match="int8 or nf4"):
        quantize_linear(nn.Linear(64, 40), "int4", cpu)
