import copy

import pytest
import torch
from graftwork_server.quantization.int8 import Int8Linear, group_size
from peft import LoraConfig, get_peft_model
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D


@pytest.mark.parametrize(
    ("in_features", "group"), [(576, 64), (96, 32), (48, 16), (100, 100), (7, 7)]
)
def test_group_divides_in_features(in_features, group):
    assert group_size(in_features) == group


@pytest.mark.parametrize("in_features", [64, 48, 100])
def test_weights_are_within_half_a_step(in_features):
    torch.manual_seed(0)
    linear = nn.Linear(in_features, 40)
    quantized = Int8Linear.from_linear(linear)
    groups = linear.weight.detach().reshape(40, -1, group_size(in_features))
    step = (groups.abs().amax(-1, keepdim=True) / 127).expand_as(groups).reshape(40, in_features)
    error = (quantized.dequantized_weight() - linear.weight).abs()
    assert (error <= step / 2 * 1.001).all()


def test_forward_multiplies_by_the_dequantized_weight():
    torch.manual_seed(0)
    linear = nn.Linear(64, 40)
    quantized = Int8Linear.from_linear(linear)
    x = torch.randn(2, 3, 64)
    expected = functional.linear(x, quantized.weight, linear.bias)
    torch.testing.assert_close(quantized(x), expected, rtol=1e-4, atol=1e-4)


def test_conv1d_is_its_transpose():
    torch.manual_seed(0)
    conv = Conv1D(40, 64)
    nn.init.normal_(conv.bias)
    quantized = Int8Linear.from_linear(conv)
    assert (quantized.in_features, quantized.out_features) == (64, 40)
    x = torch.randn(5, 64)
    torch.testing.assert_close(quantized(x), conv(x), rtol=0, atol=1e-2)


def test_a_row_of_zeros_stays_zero():
    linear = nn.Linear(64, 2, bias=False)
    nn.init.zeros_(linear.weight)
    assert not Int8Linear.from_linear(linear)(torch.randn(3, 64)).any()


def test_gradient_flows_through_the_dequantized_weight():
    torch.manual_seed(0)
    quantized = Int8Linear.from_linear(nn.Linear(64, 40))
    x = torch.randn(2, 3, 64, requires_grad=True)
    grad = torch.randn(2, 3, 40)
    quantized(x).backward(grad)
    torch.testing.assert_close(x.grad, grad @ quantized.weight)
    assert all(parameter.grad is None for parameter in quantized.parameters())


def test_state_dict_holds_the_packed_weight_once():
    quantized = Int8Linear.from_linear(nn.Linear(64, 40))
    state = quantized.state_dict()
    assert set(state) == {"codes", "scales", "bias"}
    other = Int8Linear.from_linear(nn.Linear(64, 40))
    other.load_state_dict(state)
    x = torch.randn(3, 64)
    assert torch.equal(other(x), quantized(x))
    assert torch.equal(copy.deepcopy(quantized)(x), quantized(x))


def test_peft_trains_lora_through_it():
    torch.manual_seed(0)
    model = nn.Sequential()
    model.add_module("first", Int8Linear.from_linear(nn.Linear(64, 64)))
    model.add_module("second", Int8Linear.from_linear(nn.Linear(64, 64)))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=["first", "second"]))
    optimizer = torch.optim.SGD([p for p in tuned.parameters() if p.requires_grad], lr=1.0)
    x, target = torch.randn(8, 64), torch.randn(8, 64)
    losses = []
    for _ in range(20):
        loss = functional.mse_loss(tuned(x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] * 0.95
    for name, tensor in before.items():
        module, _, buffer = name.rpartition(".")
        layer = tuned.base_model.model.get_submodule(module).base_layer
        assert torch.equal(getattr(layer, buffer), tensor)
