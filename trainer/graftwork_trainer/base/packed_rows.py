"""Sequences laid end to end in a batch of one, with no padding, and the attention over them.

transformers' modules take such rows as they are, with positions that begin anew at each sequence;
only attention must know which tokens belong together. It is registered in transformers' attention
interface, and told by the keyword `packed_rows`.

LongLoRA's shifted sparse attention (arXiv:2309.12307) trains here, too: half of the heads attend
within groups of tokens, half within groups shifted by half a group.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import AttentionInterface

PACKED_ATTENTION = "graftwork_packed"


@dataclass(frozen=True, slots=True)
class Spans:
    """Spans of the packed tokens that attend causally within themselves, as a padded batch."""

    rows: Tensor  # (num_spans, longest) int64: the packed token at each place; 0 where padding is
    places: Tensor  # (num_tokens,) int64: where each packed token is in the flattened batch

    @classmethod
    def of(cls, bounds: Sequence[tuple[int, int]], device: torch.device) -> "Spans":
        """bounds: (start, stop) of each span, in order and without gaps."""
        lengths = torch.tensor([stop - start for start, stop in bounds], device=device)
        longest = int(lengths.max())
        offsets = torch.arange(longest, device=device)
        starts = torch.tensor([start for start, _ in bounds], device=device)
        is_token = offsets < lengths[:, None]  # (num_spans, longest)
        rows = torch.where(is_token, starts[:, None] + offsets, 0)
        return cls(rows, is_token.flatten().nonzero().flatten())


@dataclass(frozen=True, slots=True)
class PackedRows:
    """How the tokens of a packed batch belong together."""

    sequences: Spans
    # Spans of the heads' first and second half; both are `sequences` but for LongLoRA.
    groups: Spans | None = None
    shifted_groups: Spans | None = None

    @classmethod
    def of(
        cls, lengths: Sequence[int], *, group_size: int = 0, device: torch.device | None = None
    ) -> "PackedRows":
        """lengths: tokens of each sequence; group_size: even, of LongLoRA, or 0 for none."""
        device = device or torch.device("cpu")
        bounds = _bounds(lengths)
        if not group_size:
            return cls(Spans.of(bounds, device))
        return cls(
            Spans.of(bounds, device),
            Spans.of(_split(bounds, group_size, first=group_size), device),
            Spans.of(_split(bounds, group_size, first=group_size // 2), device),
        )


def _bounds(lengths: Sequence[int]) -> list[tuple[int, int]]:
    bounds, start = [], 0
    for length in lengths:
        bounds.append((start, start + length))
        start += length
    return bounds


def _split(bounds: Sequence[tuple[int, int]], size: int, *, first: int) -> list[tuple[int, int]]:
    """Cuts each span into one of `first` tokens and then ones of `size`."""
    pieces: list[tuple[int, int]] = []
    for start, stop in bounds:
        cuts = [start, *range(start + first, stop, size), stop]
        pieces += itertools.pairwise(cuts)
    return pieces


@dataclass(frozen=True, slots=True)
class _Rule:
    scale: float
    sliding_window: int | None
    softcap: float | None


def register_packed_attention() -> None:
    """Makes transformers know the name; idempotent."""
    AttentionInterface.register(PACKED_ATTENTION, packed_attention_forward)


def packed_attention_forward(
    module: nn.Module,  # noqa: ARG001 - part of the interface
    query: Tensor,  # (1, num_heads, num_tokens, head_dim)
    key: Tensor,  # (1, num_kv_heads, num_tokens, head_dim)
    value: Tensor,
    attention_mask: Tensor | None,  # noqa: ARG001 - causality follows from the spans
    *,
    packed_rows: PackedRows,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """What transformers' attention modules call; returns (1, num_tokens, num_heads, head_dim)."""
    repeats = query.shape[1] // key.shape[1]
    if repeats > 1:
        key, value = (x.repeat_interleave(repeats, dim=1) for x in (key, value))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    rule = _Rule(scale, sliding_window, softcap)
    if packed_rows.groups is None or packed_rows.shifted_groups is None:
        output = _attend(packed_rows.sequences, query[0], key[0], value[0], rule)
        return output.unsqueeze(0), None
    half = query.shape[1] // 2
    lower = _attend(packed_rows.groups, query[0, :half], key[0, :half], value[0, :half], rule)
    upper = _attend(
        packed_rows.shifted_groups, query[0, half:], key[0, half:], value[0, half:], rule
    )
    return torch.cat((lower, upper), dim=1).unsqueeze(0), None


def _attend(
    spans: Spans,
    query: Tensor,  # (num_heads, num_tokens, head_dim)
    key: Tensor,
    value: Tensor,
    rule: _Rule,
) -> Tensor:
    """Causal attention within each span: (num_tokens, num_heads, head_dim).

    Padding comes last in a span, so that causality alone keeps tokens from seeing it.
    """
    num_heads, _, head_dim = query.shape
    num_spans, longest = spans.rows.shape

    def spread(x: Tensor) -> Tensor:  # (num_spans, num_heads, longest, head_dim)
        by_span = x.index_select(1, spans.rows.flatten())
        return by_span.view(num_heads, num_spans, longest, head_dim).transpose(0, 1)

    query, key, value = spread(query), spread(key), spread(value)
    window = rule.sliding_window
    if rule.softcap is not None:
        mask = _visible(longest, window, query.device)
        weights = torch.tanh(query @ key.transpose(2, 3) * (rule.scale / rule.softcap))
        output = (weights * rule.softcap).masked_fill(~mask, -torch.inf).softmax(dim=-1) @ value
    elif window is not None and longest > window:
        mask = _visible(longest, window, query.device)
        output = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=mask, scale=rule.scale
        )
    else:
        output = functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=rule.scale
        )
    return output.transpose(1, 2).reshape(-1, num_heads, head_dim).index_select(0, spans.places)


def _visible(longest: int, sliding_window: int | None, device: torch.device) -> Tensor:
    """Which keys a query sees: (longest, longest) bool."""
    positions = torch.arange(longest, device=device)
    distance = positions[:, None] - positions
    seen = distance >= 0
    return seen if sliding_window is None else seen & (distance < sliding_window)
