"""The gradient of each loss through a tiny model, against finite differences."""

import pytest
import torch
from graftwork_trainer.rl.losses import (
    clipped_sequence_surrogate,
    clipped_surrogate,
    clipped_value_loss,
    kl_k3,
    token_entropy,
    token_logprobs,
)
from graftwork_trainer.rl.masked import masked_mean
from graftwork_trainer.rl.value_head import ValueHead
from torch import nn

from tests.trainer.rl.trajectories import random_mask, random_values

VOCAB, HIDDEN, BATCH, TIME = 6, 4, 3, 5
STEP = 1e-5


class TinyPolicy(nn.Module):
    """A recurrent policy with a value head, in double precision."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCAB, HIDDEN)
        self.core = nn.GRU(HIDDEN, HIDDEN, batch_first=True)
        self.out = nn.Linear(HIDDEN, VOCAB)
        self.value_head = ValueHead(HIDDEN)
        nn.init.normal_(self.value_head.linear.weight)
        self.double()

    def forward(self, ids):
        hidden, _ = self.core(self.embedding(ids))
        return self.out(hidden), self.value_head(hidden)


def ppo(model, ids):
    """All that PPO adds up: surrogate, value and entropy."""
    mask = random_mask(BATCH, TIME, 1)
    logits, values = model(ids[:, :-1])
    logprobs = token_logprobs(logits, ids[:, 1:])
    old = logprobs.detach().clone()
    # Old log-probabilities and values near, not at, the present ones: some are clipped, none is on
    # the edge.
    old = OLD.setdefault("logprobs", old + random_values(BATCH, TIME, seed=2, scale=0.3))
    old_values = OLD.setdefault("values", values.detach() + 0.3)
    policy = clipped_surrogate(
        logprobs, old, random_values(BATCH, TIME, seed=3), mask, clip=0.2,
        weights=random_values(BATCH, TIME, seed=4).abs(),
    )  # fmt: skip
    assert 0 < policy.clip_fraction < 1
    returns = random_values(BATCH, TIME, seed=5)
    value = clipped_value_loss(values, old_values, returns, mask, clip=0.2)
    return policy.loss + 0.1 * value - 0.01 * masked_mean(token_entropy(logits), mask)


def grpo(model, ids):
    mask = random_mask(BATCH, TIME, 1)
    logprobs = token_logprobs(model(ids[:, :-1])[0], ids[:, 1:])
    old = OLD.setdefault(
        "logprobs", logprobs.detach() + random_values(BATCH, TIME, seed=2, scale=0.3)
    )
    advantages = random_values(BATCH, 1, seed=3)
    policy = clipped_surrogate(logprobs, old, advantages, mask, clip=0.2)
    return policy.loss + 0.05 * masked_mean(kl_k3(logprobs, old - 0.1), mask)


def rloo(model, ids):
    mask = random_mask(BATCH, TIME, 1)
    logprobs = token_logprobs(model(ids[:, :-1])[0], ids[:, 1:])
    old = OLD.setdefault(
        "logprobs", logprobs.detach() + random_values(BATCH, TIME, seed=2, scale=0.1)
    )
    return clipped_sequence_surrogate(
        logprobs, old, random_values(BATCH, seed=3), mask, clip=0.2
    ).loss


OLD: dict[str, torch.Tensor] = {}


@pytest.mark.parametrize("loss_of", [ppo, grpo, rloo])
def test_gradient_is_that_of_finite_differences(loss_of):
    OLD.clear()
    model = TinyPolicy()
    ids = torch.randint(VOCAB, (BATCH, TIME + 1), generator=torch.Generator().manual_seed(0))
    loss_of(model, ids).backward()

    for name, parameter in model.named_parameters():
        flat = parameter.data.view(-1)
        gradient = torch.zeros_like(flat) if parameter.grad is None else parameter.grad.view(-1)
        for place in range(len(flat)):
            kept = flat[place].item()
            with torch.no_grad():
                flat[place] = kept + STEP
                above = loss_of(model, ids).item()
                flat[place] = kept - STEP
                below = loss_of(model, ids).item()
                flat[place] = kept
            difference = (above - below) / (2 * STEP)
            assert gradient[place].item() == pytest.approx(difference, abs=1e-6), (name, place)


def test_with_nothing_moved_the_gradient_is_the_policy_gradient():
    """At the rollout's own policy, PPO's and GRPO's gradient is that of -A log p (REINFORCE)."""
    model = TinyPolicy()
    ids = torch.randint(VOCAB, (BATCH, TIME + 1), generator=torch.Generator().manual_seed(0))
    mask, advantages = random_mask(BATCH, TIME, 1), random_values(BATCH, TIME, seed=3)
    logprobs = token_logprobs(model(ids[:, :-1])[0], ids[:, 1:])
    loss = clipped_surrogate(logprobs, logprobs.detach(), advantages, mask, clip=0.2).loss
    plain = -masked_mean(advantages * logprobs, mask)
    parameters = [p for name, p in model.named_parameters() if "value_head" not in name]
    for one, other in zip(
        torch.autograd.grad(loss, parameters, retain_graph=True),
        torch.autograd.grad(plain, parameters),
        strict=True,
    ):
        torch.testing.assert_close(one, other)
