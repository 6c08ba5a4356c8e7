"""The layout of sparse matrices that csrc/sparse.h reads: sixteen outputs side by side."""

from dataclasses import dataclass

import torch
from graftwork_adapters.canonical_linear import SparseDelta
from torch import Tensor

BUNDLE = 16
_LARGEST_GAP = 255


@dataclass(frozen=True, slots=True)
class SparseBundles:
    """Bundles of outputs of about equal length, one after the other: (length, 16) elements each."""

    values: Tensor  # (num_elements,) float32, padded with zeros
    gaps: Tensor  # (num_elements,) uint8: columns from the element before, from 0 at first
    lengths: Tensor  # (num_bundles,) int32
    outputs: Tensor  # (num_bundles, 16) int32: -1 where there is none


def pack_bundles(term: SparseDelta) -> SparseBundles:
    rows, gaps, values = _with_bridges(term)
    counts = torch.bincount(rows, minlength=term.out_features)
    missing = -term.out_features % BUNDLE
    by_length = counts.argsort(descending=True, stable=True)
    outputs = torch.cat([by_length, torch.full((missing,), -1)]).view(-1, BUNDLE)
    lengths = counts[outputs[:, 0]]  # the longest comes first
    starts = (lengths.cumsum(0) - lengths) * BUNDLE

    place = torch.empty(term.out_features, dtype=torch.int64)  # among the outputs by length
    place[by_length] = torch.arange(term.out_features)
    first = counts.cumsum(0) - counts
    index_in_row = torch.arange(rows.shape[0]) - first[rows]
    where = place[rows]
    element = starts[where // BUNDLE] + index_in_row * BUNDLE + where % BUNDLE

    num_elements = int(lengths.sum()) * BUNDLE
    packed_values = torch.zeros(num_elements)
    packed_gaps = torch.zeros(num_elements, dtype=torch.uint8)
    packed_values[element] = values
    packed_gaps[element] = gaps.to(torch.uint8)
    return SparseBundles(packed_values, packed_gaps, lengths.int(), outputs.int())


def _with_bridges(term: SparseDelta) -> tuple[Tensor, Tensor, Tensor]:
    """Row, gap and value of every element, with zeros put in where a gap exceeds a byte."""
    before = torch.cat([torch.zeros(1, dtype=torch.int64), term.columns[:-1]])
    starts_row = torch.ones_like(term.rows, dtype=torch.bool)
    starts_row[1:] = term.rows[1:] != term.rows[:-1]
    gaps = term.columns - before.masked_fill(starts_row, 0)
    bridges = ((gaps + _LARGEST_GAP - 1) // _LARGEST_GAP - 1).clamp_min(0)
    source = torch.repeat_interleave(torch.arange(gaps.shape[0]), bridges + 1)
    is_last = torch.ones_like(source, dtype=torch.bool)
    is_last[:-1] = source[1:] != source[:-1]
    last_gaps = (gaps - bridges * _LARGEST_GAP)[source]
    spread = torch.where(is_last, last_gaps, torch.full_like(last_gaps, _LARGEST_GAP))
    return term.rows[source], spread, term.values.float()[source] * is_last
