"""What PPO expects of an answer at each of its tokens."""

import torch
from torch import Tensor, nn


class ValueHead(nn.Module):
    """A linear layer on the policy's last hidden states. It trains with the adapter and is no part
    of it: only the trainer needs values.

    It starts at zero, so that the first values say nothing rather than something wrong (Huang et
    al., "The N implementation details of RLHF with PPO", 2023).
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(hidden_size, 1)
        with torch.no_grad():
            self.linear.weight.zero_()
            self.linear.bias.zero_()

    def forward(self, hidden_states: Tensor) -> Tensor:
        """(batch, time) values of hidden states (batch, time, hidden_size)."""
        values: Tensor = self.linear(hidden_states.to(self.linear.weight.dtype)).squeeze(-1)
        return values
