"""Traffic of the load generator, as the benchmarks make it."""

from collections.abc import Sequence
from itertools import islice

from graftwork import AsyncClient
from graftwork.bench import (
    AllAtOnce,
    ClosedLoop,
    Even,
    Fixed,
    Load,
    Popularity,
    Report,
    SyntheticPrompts,
    draw_requests,
    run_load,
    summarize,
)
from graftwork.bench.prompts import SAMPLE_TEXT


async def measure(
    client: AsyncClient,
    adapters: Sequence[str] = ("",),
    *,
    popularity: Popularity | None = None,
    num_requests: int,
    concurrency: int | None = None,
    prompt_tokens: int = 32,
    output_tokens: int = 32,
    seed: int = 0,
) -> Report:
    """All at once without `concurrency`; prompts that share nothing. Raises RuntimeError where a
    request fails."""
    vocabulary = sorted(set((await client.tokenize(SAMPLE_TEXT)).token_ids))
    prompts = SyntheticPrompts(Fixed(prompt_tokens), vocabulary)
    requests = draw_requests(
        popularity or Even(), adapters, prompts, Fixed(output_tokens), seed=seed
    )
    arrivals = AllAtOnce() if concurrency is None else ClosedLoop(concurrency)
    run = await run_load(client, Load(arrivals, num_requests), islice(requests, num_requests))
    failed = next((outcome for outcome in run.outcomes if outcome.error), None)
    if failed is not None:
        raise RuntimeError(f"{failed.planned.adapter!r}: {failed.error}: {failed.error_message}")
    return summarize(run)
