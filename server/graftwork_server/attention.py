"""Paged attention behind transformers' attention interface.

The base's own attention modules call `paged_attention_forward` with the queries, keys and values
of all tokens of a step, laid end to end in a batch of one; the step tells which belong together.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import AttentionInterface

from graftwork_server.kernels.gated_prompts import GatedPromptTable, add_gated_prompts
from graftwork_server.kernels.paged_attention import paged_attention, store_kv
from graftwork_server.kernels.segments import Segments
from graftwork_server.packed_attention import PackedGatedPrompt, PackedPrefix

PAGED_ATTENTION = "graftwork_paged"


@dataclass(frozen=True, slots=True)
class KvCache:
    """Keys and values of one layer, by blocks of positions."""

    keys: Tensor  # (num_blocks, num_kv_heads, head_dim, block_size)
    values: Tensor  # (num_blocks, num_kv_heads, block_size, head_dim)


@dataclass(frozen=True, slots=True)
class PrefixWrite:
    """Virtual tokens of a step whose keys and values are the adapter's own, not computed."""

    token_rows: Tensor  # (num_virtual,) int64: tokens of the step
    prefix_rows: Tensor  # (num_virtual,) int64: rows of the prefix
    prefix: PackedPrefix

    def apply(self, layer: int, key: Tensor, value: Tensor) -> None:
        """Overwrites (num_tokens, num_kv_heads, head_dim) in place."""
        key[self.token_rows] = self.prefix.keys[layer, self.prefix_rows]
        value[self.token_rows] = self.prefix.values[layer, self.prefix_rows]


@dataclass(frozen=True, slots=True)
class GatedRun:
    """Tokens of a step that also attend to gated prompts."""

    start: int
    stop: int
    prompts: Mapping[int, PackedGatedPrompt]  # by layer


@dataclass(frozen=True, slots=True)
class GatedTokens:
    """Which tokens of a step belong to which slot, and the gated prompts of the slots."""

    segments: Segments
    tables: Mapping[int, GatedPromptTable]  # by layer


@dataclass(frozen=True, slots=True)
class AttentionStep:
    """Which tokens of a step see which blocks; passed to every layer as `attention_step`."""

    caches: tuple[KvCache, ...]  # by layer
    slot_mapping: Tensor  # (num_tokens,) int64: block * block_size + offset of each token
    block_tables: Tensor  # (num_sequences, max_blocks) int32
    # These two stay on the CPU: read there, they would make every layer wait for a device.
    query_start: Tensor  # (num_sequences + 1,) int32: first token of each sequence
    context_lens: Tensor  # (num_sequences,) int32: keys that the last token sees
    prefix_writes: tuple[PrefixWrite, ...] = ()
    gated_runs: tuple[GatedRun, ...] = ()  # for torch
    gated_tokens: GatedTokens | None = None  # for the kernel


def attend(
    step: AttentionStep,
    layer: int,
    query: Tensor,  # (num_tokens, num_heads, head_dim)
    key: Tensor,  # (num_tokens, num_kv_heads, head_dim)
    value: Tensor,  # the same
    *,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Stores the step's keys and values, and attends; returns (num_tokens, num_heads, head_dim).

    Prefixes overwrite rows of `key` and `value` in place before they are stored.
    """
    cache = step.caches[layer]
    for write in step.prefix_writes:
        write.apply(layer, key, value)
    store_kv(key, value, cache.keys, cache.values, step.slot_mapping)
    output = paged_attention(
        query,
        cache.keys,
        cache.values,
        block_tables=step.block_tables,
        query_start=step.query_start,
        context_lens=step.context_lens,
        scale=scale,
        sliding_window=sliding_window,
        softcap=softcap,
    )
    if step.gated_tokens is not None and layer in step.gated_tokens.tables:
        add_gated_prompts(
            output,
            query,
            step.gated_tokens.tables[layer],
            step.gated_tokens.segments,
            num_kv_heads=key.shape[1],
            scale=query.shape[-1] ** -0.5,
        )
    for run in step.gated_runs:
        prompt = run.prompts.get(layer)
        if prompt is not None:
            rows = slice(run.start, run.stop)
            prompt.attend(query[rows].transpose(0, 1), output[rows].transpose(0, 1))
    return output


def paged_attention_forward(
    module: nn.Module,
    query: Tensor,  # (1, num_heads, num_tokens, head_dim)
    key: Tensor,  # (1, num_kv_heads, num_tokens, head_dim)
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - causality follows from the positions
    *,
    attention_step: AttentionStep,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers' attention modules call; returns (1, num_tokens, num_heads, head_dim)."""
    output = attend(
        attention_step,
        cast("int", module.layer_idx),  # every attention module of transformers has one
        query[0].transpose(0, 1),
        key[0].transpose(0, 1),
        value[0].transpose(0, 1),
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        sliding_window=sliding_window,
        softcap=softcap,
    )
    return output.unsqueeze(0), None


def register() -> None:
    """Makes transformers know the name; idempotent."""
    AttentionInterface.register(PAGED_ATTENTION, paged_attention_forward)


def allocate_kv_caches(
    shapes: list[tuple[int, int]],
    *,
    num_blocks: int,
    block_size: int,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[KvCache, ...]:
    """One cache for each layer, by its (num_kv_heads, head_dim).

    Not zeroed: a query sees only positions that its sequence has stored, and filling a gigabyte
    takes longer than all else that a start does with the base.
    """
    caches = []
    for num_kv_heads, head_dim in shapes:
        blocks = (num_blocks, num_kv_heads)
        keys = torch.empty((*blocks, head_dim, block_size), dtype=dtype, device=device)
        values = torch.empty((*blocks, block_size, head_dim), dtype=dtype, device=device)
        caches.append(KvCache(keys, values))
    return tuple(caches)


def kv_bytes_per_block(shapes: list[tuple[int, int]], block_size: int, dtype: torch.dtype) -> int:
    """Bytes that one block takes over all layers."""
    per_token = sum(2 * num_kv_heads * head_dim for num_kv_heads, head_dim in shapes)
    return per_token * block_size * dtype.itemsize
