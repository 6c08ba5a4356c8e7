"""What a run says about the server."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from graftwork.bench.runner import Outcome, Run
from graftwork.bench.statistics import Distribution, jain_index


@dataclass(frozen=True, slots=True)
class AdapterTtft:
    adapter: str  # "" is the base
    mean_ms: float


@dataclass(frozen=True, slots=True)
class Fairness:
    """Among the adapters that were asked for. `jain_index` is over each one's output tokens per
    second that its requests were outstanding, times the share of the tokens asked of it that came:
    waiting longer, slower answers and refusals all count, being asked for more often does not."""

    num_adapters: int
    jain_index: float
    best_ttft: AdapterTtft | None  # None where nothing was answered
    worst_ttft: AdapterTtft | None


@dataclass(frozen=True, slots=True)
class Report:
    """Rates are over the whole run, from the first request to the end of the last answer. Times to
    first token and end to end are of complete answers, from when each was due."""

    num_requests: int
    num_completed: int
    errors: dict[str, int]  # by gRPC code
    seconds: float
    prompt_tokens: int
    cached_prompt_tokens: int  # of prompt_tokens, taken from the prefix cache
    output_tokens: int
    requests_per_s: float  # completed
    output_tokens_per_s: float
    total_tokens_per_s: float  # of prompts, cached ones included, and answers
    ttft_ms: Distribution | None
    inter_token_ms: Distribution | None  # between two messages of an answer
    e2e_ms: Distribution | None
    send_lag_ms: Distribution | None  # sent after due: the generator's own delay
    fairness: Fairness

    def to_json(self) -> dict[str, Any]:
        """Plain values, times rounded to microseconds."""
        return dataclasses.asdict(self, dict_factory=_rounded)


def summarize(run: Run) -> Report:
    """Raises ValueError where nothing was sent."""
    outcomes = run.outcomes
    if not outcomes:
        raise ValueError("nothing was sent: the run ended before its first request was due")
    complete = [outcome for outcome in outcomes if not outcome.error]
    output_tokens = sum(outcome.output_tokens for outcome in outcomes)
    prompt_tokens = sum(outcome.prompt_tokens for outcome in outcomes)
    return Report(
        num_requests=len(outcomes),
        num_completed=len(complete),
        errors=dict(Counter(outcome.error for outcome in outcomes if outcome.error)),
        seconds=run.seconds,
        prompt_tokens=prompt_tokens,
        cached_prompt_tokens=sum(outcome.cached_prompt_tokens for outcome in outcomes),
        output_tokens=output_tokens,
        requests_per_s=len(complete) / run.seconds,
        output_tokens_per_s=output_tokens / run.seconds,
        total_tokens_per_s=(prompt_tokens + output_tokens) / run.seconds,
        ttft_ms=_in_ms(_first_tokens_s(complete)),
        inter_token_ms=_in_ms(gap for outcome in complete for gap in outcome.gaps_s),
        e2e_ms=_in_ms(outcome.elapsed_s for outcome in complete),
        send_lag_ms=_in_ms(outcome.sent_s - outcome.due_s for outcome in outcomes),
        fairness=_fairness(outcomes),
    )


def _first_tokens_s(outcomes: Iterable[Outcome]) -> list[float]:
    return [first for outcome in outcomes if (first := outcome.first_token_s) is not None]


def _in_ms(seconds: Iterable[float]) -> Distribution | None:
    return Distribution.of([value * 1e3 for value in seconds])


def _fairness(outcomes: Sequence[Outcome]) -> Fairness:
    by_adapter: dict[str, list[Outcome]] = {}
    for outcome in outcomes:
        by_adapter.setdefault(outcome.planned.adapter, []).append(outcome)
    first_tokens = [
        AdapterTtft(adapter, sum(times) / len(times) * 1e3)
        for adapter, group in by_adapter.items()
        if (times := _first_tokens_s(one for one in group if not one.error))
    ]
    return Fairness(
        num_adapters=len(by_adapter),
        jain_index=jain_index([_service(group) for group in by_adapter.values()]),
        best_ttft=min(first_tokens, key=_mean, default=None),
        worst_ttft=max(first_tokens, key=_mean, default=None),
    )


def _mean(ttft: AdapterTtft) -> float:
    return ttft.mean_ms


def _service(outcomes: Sequence[Outcome]) -> float:
    """Tokens per second of waiting, times the share of the demand that was met."""
    received = sum(outcome.output_tokens for outcome in outcomes)
    if not received:
        return 0.0
    # A complete answer may be shorter than planned: it met its demand all the same.
    wanted = sum(
        outcome.planned.num_output_tokens if outcome.error else outcome.output_tokens
        for outcome in outcomes
    )
    waited_s = sum(outcome.elapsed_s for outcome in outcomes)
    return received / waited_s * received / wanted


def _rounded(items: list[tuple[str, Any]]) -> dict[str, Any]:
    return {name: round(value, 3) if isinstance(value, float) else value for name, value in items}
