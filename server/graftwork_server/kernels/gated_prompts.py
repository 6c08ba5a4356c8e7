"""Gated prompts of many slots in one layer's attention, in one call.

The reference is `packed_attention.PackedGatedPrompt`.
"""

from dataclasses import dataclass

import torch
from graftwork_adapters.canonical_parts import GatedPrompt
from torch import Tensor
from torch.nn import functional

from graftwork_server.kernels.segments import Segments
from graftwork_server.kernels.slot_table import SlotTable

_WIDEST = 16  # lanes; inner dimensions are padded to a multiple


@dataclass(frozen=True, slots=True)
class KernelGatedPrompt:
    keys: Tensor  # (num_kv_heads, head_dim, padded prompt_length) float32
    values: Tensor  # (num_kv_heads, prompt_length, padded head_dim) float32
    gate: Tensor  # (1,) float32

    @classmethod
    def pack(cls, prompt: GatedPrompt) -> "KernelGatedPrompt":
        return cls(
            _padded(prompt.keys.float().transpose(1, 2)),
            _padded(prompt.values.float()),
            torch.tensor([prompt.gate]),
        )

    @property
    def num_bytes(self) -> int:
        return self.keys.nbytes + self.values.nbytes


def _padded(tensor: Tensor) -> Tensor:
    return functional.pad(tensor, (0, -tensor.shape[-1] % _WIDEST)).contiguous()


class GatedPromptTable(SlotTable[KernelGatedPrompt]):
    """The gated prompts of one layer by adapter slot."""

    def __init__(self, max_slots: int) -> None:
        super().__init__(max_slots, 4)

    def place(self, slot: int, prompt: KernelGatedPrompt) -> None:
        addresses = prompt.keys.data_ptr(), prompt.values.data_ptr(), prompt.gate.data_ptr()
        self.set(slot, prompt, (*addresses, prompt.values.shape[1]))


def add_gated_prompts(
    output: Tensor,
    query: Tensor,
    table: GatedPromptTable,
    segments: Segments,
    *,
    num_kv_heads: int,
    scale: float,
) -> None:
    """`output += gate * softmax(query keys^T * scale) values` for the rows whose slots have a
    prompt, in place.

    output: (num_tokens, num_heads, head_dim) float32, contiguous; query: the same, may be strided

    Raises RuntimeError where shapes or dtypes do not fit.
    """
    torch.ops.graftwork.add_gated_prompts.default(
        output, query, table.addresses, segments.run_table, num_kv_heads, scale
    )
