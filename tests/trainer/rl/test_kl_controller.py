import pytest
import torch
from graftwork_trainer.rl.kl_controller import AdaptiveKl
from graftwork_trainer.rl.value_head import ValueHead
from hypothesis import given
from hypothesis import strategies as st


@given(st.floats(0, 100), st.integers(1, 1000))
def test_the_coefficient_follows_the_papers_rule(kl, num_answers):
    controller = AdaptiveKl(coefficient=0.2, target=6.0, horizon=10_000)
    controller.update(kl, num_answers)
    error = min(max((kl - 6.0) / 6.0, -0.2), 0.2)
    assert controller.coefficient == pytest.approx(0.2 * (1 + error * num_answers / 10_000))


def test_the_coefficient_settles_where_the_divergence_meets_its_target():
    """A policy whose divergence is what remains when the price is paid."""
    controller = AdaptiveKl(coefficient=1.0, target=2.0, horizon=1000)
    for _ in range(500):
        controller.update(kl=1.0 / controller.coefficient, num_answers=64)
    assert controller.coefficient == pytest.approx(0.5, rel=0.01)


@pytest.mark.parametrize("field", ["coefficient", "target", "horizon"])
def test_settings_that_steer_nothing_are_refused(field):
    settings = {"coefficient": 0.1, "target": 6.0, "horizon": 1000.0, field: 0.0}
    with pytest.raises(ValueError, match=field):
        AdaptiveKl(**settings)


def test_values_start_at_zero_and_learn():
    head = ValueHead(8)
    hidden = torch.randn(2, 3, 8, generator=torch.Generator().manual_seed(0))
    values = head(hidden)
    assert values.shape == (2, 3)
    assert not values.any()
    (values - 1).square().sum().backward()
    assert head.linear.weight.grad is not None
    assert head.linear.weight.grad.any()
