"""One batch of requests as every system is given it, and what its tokens' times say.

Imports only the standard library, since it is also imported in the peers' own environments.
"""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Batch:
    """Requests sent at once, decoded greedily, without an early stop and without a prefix cache."""

    prompts: list[list[int]]  # token ids
    adapters: list[int | None]  # index of the adapter of each; None: the plain base
    new_tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """What came back of a batch. Raises ValueError where a token lacks a time."""

    token_ids: list[list[int]]  # of each request
    arrivals: list[list[float]]  # of each token, in seconds from sending the first request

    def __post_init__(self) -> None:
        if [len(ids) for ids in self.token_ids] != [len(times) for times in self.arrivals]:
            raise ValueError("each token needs the time at which it came")

    @property
    def throughput(self) -> float:
        """New tokens per second, prefill included."""
        return sum(map(len, self.token_ids)) / max(times[-1] for times in self.arrivals)

    @property
    def decode_throughput(self) -> float:
        """New tokens per second while all requests decode: from the time when each has its first
        token until the first of them ends. Raises ValueError where there is no such time."""
        begin = max(times[0] for times in self.arrivals)
        end = min(times[-1] for times in self.arrivals)
        if end <= begin:
            raise ValueError("at no time do all requests decode: let them generate more tokens")
        # A token counts for the time before it, so that one at the very beginning does not.
        count = sum(begin < time <= end for times in self.arrivals for time in times)
        return count / (end - begin)

    @property
    def first_token_s(self) -> float:
        return min(times[0] for times in self.arrivals)


Generate = Callable[[Batch], Run]


@dataclass(frozen=True, slots=True)
class Workload:
    prompts: list[list[int]]
    long_prompt: list[int]
    num_adapters: int
    new_tokens: int

    def batch(self, adapters: Sequence[int | None]) -> Batch:
        return Batch(self.prompts, list(adapters), self.new_tokens)

    @property
    def mixed(self) -> Batch:
        """Every request with another adapter, as far as there are."""
        return self.batch([row % self.num_adapters for row in range(len(self.prompts))])

    @property
    def base(self) -> Batch:
        return self.batch([None] * len(self.prompts))

    @property
    def one_lora(self) -> Batch:
        return self.batch([0] * len(self.prompts))

    @property
    def single(self) -> Batch:
        return Batch(self.prompts[:1], [None], self.new_tokens)

    @property
    def prefill(self) -> Batch:
        return Batch([self.long_prompt], [None], 1)


@dataclass(frozen=True, slots=True)
class Round:
    """Tokens per second of each measure, and what was generated on the way."""

    figures: dict[str, float]
    mixed_token_ids: list[list[int]]
    base_token_ids: list[list[int]]


# What a round measures, in the order of the report.
MEASURES = ("mixed", "base", "one_lora", "single_stream", "prefill", "decode16")


def batch_figures(
    with_adapters: Generate, base_only: Generate, workload: Workload
) -> tuple[dict[str, float], Run, Run]:
    """The measures that are throughputs of a batch, and the runs of `mixed` and `base`."""
    mixed = with_adapters(workload.mixed)
    base = base_only(workload.base)
    one = with_adapters(workload.one_lora)
    figures = {"mixed": mixed.throughput, "base": base.throughput, "one_lora": one.throughput}
    return figures, mixed, base


def measure_round(with_adapters: Generate, base_only: Generate, workload: Workload) -> Round:
    """All measures. `base_only` may be the same as `with_adapters`; it is told apart where a system
    is faster for the plain base when it is started without adapters."""
    figures, mixed, base = batch_figures(with_adapters, base_only, workload)
    figures |= {
        "single_stream": base_only(workload.single).decode_throughput,
        "prefill": len(workload.long_prompt) / base_only(workload.prefill).first_token_s,
        "decode16": base.decode_throughput,
    }
    return Round(figures, mixed.token_ids, base.token_ids)


def medians(rounds: Sequence[Round]) -> dict[str, float]:
    return {
        measure: statistics.median(each.figures[measure] for each in rounds) for measure in MEASURES
    }
