"""What the sampler computes, written plainly: one row at a time, full sort, Python numbers."""

import math

import torch
from graftwork_server.draw import BLOCK
from graftwork_server.random_numbers import uniform
from graftwork_server.request import Sequence
from torch import Tensor


def sample_row(logits: Tensor, sequence: Sequence, allowed: set[int] | None = None) -> int:
    """The token of one row (vocab,). `allowed` is what a constraint leaves."""
    row = edited_row(logits, sequence, allowed)
    params = sequence.sampling
    order = sorted(range(len(row)), key=lambda token_id: (-row[token_id].item(), token_id))
    if params.temperature == 0:
        return order[0]
    scaled = (row - row.max()) / torch.tensor(max(params.temperature, 1e-6))
    probs = scaled.softmax(dim=-1).double().tolist()
    target = uniform(params.seed, len(sequence.output_token_ids))
    filtered = params.top_p < 1 or params.min_p > 0 or 0 < params.top_k < len(row)
    if not filtered:
        return _draw_from_all(scaled.softmax(dim=-1), target)
    kept = order[: params.top_k or None]
    kept = [t for t in kept if probs[t] >= params.min_p * probs[order[0]]]
    total = _sum(probs[t] for t in kept)
    if params.min_p == 0 and not 0 < params.top_k < len(row):
        total = 1.0
    nucleus: list[int] = []
    gathered = 0.0
    for token_id in kept:
        if not gathered < params.top_p * total:
            break
        nucleus.append(token_id)
        gathered += probs[token_id]
    return _invert(nucleus, probs, target)


def edited_row(logits: Tensor, sequence: Sequence, allowed: set[int] | None = None) -> Tensor:
    """The row (vocab,) after bias, penalties, min_tokens and constraint."""
    row = logits.clone()
    params = sequence.sampling
    output = sequence.output_token_ids
    for token_id, bias in params.logit_bias:
        row[token_id] += bias
    for token_id in {t for t in sequence.prompt_token_ids if t >= 0} | set(output):
        penalty = torch.tensor(params.repetition_penalty)
        value = row[token_id]
        row[token_id] = value / penalty if value > 0 else value * penalty
        count = output.count(token_id)
        row[token_id] -= torch.tensor(params.presence_penalty) * (count > 0)
        row[token_id] -= torch.tensor(params.frequency_penalty) * count
    stops = set(sequence.stop_token_ids) if len(output) < sequence.min_tokens else set()
    if allowed is None:
        allowed = set(range(len(row)))
    for token_id in set(range(len(row))) - ((allowed - stops) or allowed):
        row[token_id] = -math.inf
    return row


def _draw_from_all(probs: Tensor, target: float) -> int:
    """A block of tokens first, then one of its tokens by the share of the block that is left."""
    blocks = [probs[start : start + BLOCK] for start in range(0, len(probs), BLOCK)]
    sums = [torch.nn.functional.pad(b, (0, BLOCK - len(b))).sum().item() for b in blocks]
    block = _invert(list(range(len(blocks))), sums, target)
    mass = _sum(sums)
    share = (min(target * mass, math.nextafter(mass, 0.0)) - _sum(sums[:block])) / sums[block]
    return block * BLOCK + _invert(list(range(len(blocks[block]))), blocks[block].tolist(), share)


def _invert(token_ids: list[int], probs: list[float], target: float) -> int:
    mass = _sum(probs[t] for t in token_ids)
    aim = min(target * mass, math.nextafter(mass, 0.0))
    cumulative = 0.0
    for token_id in token_ids:
        cumulative += probs[token_id]
        if cumulative > aim:
            return token_id
    raise AssertionError("the aim is below the mass")


def _sum(values) -> float:
    total = 0.0
    for value in values:
        total += value
    return total
