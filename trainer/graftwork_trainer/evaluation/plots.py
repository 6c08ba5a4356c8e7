"""The report's pictures, as PNG. Figures are drawn without pyplot, which keeps state of its own."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from graftwork_trainer.evaluation.intervals import Estimate
from graftwork_trainer.evaluation.metrics import ClassificationMetrics
from graftwork_trainer.evaluation.outcomes import Role
from graftwork_trainer.evaluation.report_content import CurvePoint, Trial
from graftwork_trainer.evaluation.summary import Summary

# Okabe and Ito's colours, which colour-blind people tell apart.
_COLORS = {
    Role.CANDIDATE: "#0072B2",
    Role.INCUMBENT: "#E69F00",
    Role.BASE: "#999999",
    Role.FEW_SHOT: "#009E73",
}
_BLUE, _ORANGE = "#0072B2", "#D55E00"
_DPI = 110
_LONGEST_NAME = 48


def draw_metrics(path: Path, summaries: Sequence[Summary]) -> None:
    """A row of panels for each task and split, with a bar and its interval for each contender."""
    rows = _by_task(summaries)
    figure = Figure(figsize=(11, 0.7 + 2.3 * len(rows)), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False)
    for axes, (name, items) in zip(grid, rows.items(), strict=True):
        shares = _shares(items[0])
        for axis, (title, pick) in zip(axes[:2], shares, strict=True):
            estimates = [getattr(item, pick) for item in items]
            _bars(axis, f"{name}: {title}", items, estimates)
            axis.set_xlim(0, 1.18)
        losses = [Estimate(item.loss, math.nan, math.nan) for item in items]
        _bars(axes[2], f"{name}: loss, nats per token", items, losses)
        axes[2].margins(x=0.2)
    figure.savefig(path, dpi=_DPI)


def draw_confusion(path: Path, tasks: Mapping[str, ClassificationMetrics]) -> None:
    """Confusion matrices, by the name of their task; at least one."""
    widest = max(len(found.labels) for found in tasks.values())
    size = max(3.4, 0.55 * widest + 1.8)
    figure = Figure(figsize=(size * len(tasks) + 0.6, size), layout="constrained")
    grid = figure.subplots(1, len(tasks), squeeze=False)
    for axis, (name, found) in zip(grid[0], tasks.items(), strict=True):
        _confusion(axis, name, found)
    figure.savefig(path, dpi=_DPI)


def draw_curve(path: Path, curve: Sequence[CurvePoint]) -> None:
    """Training and validation loss by optimizer step."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axis = figure.subplots()
    training = [(p.step, p.training_loss) for p in curve if p.training_loss is not None]
    validation = [(p.step, p.validation_loss) for p in curve if p.validation_loss is not None]
    for points, label, color, marker in (
        (training, "training", _BLUE, ""),
        (validation, "validation", _ORANGE, "o"),
    ):
        if points:
            steps, losses = zip(*points, strict=True)
            # A single point is no line: it would not be seen without a marker.
            axis.plot(steps, losses, label=label, color=color, marker=marker or _dot(points))
    axis.set_xlabel("optimizer step")
    axis.set_ylabel("loss, nats per token")
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=_DPI)


def draw_trials(path: Path, trials: Sequence[Trial]) -> None:
    """The validation loss of each trial of a search, and the best so far."""
    figure = Figure(figsize=(7, 3.8), layout="constrained")
    axis = figure.subplots()
    complete = [(t.number, t.loss) for t in trials if t.loss is not None and math.isfinite(t.loss)]
    numbers, losses = zip(*complete, strict=True) if complete else ((), ())
    axis.scatter(numbers, losses, color=_BLUE, label="trial", zorder=3)
    best = [min(losses[: index + 1]) for index in range(len(losses))]
    axis.step(numbers, best, where="post", color=_ORANGE, label="best so far")
    axis.set_xlabel("trial")
    axis.set_ylabel("validation loss, nats per token")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)
    axis.legend()
    figure.savefig(path, dpi=_DPI)


def _by_task(summaries: Sequence[Summary]) -> Mapping[str, list[Summary]]:
    rows: dict[str, list[Summary]] = {}
    for summary in summaries:
        rows.setdefault(summary.name, []).append(summary)
    return rows


def _shares(summary: Summary) -> tuple[tuple[str, str], tuple[str, str]]:
    """Titles and fields of the two shares worth seeing for such a task."""
    if summary.classification is None:
        return ("exact match", "exact_match"), ("wins over the base", "win_rate_over_base")
    positive = summary.classification.positive
    return ("accuracy", "accuracy"), (f"F1 of {positive}" if positive else "macro F1", "f1")


def _bars(
    axis: Axes, title: str, items: Sequence[Summary], estimates: Sequence[Estimate | None]
) -> None:
    for position, (item, estimate) in enumerate(zip(items, estimates, strict=True)):
        if estimate is None or not math.isfinite(estimate.value):
            axis.text(0, position, " –", va="center")
            continue
        axis.barh(position, estimate.value, color=_COLORS[item.role], height=0.62)
        end = estimate.value
        if math.isfinite(estimate.low) and math.isfinite(estimate.high):
            axis.plot([estimate.low, estimate.high], [position] * 2, color="black", lw=1.4)
            end = max(end, estimate.high)
        axis.text(end, position, f" {estimate.value:.3f}", va="center", fontsize=9)
    axis.set_yticks(range(len(items)), [item.role.value for item in items])
    axis.set_ylim(len(items) - 0.4, -0.6)
    axis.set_title(_plain(title), fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)


def _confusion(axis: Axes, name: str, found: ClassificationMetrics) -> None:
    rows = [list(row) for row in found.confusion]
    labels = [_plain(label) for label in found.labels]
    columns = [*labels, "no class"]
    if not any(row[-1] for row in rows):
        rows, columns = [row[:-1] for row in rows], columns[:-1]
    shares = [[count / max(sum(row), 1) for count in row] for row in rows]
    axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for y, row in enumerate(rows):
        for x, count in enumerate(row):
            color = "white" if shares[y][x] > 0.5 else "black"
            axis.text(x, y, str(count), ha="center", va="center", color=color, fontsize=9)
    axis.set_xticks(range(len(columns)), columns, rotation=45 if len(columns) > 3 else 0)
    axis.set_yticks(range(len(labels)), labels)
    axis.set_xlabel("predicted")
    axis.set_ylabel("right")
    axis.set_title(_plain(name), fontsize=10)


def _plain(text: str) -> str:
    """Short, on one line, and no formula: matplotlib reads what stands between dollar signs."""
    text = " ".join(text.split())
    return (text if len(text) <= _LONGEST_NAME else f"{text[: _LONGEST_NAME - 1]}…").replace(
        "$", r"\$"
    )


def _dot(points: Sequence[object]) -> str:
    return "o" if len(points) == 1 else ""
