"""Writes what the gate found: report.md for people, report.json for programs, and plots."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from graftwork_adapters.durable import write_file

from graftwork_trainer.evaluation import plots
from graftwork_trainer.evaluation.gate import Check
from graftwork_trainer.evaluation.intervals import Estimate
from graftwork_trainer.evaluation.outcomes import Role
from graftwork_trainer.evaluation.report_content import ReportContent, strict
from graftwork_trainer.evaluation.summary import Summary

_SPLITS = ("train", "validation", "golden")


def write_report(folder: Path, content: ReportContent) -> list[str]:
    """Writes all files into `folder`, and returns the names of the plots. Raises OSError.

    report.json comes last: where it is, the report is complete.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drawn = _draw(folder, content)
    _write(folder / "report.md", markdown(content, drawn))
    text = json.dumps(to_json(content), ensure_ascii=False, indent=1, allow_nan=False)
    _write(folder / "report.json", text + "\n")
    return drawn


def to_json(content: ReportContent) -> dict[str, Any]:
    """The report as JSON values. Numbers that are not finite are null."""
    found: dict[str, Any] = strict(
        {
            "adapter": content.adapter,
            "candidate": content.candidate,
            "passed": content.verdict.passed,
            "reasons": content.verdict.reasons,
            "checks": [check.to_json() for check in content.verdict.checks],
            "advice": content.verdict.advice,
            "gate": {
                name: getattr(content.spec, name) for name in content.spec.__dataclass_fields__
            },
            "contenders": [
                {"role": item.role.value, "selector": item.selector, "digest": item.digest}
                for item in content.contenders
            ],
            "metrics": [summary.to_json() for summary in content.summaries],
            "dataset": content.manifest,
            "job": {
                "spec": content.facts.spec,
                "seed": content.facts.seed,
                "digests": content.facts.digests,
                "durations_s": content.facts.durations_s,
            },
            "curve": [
                {
                    "step": point.step,
                    "training_loss": point.training_loss,
                    "validation_loss": point.validation_loss,
                }
                for point in content.curve
            ],
            "trials": [
                {
                    "number": trial.number,
                    "parameters": trial.parameters,
                    "loss": trial.loss,
                    "state": trial.state,
                }
                for trial in content.trials
            ],
        }
    )
    return found


