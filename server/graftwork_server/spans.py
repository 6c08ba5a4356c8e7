"""Spans of a step's rows taken together: gathered, and written back where they came from."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor

Runs = Iterable[tuple[int, int, int]]  # (slot, start, stop) over rows
Span = tuple[int, int]  # (start, stop) over rows


def gather(x: Tensor, spans: Sequence[Span]) -> Tensor:
    """The rows of the spans, one span after the other."""
    if _are_adjacent(spans):
        return x[spans[0][0] : spans[-1][1]]
    return torch.cat([x[start:stop] for start, stop in spans])


def split(rows: Tensor, spans: Sequence[Span]) -> Iterator[tuple[Span, Tensor]]:
    """Where gathered rows came from, and the rows: in as few pieces as the spans allow."""
    if _are_adjacent(spans):
        yield (spans[0][0], spans[-1][1]), rows
        return
    done = 0
    for start, stop in spans:
        yield (start, stop), rows[done : done + stop - start]
        done += stop - start


def _are_adjacent(spans: Sequence[Span]) -> bool:
    return all(before[1] == after[0] for before, after in pairwise(spans))


def by_row(vectors: Sequence[Tensor], spans: Sequence[Span]) -> Tensor:
    """One vector for each gathered row; a single span keeps its one vector for all."""
    if len(vectors) == 1:
        return vectors[0]
    return torch.cat(
        [v.expand(stop - start, -1) for v, (start, stop) in zip(vectors, spans, strict=True)]
    )
