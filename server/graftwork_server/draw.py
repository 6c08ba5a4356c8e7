"""Draws tokens from rows of logits: temperature, filters, and the inverse of the cumulative
distribution. Every row's token depends on that row alone, to the last bit."""

from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass

import torch
from torch import Tensor

from graftwork_server.random_numbers import uniform
from graftwork_server.request import Sequence

# Rows are filtered among this many of their likeliest tokens first; a row whose filters reach
# further goes on to the next width, at last to a sort of all its logits.
WINDOW_WIDTHS = (64, 1024, 16384)
# Below this the distribution is a single token in float32 anyway, and dividing would overflow.
_LEAST_TEMPERATURE = 1e-6
BLOCK = 256  # tokens


@dataclass(frozen=True, slots=True)
class _Filters:
    """The parameters of rows to draw from, one entry per row."""

    top_k: Tensor  # (n,) int64, vocab_size where unset
    top_p: Tensor  # (n,) float64
    min_p: Tensor  # (n,) float64
    target: Tensor  # (n,) float64, uniform in [0, 1)

    def rows(self, index: Tensor) -> "_Filters":
        return _Filters(self.top_k[index], self.top_p[index], self.min_p[index], self.target[index])


def draw(logits: Tensor, sequences: SequenceOf[Sequence]) -> Tensor:
    """Draws from finite rows (n, vocab), which have temperatures over 0; returns ids (n,)."""
    vocab_size = logits.shape[1]
    params = [sequence.sampling for sequence in sequences]

    def column(values: list[float], dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=logits.device)

    filters = _Filters(
        top_k=column([min(p.top_k or vocab_size, vocab_size) for p in params], torch.int64),
        top_p=column([p.top_p for p in params]),
        min_p=column([p.min_p for p in params]),
        target=column([uniform(s.sampling.seed, len(s.output_token_ids)) for s in sequences]),
    )
    temperature = column([max(p.temperature, _LEAST_TEMPERATURE) for p in params], torch.float32)
    # The likeliest token is at 0, so no temperature overflows it.
    scaled = (logits - logits.amax(dim=-1, keepdim=True)).div_(temperature[:, None])
    probs = scaled.softmax(dim=-1)
    filtered = (filters.top_k < vocab_size) | (filters.top_p < 1) | (filters.min_p > 0)
    token_ids = torch.empty(len(params), dtype=torch.int64, device=logits.device)
    plain = (~filtered).nonzero().flatten()
    if len(plain):
        token_ids[plain] = _draw_from_all(take(probs, plain), filters.target[plain])
    pending = filtered.nonzero().flatten()
    for width in (*[w for w in WINDOW_WIDTHS if w < vocab_size], vocab_size):
        if not len(pending):
            break
        fits = (filters.top_k[pending] <= width) | (filters.top_k[pending] == vocab_size)
        rows = pending[fits]
        found, resolved = _draw_within(
            take(scaled, rows), take(probs, rows), filters.rows(rows), width
        )
        token_ids[rows[resolved]] = found[resolved]
        pending = torch.cat([pending[~fits], rows[~resolved]]).sort().values
    return token_ids


def take(rows: Tensor, index: Tensor) -> Tensor:
    """The rows (n, vocab) at `index`, ascending and distinct; without a copy where that is all."""
    return rows if len(index) == len(rows) else rows.index_select(0, index)


def _draw_from_all(probs: Tensor, target: Tensor) -> Tensor:
    """Draws from rows of probabilities (n, vocab): first a block of tokens by the blocks' sums,
    then one of its tokens. A float64 copy of all probabilities, for a cumulative sum over them,
    would cost more than the rest of sampling."""
    num_rows, vocab_size = probs.shape
    padding = -vocab_size % BLOCK
    padded = torch.nn.functional.pad(probs, (0, padding)) if padding else probs
    blocks = padded.view(num_rows, -1, BLOCK)
    sums = blocks.sum(dim=-1).double()  # (n, num_blocks)
    ends = sums.cumsum(dim=-1)
    aim = _aim(ends[:, -1], target)
    block = _first_beyond(ends, aim)[:, None]
    starts = torch.cat([ends.new_zeros(num_rows, 1), ends[:, :-1]], dim=1)
    share = (aim[:, None] - starts.gather(1, block)) / sums.gather(1, block)
    rows = torch.arange(num_rows, device=probs.device)
    within = blocks[rows, block[:, 0]].double().cumsum(dim=-1)  # (n, BLOCK)
    return block[:, 0] * BLOCK + _first_beyond(within, _aim(within[:, -1], share[:, 0]))


