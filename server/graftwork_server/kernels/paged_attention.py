"""Causal attention over a paged key/value cache (Kwon et al., arXiv:2309.06180).

The cache of a layer is two tensors: keys (num_blocks, num_kv_heads, head_dim, block_size), turned
around, and values (num_blocks, num_kv_heads, block_size, head_dim). Position p of a sequence is
offset p % block_size of its block p // block_size. On the CPU a query's bits depend on its own keys
only: not on other sequences, and not on how its prompt was cut into chunks.
"""

import torch
from torch import Tensor

from graftwork_server.kernels.build import kernels_loaded


def store_kv(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Writes the keys and values of a step's tokens into the cache, in place.

    k, v: (tokens, kv_heads, head_dim) float32; tokens and heads may be strided
    k_cache: (num_blocks, kv_heads, head_dim, block_size) float32
    v_cache: (num_blocks, kv_heads, block_size, head_dim) float32
    slot_mapping: (tokens,) int64, block * block_size + offset of each token

    Raises RuntimeError where shapes, dtypes or indices do not fit.
    """
    if k.device.type == "cpu" and kernels_loaded():
        torch.ops.graftwork.store_kv.default(k, v, k_cache, v_cache, slot_mapping)
    else:
        store_kv_reference(k, v, k_cache, v_cache, slot_mapping)


def store_kv_reference(
    k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor
) -> None:
    """The same in plain torch, on any device."""
    block_size = v_cache.shape[2]
    blocks, offsets = slot_mapping // block_size, slot_mapping % block_size
    k_cache[blocks, :, :, offsets] = k
    v_cache[blocks, :, offsets] = v


def paged_attention(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    block_tables: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """Attention of a ragged batch; each sequence's queries are its last positions.

    q: (tokens, heads, head_dim) float32, heads a multiple of kv_heads; may be strided
    k_cache: (num_blocks, kv_heads, head_dim, block_size) float32, keys of q included
    v_cache: (num_blocks, kv_heads, block_size, head_dim) float32
    block_tables: (sequences, max_blocks) int32
    query_start: (sequences + 1,) int32, first token of each sequence in q, then their number
    context_lens: (sequences,) int32, keys visible to the last query of each sequence; this one and
        query_start are on the CPU whatever the device of q
    scale: factor of the scores
    sliding_window: a query sees only this many last keys, its own included
    softcap: scores become softcap * tanh(score / softcap) (Gemma 2)
    returns: (tokens, heads, head_dim) float32

    Raises RuntimeError where shapes, dtypes or indices do not fit.
    """
    if q.device.type == "cpu" and kernels_loaded():
        out: Tensor = torch.ops.graftwork.paged_attention.default(
            q,
            k_cache,
            v_cache,
            block_tables,
            query_start,
            context_lens,
            scale,
            sliding_window,
            softcap,
        )
        return out
    return paged_attention_reference(
        q,
        k_cache,
        v_cache,
        block_tables=block_tables,
        query_start=query_start,
        context_lens=context_lens,
        scale=scale,
        sliding_window=sliding_window,
        softcap=softcap,
    )


def paged_attention_reference(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    block_tables: Tensor,
    query_start: Tensor,
    context_lens: Tensor,
    scale: float,
    sliding_window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The same in plain torch, on any device, one sequence after the other."""
    block_size = v_cache.shape[2]
    group = q.shape[1] // k_cache.shape[1]
    starts, contexts = query_start.tolist(), context_lens.tolist()
    out = torch.empty(q.shape, dtype=q.dtype, device=q.device)
    for i, context in enumerate(contexts):
        start, stop = starts[i], starts[i + 1]
        blocks = block_tables[i, : -(-context // block_size)].long()
        keys, values = (
            # (kv_heads, context, head_dim), then one copy per query head
            cache[blocks].transpose(0, 1).flatten(1, 2)[:, :context].repeat_interleave(group, dim=0)
            for cache in (k_cache.transpose(2, 3), v_cache)
        )
        scores = q[start:stop].transpose(0, 1) @ keys.transpose(1, 2) * scale
        if softcap is not None:
            scores = torch.tanh(scores / softcap) * softcap
        query_position = torch.arange(context - (stop - start), context, device=q.device)[:, None]
        key_position = torch.arange(context, device=q.device)
        hidden = key_position > query_position
        if sliding_window is not None:
            hidden |= key_position <= query_position - sliding_window
        weights = scores.masked_fill(hidden, -torch.inf).softmax(dim=-1, dtype=torch.float32)
        out[start:stop] = (weights.to(q.dtype) @ values).transpose(0, 1)
    return out
