"""The gate of a reward model: it scores held-out comparisons through Score, as it will be served.

Accuracy is the share of pairs whose chosen answer gets the higher reward; the calibration error is
how far, on average, that share lies from the probability that the rewards give it (Guo et al., "On
calibration of modern neural networks", 2017, arXiv:1706.04599).
"""

import json
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from graftwork import Client, ScoreResult
from matplotlib.figure import Figure

from graftwork_trainer.client_prompts import client_prompt
from graftwork_trainer.datasets.examples import (
    ComparisonExample,
    Example,
    PreferenceExample,
    parse_line,
)
from graftwork_trainer.evaluation.errors import NothingToEvaluate
from graftwork_trainer.evaluation.gate import Check, Verdict
from graftwork_trainer.evaluation.gate_spec import GateSpec
from graftwork_trainer.evaluation.intervals import Estimate, wilson
from graftwork_trainer.evaluation.report_content import JobFacts, strict

_CALLS_AT_ONCE = 4
_BINS = 5


@dataclass(frozen=True, slots=True)
class RewardFigures:
    """What a reward model makes of the held-out pairs."""

    selector: str
    accuracy: Estimate
    calibration_error: float
    margins: tuple[float, ...]  # reward of the chosen answer less that of the rejected one


@dataclass(frozen=True, slots=True)
class RewardGateResult:
    verdict: Verdict
    candidate: RewardFigures

    @property
    def passed(self) -> bool:
        return self.verdict.passed

    @property
    def message(self) -> str:
        if not self.passed:
            return "refused: " + "; ".join(self.verdict.reasons)
        return (
            f"passed the gate: accuracy {self.candidate.accuracy.value:.3f}, calibration error "
            f"{self.candidate.calibration_error:.3f}"
        )


def run_reward_gate(
    client: Client,
    *,
    candidate: str,
    adapter: str,
    snapshot: Path,
    spec: GateSpec,
    report: Path,
    facts: JobFacts,
    progress: Callable[[int, int], None] | None = None,
) -> RewardGateResult:
    """Arguments and files of the report as `run.run_gate`.

    Without a `min_accuracy` the candidate must do better than chance. A live reward model that is
    right more often, by over `max_regression`, refuses it. Raises NothingToEvaluate without a
    comparison that is no tie, and the errors of `graftwork.errors`.
    """
    started = time.monotonic()
    pairs = _read_pairs(snapshot / "validation.jsonl")[: spec.max_examples]
    if not pairs:
        raise NothingToEvaluate("the validation split holds no comparison that is no tie")
    found = _figures(client, candidate, pairs, progress)
    live = client.adapters.get(adapter).live_version
    incumbent = None
    if live and f"{adapter}@{live}" != candidate:
        version = client.adapters.get_version(f"{adapter}@{live}")
        if len(version.labels) == 1:  # another adapter may have had the name
            incumbent = _figures(client, version.selector, pairs, None)
    verdict = Verdict(tuple(_checks(spec, adapter, found, incumbent)), ())
    durations = {**facts.durations_s, "evaluation": time.monotonic() - started}
    figures = [found] if incumbent is None else [found, incumbent]
    _write_report(report, adapter, verdict, figures, replace(facts, durations_s=durations))
    return RewardGateResult(verdict, found)


def _read_pairs(path: Path) -> list[PreferenceExample | ComparisonExample]:
    examples: list[Example] = [parse_line(line) for line in path.read_bytes().splitlines() if line]
    return [
        example
        for example in examples
        if isinstance(example, PreferenceExample)
        or (isinstance(example, ComparisonExample) and not example.tie)
    ]


def _figures(
    client: Client,
    selector: str,
    pairs: Sequence[PreferenceExample | ComparisonExample],
    progress: Callable[[int, int], None] | None,
) -> RewardFigures:
    def margin(pair: PreferenceExample | ComparisonExample) -> float:
        result = client.score(
            client_prompt(pair.prompt), [pair.chosen, pair.rejected], adapter=selector
        )
        chosen, rejected = _rewards(result)
        return chosen - rejected

    margins = []
    with ThreadPoolExecutor(_CALLS_AT_ONCE) as calls:
        for done, value in enumerate(calls.map(margin, pairs), start=1):
            margins.append(value)
            if progress is not None:
                progress(done, len(pairs))
    won = sum(1.0 if value > 0 else 0.5 if value == 0 else 0.0 for value in margins)
    return RewardFigures(selector, wilson(won, len(margins)), _calibration(margins), tuple(margins))


