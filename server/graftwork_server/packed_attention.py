"""What an adapter does inside attention, ready to be applied to the tokens of a step."""

import math
from collections import deque
from dataclasses import dataclass

import torch
from graftwork_adapters.canonical_parts import GatedPrompt, KeyValuePrefix
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, slots=True)
class PackedPrefix:
    """Keys and values of virtual tokens, by layer."""

    keys: Tensor  # (num_layers, num_virtual_tokens, num_kv_heads, head_dim)
    values: Tensor

    @classmethod
    def pack(
        cls, prefix: KeyValuePrefix, device: torch.device, dtype: torch.dtype
    ) -> "PackedPrefix":
        return cls(prefix.keys.to(device, dtype), prefix.values.to(device, dtype))


class PackedGatedPrompt:
    """Computes a gated prompt's term from the queries of one layer."""

    def __init__(
        self, prompt: GatedPrompt, num_heads: int, device: torch.device, dtype: torch.dtype
    ) -> None:
        repeats = num_heads // prompt.keys.shape[0]
        keys = prompt.keys.repeat_interleave(repeats, dim=0)
        values = prompt.values.repeat_interleave(repeats, dim=0)
        self._keys = keys.to(device, dtype)  # (num_heads, prompt_length, head_dim)
        self._values = values.to(device, dtype)
        self._gate = prompt.gate
        self._after_output = prompt.after_output
        self._pending: deque[Tensor] = deque()

    @property
    def num_bytes(self) -> int:
        return self._keys.nbytes + self._values.nbytes

    def attend(self, query: Tensor, output: Tensor) -> None:
        """Adds the term to the heads' output in place, or keeps it for `add_pending`.

        query, output: (num_heads, num_rows, head_dim).
        """
        scores = query @ self._keys.transpose(1, 2) / math.sqrt(query.shape[-1])
        weights = self._gate * functional.softmax(scores, dim=-1, dtype=torch.float32)
        term = weights.to(self._values.dtype) @ self._values
        if self._after_output:
            self._pending.append(term.transpose(0, 1).reshape(term.shape[1], -1))
        else:
            output += term

    def add_pending(self, x: Tensor, y: Tensor) -> Tensor:  # noqa: ARG002 - a RowEdit
        """Adds what `attend` has kept to the attention module's output."""
        return y + self._pending.popleft()
