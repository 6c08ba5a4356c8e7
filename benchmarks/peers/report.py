"""What a comparison found: as JSON, as lines to read, and as a plot."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.machine import describe_machine
from benchmarks.peers.runs import MEASURES, Round, medians


@dataclass(slots=True)
class Comparison:
    """Rounds by system, and why a system has none."""

    rounds: dict[str, list[Round]] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)

    def table(self) -> dict[str, dict[str, float | None]]:
        """Medians in tokens per second, by measure, then system; None where it cannot."""
        found = {name: medians(rounds) for name, rounds in self.rounds.items() if rounds}
        return {
            measure: {
                name: round(found[name][measure], 1) if name in found else None
                for name in self.rounds
            }
            for measure in MEASURES
        }

    def ratios(self, of: str = "graftwork") -> dict[str, dict[str, float]]:
        """How many times as fast one system is as each other, by measure."""
        ratios: dict[str, dict[str, float]] = {}
        for measure, figures in self.table().items():
            own = figures.get(of)
            ratios[measure] = {
                name: round(own / figure, 2)
                for name, figure in figures.items()
                if name != of and own is not None and figure is not None
            }
        return ratios

    def agreement(self) -> dict[str, float]:
        """How far each system's mixed answers begin as PEFT's do: tokens in common before the first
        difference, the mean over requests. Systems that serve other weights than they should agree
        on almost none; quantization makes them part ways later on."""
        if not self.rounds.get("peft"):
            return {}
        reference = self.rounds["peft"][0].mixed_token_ids
        return {
            name: mean_common_prefix(rounds[0].mixed_token_ids, reference)
            for name, rounds in self.rounds.items()
            if rounds and name != "peft"
        }

    def document(self, setting: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "machine": describe_machine(),
            **setting,
            "medians": self.table(),
            "graftwork_is_times": self.ratios(),
            "tokens_in_common_with_peft": self.agreement(),
            "reasons": self.reasons,
            "rounds": {
                name: [
                    {measure: round(each.figures[measure], 1) for measure in MEASURES}
                    for each in rounds
                ]
                for name, rounds in self.rounds.items()
            },
        }


def mean_common_prefix(answers: Sequence[list[int]], reference: Sequence[list[int]]) -> float:
    def common(one: list[int], other: list[int]) -> int:
        pairs = enumerate(zip(one, other, strict=True))
        return next((place for place, (a, b) in pairs if a != b), len(one))

    lengths = [common(one, other) for one, other in zip(answers, reference, strict=True)]
    return round(sum(lengths) / len(lengths), 1)


def write_report(comparison: Comparison, folder: Path, setting: Mapping[str, Any]) -> None:
    """`peers.json` and `peers.png` in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    document = json.dumps(comparison.document(setting), indent=2)
    (folder / "peers.json").write_text(document + "\n", encoding="utf-8")
    plot(comparison.table(), folder / "peers.png")


def plot(table: Mapping[str, Mapping[str, float | None]], path: Path) -> None:
    """A panel for each measure, a bar for each system."""
    import matplotlib as mpl  # noqa: PLC0415 - a second, after --help

    mpl.use("agg")
    from matplotlib import pyplot  # noqa: PLC0415

    figure, axes = pyplot.subplots(2, 3, figsize=(12, 5.6))
    for axis, (measure, figures) in zip(axes.flat, table.items(), strict=True):
        names = list(figures)
        bars = axis.bar(names, [figures[name] or 0 for name in names], color=_colours(names))
        axis.bar_label(
            bars, ["–" if figures[name] is None else f"{figures[name]:.0f}" for name in names]
        )
        axis.set_title(measure)
        axis.set_ylabel("tokens/s")
        axis.margins(y=0.15)
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    pyplot.close(figure)


def _colours(names: Sequence[str]) -> list[str]:
    return ["tab:blue" if name == "graftwork" else "tab:gray" for name in names]
