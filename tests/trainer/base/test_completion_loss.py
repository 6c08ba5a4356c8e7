import copy

import pytest
import torch
from graftwork_trainer.base.completion_loss import LogitScaling, completion_loss
from torch import nn
from torch.nn import functional


@pytest.mark.parametrize("scaling", [LogitScaling(), LogitScaling(0.5, 3.0)])
@pytest.mark.parametrize("count", [1, 64, 150])
@pytest.mark.parametrize("bias", [False, True])
def test_a_frozen_head_gives_what_autograd_gives(scaling, count, bias):
    torch.manual_seed(0)
    frozen = nn.Linear(16, 50, bias=bias).requires_grad_(False)
    trained = copy.deepcopy(frozen).requires_grad_(True)
    labels = torch.randint(0, 50, (count,))
    results = []
    for head in (frozen, trained):
        hidden = torch.randn(count, 16, generator=torch.Generator().manual_seed(1)) * 3
        hidden.requires_grad_()
        found = completion_loss(hidden, labels, head, scaling)
        (found.loss / 7).backward()
        results.append((found.loss.detach(), found.num_correct, hidden.grad))
    for mine, reference in zip(*results, strict=True):
        torch.testing.assert_close(mine, reference)
    logits = frozen(hidden) * scaling.factor
    if scaling.cap is not None:
        logits = scaling.cap * torch.tanh(logits / scaling.cap)
    expected = functional.cross_entropy(logits, labels, reduction="sum")
    torch.testing.assert_close(results[0][0], expected.detach())


def test_no_gradient_is_computed_where_none_is_wanted():
    head = nn.Linear(16, 50).requires_grad_(False)
    with torch.no_grad():
        found = completion_loss(torch.randn(3, 16), torch.tensor([1, 2, 3]), head, LogitScaling())
    assert not found.loss.requires_grad


def test_families_scale_their_logits(written_base):
    assert LogitScaling.of(written_base("llama").original) == LogitScaling()
    assert LogitScaling.of(written_base("gemma2").original).cap == 30.0
