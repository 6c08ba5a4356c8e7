"""Draws requests, the same ones for the same seed."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from graftwork.bench.lengths import Lengths
from graftwork.bench.popularity import Popularity
from graftwork.bench.prompts import Prompts
from graftwork.types import Prompt


@dataclass(frozen=True, slots=True)
class PlannedRequest:
    adapter: str  # a selector; "" is the base
    prompt: Prompt
    num_output_tokens: int


def draw_requests(
    popularity: Popularity,
    adapters: Sequence[str],
    prompts: Prompts,
    output_lengths: Lengths,
    *,
    seed: int,
) -> Iterator[PlannedRequest]:
    """Requests without end. `adapters` are selectors, the most popular first; [""] is the base.

    Adapters, prompts and answers' lengths have a source of chance each, so that a change of one
    leaves the others as they were. Raises ValueError where there are no adapters.
    """
    if not adapters:
        raise ValueError("adapters: there are none to draw from")
    weights = popularity.weights(len(adapters))
    of_adapters, of_prompts, of_lengths = (
        source_of_chance(seed, name) for name in ("adapters", "prompts", "lengths")
    )
    while True:
        [adapter] = of_adapters.choices(adapters, weights)
        yield PlannedRequest(adapter, prompts.draw(of_prompts), output_lengths.draw(of_lengths))


def source_of_chance(seed: int, name: str) -> random.Random:
    """One that is independent of those of other names."""
    return random.Random(f"{seed} {name}")  # noqa: S311 - traffic, not secrets
