from dataclasses import dataclass

import pytest
import torch
from graftwork_server.kernels.paged_attention import (
    paged_attention,
    paged_attention_reference,
    store_kv,
    store_kv_reference,
)
from hypothesis import given, settings
from hypothesis import strategies as st


@dataclass
class Batch:
    k_cache: torch.Tensor
    v_cache: torch.Tensor
    block_tables: torch.Tensor
    query_start: torch.Tensor
    context_lens: torch.Tensor

    def arguments(self):
        return {
            "block_tables": self.block_tables,
            "query_start": self.query_start,
            "context_lens": self.context_lens,
        }


def make_batch(sequences, kv_heads, block_size, head_dim):
    """sequences: (number of queries, context length)."""
    blocks = [-(-context // block_size) for _, context in sequences]
    total = sum(blocks) + 2
    # What no sequence owns is garbage that must not be read.
    k_cache = torch.full((total, kv_heads, head_dim, block_size), torch.nan)
    v_cache = torch.full((total, kv_heads, block_size, head_dim), torch.nan)
    free = torch.randperm(total).tolist()
    tables = torch.zeros(len(sequences), max([*blocks, 1]), dtype=torch.int32)
    for i, (_, context) in enumerate(sequences):
        own = torch.tensor([free.pop() for _ in range(blocks[i])], dtype=torch.int32)
        tables[i, : blocks[i]] = own
        positions = torch.arange(context)
        mapping = own.long()[positions // block_size] * block_size + positions % block_size
        k, v = torch.randn(2, context, kv_heads, head_dim)
        store_kv(k, v, k_cache, v_cache, mapping)
    starts = torch.tensor([0, *(queries for queries, _ in sequences)]).cumsum(0).int()
    contexts = torch.tensor([context for _, context in sequences], dtype=torch.int32)
    return Batch(k_cache, v_cache, tables, starts, contexts)


sequence = st.integers(1, 150).flatmap(
    lambda context: st.tuples(st.integers(0, min(context, 70)), st.just(context))
)


@settings(max_examples=60)
@given(
    sequences=st.lists(sequence, min_size=1, max_size=4),
    kv_heads=st.sampled_from([1, 2, 3]),
    group=st.sampled_from([1, 3, 4]),
    block_size=st.sampled_from([1, 16, 24, 32]),
    head_dim=st.sampled_from([4, 16, 20, 64, 80]),
    sliding_window=st.sampled_from([None, 1, 7, 70]),
    softcap=st.sampled_from([None, 2.0]),
)
def test_kernel_agrees_with_reference(
    sequences, kv_heads, group, block_size, head_dim, sliding_window, softcap
):
    torch.manual_seed(0)
    batch = make_batch(sequences, kv_heads, block_size, head_dim)
    q = torch.randn(int(batch.query_start[-1]), kv_heads * group, head_dim)
    options = {"scale": head_dim**-0.5, "sliding_window": sliding_window, "softcap": softcap}
    out = paged_attention(q, batch.k_cache, batch.v_cache, **batch.arguments(), **options)
    # The reference multiplies by weights of zero, so it may not see the garbage.
    k_cache, v_cache = batch.k_cache.nan_to_num(), batch.v_cache.nan_to_num()
    expected = paged_attention_reference(q, k_cache, v_cache, **batch.arguments(), **options)
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=2e-5)


@settings(max_examples=25)
@given(
    context=st.integers(1, 300),
    chunk=st.integers(1, 100),
    window=st.sampled_from([None, 5, 90]),
    block_size=st.sampled_from([16, 20]),
    seed=st.integers(0, 1000),
)
def test_bits_depend_neither_on_chunking_nor_on_neighbours(
    context, chunk, window, block_size, seed
):
    torch.manual_seed(seed)
    heads, kv_heads, dim = 6, 2, 16
    batch = make_batch([(context, context), (3, 40)], kv_heads, block_size, dim)
    q = torch.randn(context + 3, heads, dim)
    options = {"scale": 0.25, "sliding_window": window}
    whole = paged_attention(q, batch.k_cache, batch.v_cache, **batch.arguments(), **options)
    for start in range(0, context, chunk):
        stop = min(context, start + chunk)
        part = paged_attention(
            q[start:stop],
            batch.k_cache,
            batch.v_cache,
            block_tables=batch.block_tables[:1],
            query_start=torch.tensor([0, stop - start], dtype=torch.int32),
            context_lens=torch.tensor([stop], dtype=torch.int32),
            **options,
        )
        assert torch.equal(part, whole[start:stop])


def test_large_scores():
    torch.manual_seed(0)
    batch = make_batch([(5, 100)], 1, 16, 32)
    q = torch.randn(5, 1, 32) * 100
    out = paged_attention(q, batch.k_cache, batch.v_cache, **batch.arguments(), scale=1.0)
    k_cache, v_cache = batch.k_cache.nan_to_num(), batch.v_cache.nan_to_num()
    expected = paged_attention_reference(q, k_cache, v_cache, **batch.arguments(), scale=1.0)
    torch.testing.assert_close(out, expected, rtol=1e-3, atol=1e-3)


def test_strided_queries_keys_and_values():
    torch.manual_seed(0)
    batch = make_batch([(7, 20), (1, 3)], 2, 16, 16)
    q = torch.randn(4, 8, 16).transpose(0, 1)  # (tokens, heads, dim), heads outermost
    out = paged_attention(q, batch.k_cache, batch.v_cache, **batch.arguments(), scale=0.3)
    dense = paged_attention(
        q.contiguous(), batch.k_cache, batch.v_cache, **batch.arguments(), scale=0.3
    )
    assert torch.equal(out, dense)
    k, v = torch.randn(2, 2, 8, 16).transpose(1, 2)
    mapping = torch.randperm(40)[:8]
    found, expected = ((torch.zeros(2, 2, 16, 20), torch.zeros(2, 2, 20, 16)) for _ in range(2))
    store_kv(k, v, *found, mapping)
    store_kv_reference(k, v, *expected, mapping)
    for cache, wanted in zip(found, expected, strict=True):
        assert torch.equal(cache, wanted)


def test_indices_outside_the_cache_are_errors():
    batch = make_batch([(1, 20)], 1, 16, 16)
    q = torch.randn(1, 1, 16)
    batch.block_tables[0, 1] = 99
    with pytest.raises(RuntimeError, match="block 99"):
        paged_attention(q, batch.k_cache, batch.v_cache, **batch.arguments(), scale=1.0)
    with pytest.raises(RuntimeError, match="slot_mapping"):
        store_kv(q, q, batch.k_cache, batch.v_cache, torch.tensor([10_000]))
    batch.context_lens[0] = 33
    with pytest.raises(RuntimeError, match="exceeds its blocks"):
        paged_attention(q, batch.k_cache, batch.v_cache, **batch.arguments(), scale=1.0)