def _rewards(result: ScoreResult) -> tuple[float, float]:
    found = [score.classification.reward if score.classification else None
             for score in result.scores]  # fmt: skip
    chosen, rejected = (math.nan if reward is None else reward for reward in found)
    return chosen, rejected


def _calibration(margins: Sequence[float]) -> float:
    """Seen from the side that the model prefers, whose confidence is at least one half."""
    bins: dict[int, list[tuple[float, bool]]] = {}
    for margin in margins:
        if math.isfinite(margin):
            confidence = 1 / (1 + math.exp(-min(abs(margin), 50.0)))
            place = min(int((confidence - 0.5) * 2 * _BINS), _BINS - 1)
            bins.setdefault(place, []).append((confidence, margin > 0))
    return sum(
        abs(sum(c for c, _ in entries) - sum(right for _, right in entries))
        for entries in bins.values()
    ) / max(1, len(margins))


def _checks(
    spec: GateSpec, task: str, found: RewardFigures, incumbent: RewardFigures | None
) -> list[Check]:
    finite = all(map(math.isfinite, found.margins))
    checks = [
        Check("finite", task, finite, "rewards are finite" if finite else "a reward is not finite")
    ]
    accuracy, least = found.accuracy.value, spec.min_accuracy
    if least is None:
        checks.append(
            Check(
                "better_than_chance", task, accuracy > 0.5,
                f"accuracy {found.accuracy} against 0.5 by chance", accuracy, 0.5, found.accuracy,
            )
        )  # fmt: skip
    else:
        checks.append(
            Check(
                "min_accuracy", task, accuracy >= least - 1e-6,
                f"accuracy {found.accuracy}, at least {least:g} is wanted", accuracy, least,
                found.accuracy,
            )
        )  # fmt: skip
    if incumbent is not None:
        least = incumbent.accuracy.value - spec.max_regression
        checks.append(
            Check(
                "regression", task, accuracy >= least - 1e-6,
                f"accuracy {accuracy:.3f}, and {incumbent.accuracy.value:.3f} of "
                f"{incumbent.selector}", accuracy, least, found.accuracy,
            )
        )  # fmt: skip
    return checks


def _write_report(
    folder: Path,
    adapter: str,
    verdict: Verdict,
    figures: Sequence[RewardFigures],
    facts: JobFacts,
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    _draw(folder / "margins.png", figures)
    lines = [
        f"# Reward model {figures[0].selector}",
        "",
        f"**{'Passed' if verdict.passed else 'Refused'}** on {len(figures[0].margins)} held-out "
        "pairs.",
        "",
        "| version | accuracy | calibration error |",
        "|---|---|---|",
        *(f"| {f.selector} | {f.accuracy} | {f.calibration_error:.3f} |" for f in figures),
        "",
        *(f"- {'ok' if check.passed else 'NO'}: {check.reason}" for check in verdict.checks),
        "",
        "![Margins](margins.png)",
        "",
    ]
    (folder / "report.md").write_text("\n".join(lines), encoding="utf-8")
    value = {
        "adapter": adapter,
        "candidate": figures[0].selector,
        "passed": verdict.passed,
        "reasons": verdict.reasons,
        "checks": [check.to_json() for check in verdict.checks],
        "figures": [asdict(item) for item in figures],
        "job": asdict(facts),
    }
    text = json.dumps(strict(value), ensure_ascii=False, indent=1, allow_nan=False)
    (folder / "report.json").write_text(text + "\n", encoding="utf-8")


def _draw(path: Path, figures: Sequence[RewardFigures]) -> None:
    figure = Figure(figsize=(6, 3.5), layout="constrained")
    axes = figure.subplots()
    for item in figures:
        finite = [margin for margin in item.margins if math.isfinite(margin)]
        axes.hist(finite, bins=20, alpha=0.6, label=item.selector)
    axes.axvline(0, color="black", linewidth=0.8)
    axes.set(xlabel="reward of the chosen answer less the rejected one's", ylabel="pairs")
    axes.legend()
    figure.savefig(path, dpi=110)
