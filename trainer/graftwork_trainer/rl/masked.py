"""Means over the tokens that count. Masks are (batch, time) bool, true at the answers' tokens."""

from torch import Tensor


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """The mean of `values` where `mask` holds, as a scalar; both have one shape.

    Every token weighs the same, whichever answer it is in: the mean within each answer first, as in
    the first GRPO paper, favours tokens of short answers (Liu et al., "Understanding R1-Zero-like
    training", 2025, arXiv:2503.20783).

    Raises ValueError where no token counts.
    """
    count = mask.sum()
    if not count:
        raise ValueError("no token counts")
    return values.where(mask, values.new_zeros(())).sum() / count


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """(batch,): the sum over each answer's tokens."""
    return values.where(mask, values.new_zeros(())).sum(dim=-1)


def whiten(values: Tensor, mask: Tensor, *, shift_mean: bool = True) -> Tensor:
    """`values` scaled to a variance of one over the masked tokens, and moved to a mean of zero
    unless `shift_mean` is false; zero elsewhere.

    The variance is the biased one, with 1e-8 below the root, as in the reproduction by Huang et
    al., "The N implementation details of RLHF with PPO" (2023), which keeps the mean of rewards.
    """
    mean = masked_mean(values, mask)
    variance = masked_mean((values - mean) ** 2, mask)
    whitened = (values - mean) * (variance + 1e-8).rsqrt()
    if not shift_mean:
        whitened = whitened + mean
    return whitened.where(mask, values.new_zeros(()))
