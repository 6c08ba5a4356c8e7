"""How dearly leaving the base is paid for."""

from dataclasses import dataclass


@dataclass(slots=True)
class AdaptiveKl:
    """A coefficient that steers the divergence from the base to a target.

    The log-space proportional controller of Ziegler et al., "Fine-tuning language models from human
    preferences" (2019, arXiv:1909.08593), section 2.2, with its error clipped to 20%.
    """

    coefficient: float  # reward per nat
    target: float  # nats for each answer
    horizon: float  # answers; the coefficient changes by at most 20% within so many

    def __post_init__(self) -> None:
        for name in ("coefficient", "target", "horizon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be greater than 0")

    def update(self, kl: float, num_answers: int) -> None:
        """After a batch of `num_answers` whose mean divergence was `kl` nats for each answer."""
        error = min(max(kl / self.target - 1, -0.2), 0.2)
        self.coefficient *= 1 + error * num_answers / self.horizon
