"""What PPO, GRPO and RLOO minimize. Tensors are (batch, time) at the answers' tokens, padded on the
right, with a bool mask; log-probabilities are in nats.

Three sets of log-probabilities take part: `logprobs` of the policy being trained, with gradients;
`old_logprobs` of the policy that the rollouts came from, as the trainer computes them; and the ones
that the serving engine sampled with, which differ a little from the second (`sampler_weights`).
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork_trainer.rl.masked import masked_mean, masked_sum


@dataclass(frozen=True, slots=True)
class PolicyLoss:
    """A loss to go downhill on, and how far the policy has moved from that of the rollouts."""

    loss: Tensor  # scalar, with gradients
    clip_fraction: float  # share of tokens, or of answers, whose ratio no longer counts
    approximate_kl: float  # of the rollouts' policy from the present one, per token, in nats


def token_logprobs(logits: Tensor, token_ids: Tensor) -> Tensor:
    """(batch, time): the log-probability of each token under logits (batch, time, vocab)."""
    chosen = logits.gather(-1, token_ids[..., None]).squeeze(-1)
    return chosen - logits.logsumexp(dim=-1)


def token_entropy(logits: Tensor) -> Tensor:
    """(batch, time): the entropy of the next token's distribution, in nats."""
    logprobs = logits.log_softmax(dim=-1)
    return -(logprobs.exp() * logprobs).sum(dim=-1)


def kl_k1(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """Per-token estimate of KL(policy, reference) on the policy's own samples: the log-ratio.

    Unbiased, but of either sign; Schulman, "Approximating KL divergence" (2020), names it k1.
    """
    return logprobs - reference_logprobs


def kl_k3(logprobs: Tensor, reference_logprobs: Tensor) -> Tensor:
    """The same with less variance and never negative: r - 1 - log r with r = reference / policy.

    As a loss, this is the term of GRPO.
    """
    log_ratio = reference_logprobs - logprobs
    return log_ratio.exp() - 1 - log_ratio


def sampler_weights(old_logprobs: Tensor, sampler_logprobs: Tensor, cap: float) -> Tensor:
    """Importance weights from the serving engine's distribution to the trainer's, as constants.

    The two compute the same policy with different kernels, so that rollouts are slightly off-policy
    even in the first epoch. Truncated importance sampling: min(trainer / engine, cap) at each token
    (Yao et al., "Your efficient RL framework secretly brings you off-policy RL training", 2025; the
    truncation is Ionides's, 2008).
    """
    return (old_logprobs - sampler_logprobs).exp().clamp(max=cap).detach()


def clipped_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    weights: Tensor | None = None,
) -> PolicyLoss:
    """PPO's clipped surrogate over tokens (Schulman et al., "Proximal policy optimization
    algorithms", 2017, arXiv:1707.06347): the mean of max(-A r, -A clip(r, 1 - clip, 1 + clip)).

    `advantages` are per token (batch, time); GRPO's of each answer, (batch, 1), are spread over its
    tokens. `weights` (batch, time) are those of `sampler_weights`.
    """
    log_ratio = logprobs - old_logprobs
    losses, is_clipped = _clipped(log_ratio, advantages, clip)
    if weights is not None:
        losses = losses * weights
    return PolicyLoss(
        masked_mean(losses, mask),
        _share(is_clipped, mask),
        _approximate_kl(log_ratio, mask),
    )


def clipped_sequence_surrogate(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip: float,
    weights: Tensor | None = None,
) -> PolicyLoss:
    """RLOO's: an answer is one action, so ratios are those of whole answers (Ahmadian et al., 2024,
    with PPO's clipping for later epochs, as in TRL).

    `advantages` (batch,); else as `clipped_surrogate`, and an answer's weight is the mean over its
    tokens: their product would go to 0 or the cap for any long answer.
    """
    log_ratio = logprobs - old_logprobs
    losses, is_clipped = _clipped(masked_sum(log_ratio, mask), advantages, clip)
    if weights is not None:
        losses = losses * masked_sum(weights, mask) / mask.sum(dim=-1).clamp(min=1)
    return PolicyLoss(
        losses.mean(),
        is_clipped.float().mean().item(),
        _approximate_kl(log_ratio, mask),
    )


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float
) -> Tensor:
    """Half the mean of the larger of two squared errors: the value's, and that of the value kept
    within `clip` of what it was at the rollout (detail 9 of Huang et al., "The 37 implementation
    details of PPO", 2022). `values` (batch, time) carry the gradient.
    """
    kept = old_values + (values - old_values).clamp(-clip, clip)
    larger = torch.maximum((values - returns) ** 2, (kept - returns) ** 2)
    return 0.5 * masked_mean(larger, mask)


def _clipped(log_ratio: Tensor, advantages: Tensor, clip: float) -> tuple[Tensor, Tensor]:
    """Losses, and where the clipped one is taken."""
    ratio = log_ratio.exp()
    plain = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip, 1 + clip)
    return torch.maximum(plain, clipped), clipped > plain


def _share(flags: Tensor, mask: Tensor) -> float:
    return masked_mean(flags.float(), mask).item()


def _approximate_kl(log_ratio: Tensor, mask: Tensor) -> float:
    # The samples are the old policy's, so that is the one the estimate starts from.
    return masked_mean(kl_k3(torch.zeros_like(log_ratio), log_ratio.detach()), mask).item()