def _draw_within(
    scaled: Tensor, probs: Tensor, filters: _Filters, width: int
) -> tuple[Tensor, Tensor]:
    """Filters and draws among the `width` likeliest tokens of each row.

    Returns ids (n,), and whether all that the filters keep is among those tokens (n,): where it is,
    the id does not depend on the width.
    """
    num_rows, vocab_size = scaled.shape
    _, ids = ranked(scaled, width)
    weights = probs.gather(1, ids).double()  # (n, width), likeliest first
    ranks = torch.arange(width, device=scaled.device)
    has_top_k = filters.top_k < vocab_size
    kept = (ranks < filters.top_k[:, None]) & (weights >= filters.min_p[:, None] * weights[:, :1])
    num_kept = kept.sum(dim=-1)
    # Whether top_k and min_p keep nothing beyond the window.
    closed = (num_kept < width) | (filters.top_k <= width)
    weights = weights * kept
    cumulative = weights.cumsum(dim=-1)
    total = torch.where(
        has_top_k | (filters.min_p > 0), cumulative[:, -1], torch.ones_like(filters.target)
    )
    # The smallest set that reaches top_p: those before which less than top_p is gathered.
    bound = filters.top_p * total
    before = torch.cat([cumulative.new_zeros(num_rows, 1), cumulative[:, :-1]], dim=1)
    in_nucleus = kept & (before < bound[:, None])
    mass = cumulative.gather(1, in_nucleus.sum(dim=-1, keepdim=True) - 1).squeeze(1)
    only_top_p = ~has_top_k & (filters.min_p == 0)
    resolved = closed | (only_top_p & (cumulative[:, -1] >= bound))
    places = _first_beyond(cumulative, _aim(mass, filters.target))
    return ids.gather(1, places[:, None]).squeeze(1), resolved


def _aim(mass: Tensor, target: Tensor) -> Tensor:
    """The share `target`, in [0, 1), of `mass`; less than it after rounding too."""
    return torch.minimum(target * mass, _below(mass))


def _below(values: Tensor) -> Tensor:
    return torch.nextafter(values, torch.zeros_like(values))


def _first_beyond(cumulative: Tensor, aim: Tensor) -> Tensor:
    """First place (n,) where `cumulative` (n, width) exceeds `aim` (n,)."""
    return torch.searchsorted(cumulative, aim[:, None], right=True).squeeze(1)


def ranked(rows: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest values of each row and their places, (n, k), largest first, of equals the
    lowest place first: what a stable sort gives, at the price of a selection."""
    num_columns = rows.shape[1]
    if k == num_columns:
        values, places = torch.sort(rows, dim=-1, descending=True, stable=True)
        return values, places
    values, places = rows.topk(k + 1, dim=-1)
    last, beyond = values[:, k - 1], values[:, k]
    values, places = values[:, :k], places[:, :k]
    if not (values[:, 1:] == values[:, :-1]).any() and not (last == beyond).any():
        return values, places
    # Which of the values equal to the last one topk returns is not specified.
    for row in ((last == beyond) & ~last.isinf()).nonzero().flatten().tolist():
        num_larger = int((values[row] > last[row]).sum())
        equals = (rows[row] == last[row]).nonzero().flatten()
        places[row, num_larger:] = equals[: k - num_larger]
    places = places.sort(dim=-1).values
    values, order = torch.sort(rows.gather(1, places), dim=-1, descending=True, stable=True)
    return values, places.gather(1, order)
