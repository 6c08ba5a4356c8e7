import pytest
import torch
from graftwork_trainer.base.packed_rows import PackedRows, packed_attention_forward
from hypothesis import given
from hypothesis import strategies as st

lengths = st.lists(st.integers(1, 12), min_size=1, max_size=5)


def masked(query, key, value, mask):
    """Attention by definition: (heads, tokens, dim), mask (tokens, tokens)."""
    weights = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
    return (weights.masked_fill(~mask, -torch.inf).softmax(-1) @ value).transpose(0, 1)


def spans_mask(span_of_token):
    span = torch.tensor(span_of_token)
    positions = torch.arange(len(span))
    return (span[:, None] == span) & (positions[:, None] >= positions)


def random_heads(num_tokens):
    torch.manual_seed(num_tokens)
    query, key, value = torch.randn(3, 1, 4, num_tokens, 8).unbind(0)
    return query, key[:, :2], value[:, :2]


@given(lengths)
def test_tokens_see_their_own_sequence(lengths):
    query, key, value = random_heads(sum(lengths))
    output, _ = packed_attention_forward(
        None, query, key, value, None, packed_rows=PackedRows.of(lengths)
    )
    mask = spans_mask([i for i, n in enumerate(lengths) for _ in range(n)])
    expected = masked(
        query[0], key[0].repeat_interleave(2, 0), value[0].repeat_interleave(2, 0), mask
    )
    torch.testing.assert_close(output[0], expected)


@given(lengths, st.sampled_from([2, 4, 6]))
def test_longlora_shifts_half_of_the_heads_by_half_a_group(lengths, size):
    query, key, value = random_heads(sum(lengths))
    rows = PackedRows.of(lengths, group_size=size)
    output, _ = packed_attention_forward(None, query, key, value, None, packed_rows=rows)
    whole = [query[0], key[0].repeat_interleave(2, 0), value[0].repeat_interleave(2, 0)]
    for half, shift in ((slice(0, 2), 0), (slice(2, 4), size // 2)):
        groups = [(i, (place + shift) // size) for i, n in enumerate(lengths) for place in range(n)]
        names = {group: number for number, group in enumerate(dict.fromkeys(groups))}
        mask = spans_mask([names[group] for group in groups])
        expected = masked(*(x[half] for x in whole), mask)
        torch.testing.assert_close(output[0][:, half], expected)


@pytest.mark.parametrize("window", [1, 3, 50])
def test_a_sliding_window_is_kept(window):
    lengths = [9, 4]
    query, key, value = random_heads(13)
    output, _ = packed_attention_forward(
        None, query, key, value, None, packed_rows=PackedRows.of(lengths), sliding_window=window
    )
    positions = torch.arange(13)
    mask = spans_mask([0] * 9 + [1] * 4) & (positions[:, None] - positions < window)
    expected = masked(
        query[0], key[0].repeat_interleave(2, 0), value[0].repeat_interleave(2, 0), mask
    )
    torch.testing.assert_close(output[0], expected)