def markdown(content: ReportContent, plot_names: Sequence[str] = ()) -> str:
    """The report as a page that shows the plots beside it."""
    lines = [
        f"# {content.candidate}: {'passed' if content.verdict.passed else 'refused'}",
        "",
        *_verdict(content),
        "## Figures",
        "",
        *_figures(content.summaries),
        *(f"![{name.removesuffix('.png')}]({name})\n" for name in plot_names),
        *_classes(content.summaries),
        "## Data",
        "",
        *_data(content.manifest),
        *_search(content),
        "## Job",
        "",
        *_job(content),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _draw(folder: Path, content: ReportContent) -> list[str]:
    drawn = ["metrics.png"]
    plots.draw_metrics(folder / "metrics.png", content.summaries)
    confused = {
        summary.name: summary.classification
        for summary in content.summaries
        if summary.role is Role.CANDIDATE and summary.classification is not None
    }
    if confused:
        plots.draw_confusion(folder / "confusion.png", confused)
        drawn.append("confusion.png")
    if content.curve:
        plots.draw_curve(folder / "loss.png", content.curve)
        drawn.append("loss.png")
    if content.trials:
        plots.draw_trials(folder / "search.png", content.trials)
        drawn.append("search.png")
    return drawn


def _verdict(content: ReportContent) -> Iterator[str]:
    verdict = content.verdict
    if verdict.passed:
        yield f"It passed all {len(verdict.checks)} checks."
    else:
        yield "It was refused because:"
        yield ""
        yield from (f"- {reason}" for reason in verdict.reasons)
    yield ""
    yield from (f"- {advice}" for advice in verdict.advice)
    yield ""
    yield from _table(
        ("check", "task", "", "value", "threshold", "finding"),
        [_check_row(check) for check in verdict.checks],
    )


def _check_row(check: Check) -> tuple[str, ...]:
    return (
        check.name,
        check.task,
        "passed" if check.passed else "**refused**",
        _number(check.value),
        _number(check.threshold),
        check.reason,
    )


def _figures(summaries: Sequence[Summary]) -> Iterator[str]:
    yield "Intervals are of 95%. Loss is of the right answers, in nats per token."
    yield ""
    with_classes = [summary for summary in summaries if summary.classification is not None]
    yield from _table(
        ("task", "contender", "examples", "accuracy", "F1", "macro F1", "exact match", "loss"),
        [
            (
                s.name,
                s.role.value,
                _examples(s),
                _estimate(s.accuracy),
                _estimate(s.f1),
                _number(None if s.classification is None else s.classification.macro_f1),
                _estimate(s.exact_match),
                _number(s.loss),
            )
            for s in with_classes
        ],
    )
    yield from _table(
        ("task", "contender", "examples", "loss", "perplexity", "wins over the base",
         "exact match", "length", "distinct-1", "distinct-2"),
        [
            (
                s.name,
                s.role.value,
                _examples(s),
                _number(s.loss),
                _number(s.perplexity),
                _estimate(s.win_rate_over_base),
                _estimate(s.exact_match),
                _number(s.length_ratio),
                _number(s.distinct_1),
                _number(s.distinct_2),
            )
            for s in summaries
            if s.classification is None
        ],
    )  # fmt: skip


def _classes(summaries: Sequence[Summary]) -> Iterator[str]:
    rows = []
    for summary in summaries:
        if summary.role is Role.CANDIDATE and summary.classification is not None:
            found = summary.classification
            rows += [
                (
                    summary.name,
                    item.label + (" (positive)" if item.label == found.positive else ""),
                    str(item.support),
                    _number(item.precision),
                    _number(item.recall),
                    _number(item.f1),
                )
                for item in found.classes
            ]
    if rows:
        yield "## Classes of the candidate"
        yield ""
        yield from _table(("task", "class", "examples", "precision", "recall", "F1"), rows)


def _data(manifest: Mapping[str, Any]) -> Iterator[str]:
    yield f"Snapshot `{manifest.get('digest', '')}`."
    yield ""
    rows = []
    for task, found in manifest.get("tasks", {}).items():
        splits = [found["splits"][name] for name in _SPLITS]
        rows.append((task, "all", *(str(split["examples"]) for split in splits)))
        rows += [
            ("", label, *(str(split["classes"].get(label, 0)) for split in splits))
            for label in sorted({label for split in splits for label in split["classes"]})
        ]
    yield from _table(("task", "class", *_SPLITS), rows)
    yield from (f"- {warning}" for warning in manifest.get("warnings", ()))
    yield ""


def _search(content: ReportContent) -> Iterator[str]:
    if not content.trials:
        return
    yield "## Search"
    yield ""
    names = sorted({name for trial in content.trials for name in trial.parameters})
    yield from _table(
        ("trial", "state", "validation loss", *names),
        [
            (
                str(trial.number),
                trial.state,
                _number(trial.loss),
                *(_value(trial.parameters.get(name)) for name in names),
            )
            for trial in content.trials
        ],
    )


def _job(content: ReportContent) -> Iterator[str]:
    facts = content.facts
    rows = [(f"{item.role.value}", f"`{item.selector or 'base'}` {item.digest}")
            for item in content.contenders]  # fmt: skip
    rows += [(f"digest of the {name}", digest) for name, digest in facts.digests.items()]
    rows.append(("seed", str(facts.seed)))
    rows += [(f"{name}, seconds", f"{value:.1f}") for name, value in facts.durations_s.items()]
    yield from _table(("what", "which"), rows)
    if facts.spec:
        yield "```json"
        yield json.dumps(strict(facts.spec), ensure_ascii=False, indent=1)
        yield "```"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    lines = [f"| {' | '.join(_cell(value) for value in row)} |" for row in (head, *rows)]
    return [lines[0], "|" + "---|" * len(head), *lines[1:], ""]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _examples(summary: Summary) -> str:
    if not summary.num_unanswered:
        return str(summary.num_examples)
    return f"{summary.num_examples} ({summary.num_unanswered} not answered)"


def _estimate(estimate: Estimate | None) -> str:
    if estimate is None or math.isnan(estimate.value):
        return "–"
    return str(estimate)


def _number(value: float | None) -> str:
    if value is None or math.isnan(value):
        return "–"
    return f"{value:.4g}"


def _value(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str("–" if value is None else value)


def _write(path: Path, text: str) -> None:
    write_file(path, text.encode())
