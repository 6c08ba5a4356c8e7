"""Linear modules called together give what each gives by itself, whatever adapters do to them."""

import pytest
import torch
from graftwork_server.kernels.build import load_kernels
from graftwork_server.quantization.int8 import Int8Linear
from graftwork_server.side_by_side import Grafted, multiply_side_by_side
from torch import Tensor, nn


class Shifting(Grafted):
    """Adds one to the input, where it is told to, and x times two to the output."""

    def __init__(self, base: nn.Module, *, input_too: bool) -> None:
        super().__init__()
        self.base = base
        self._input_too = input_too

    def forward(self, x: Tensor) -> Tensor:
        changed = x + 1 if self._input_too else x
        return self.finish(changed, self.base(changed))

    def shares_input(self) -> bool:
        return not self._input_too

    def low_rank(self) -> None:
        return None

    def finish(self, x: Tensor, y: Tensor) -> Tensor:
        return y.add_(2 * x.sum(-1, keepdim=True))


def hooked(linear: nn.Module) -> nn.Module:
    linear.register_forward_hook(lambda _module, _args, y: y + 3)
    return linear


@pytest.fixture
def linears() -> list[Int8Linear]:
    load_kernels()
    torch.manual_seed(0)
    return [Int8Linear.from_linear(nn.Linear(64, n, bias=n == 40)) for n in (96, 40, 33)]


@pytest.mark.parametrize(
    "change",
    [
        lambda linear: linear,
        lambda linear: Shifting(linear, input_too=False),
        lambda linear: Shifting(linear, input_too=True),
        hooked,
        lambda linear: Shifting(hooked(linear), input_too=False),
        lambda linear: nn.Linear(64, linear.out_features),
    ],
    ids=["plain", "output", "input", "hook", "hook-and-output", "float"],
)
@pytest.mark.parametrize("shape", [(1, 5, 64), (3, 64), (1, 0, 64)])
def test_each_gives_what_it_gives_by_itself(linears, change, shape):
    x = torch.randn(shape)
    modules = [linears[0], change(linears[1]), Shifting(linears[2], input_too=False)]
    with torch.inference_mode():
        expected = [module(x) for module in modules]
        found = multiply_side_by_side(x, modules)
    for y, alone in zip(found, expected, strict=True):
        assert torch.equal(y, alone)


def test_a_gradient_comes_back_through_all(linears):
    x = torch.randn(2, 64, requires_grad=True)
    sum(y.sum() for y in multiply_side_by_side(x, linears)).backward()
    expected = sum(linear.dequantized_weight().sum(0) for linear in linears)
    torch.testing.assert_close(x.grad, expected.expand(2, -1))
