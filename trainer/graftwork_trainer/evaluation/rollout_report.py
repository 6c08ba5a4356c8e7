"""What a training on rewards adds to the gate's report: how reward, divergence from the base,
length and diversity went, so that over-optimisation shows (Gao et al., "Scaling laws for reward
model overoptimization", 2022, arXiv:2210.10760)."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.figure import Figure

_SECTION = "## Rollouts"
_ROWS = (
    ("reward", "mean reward"),
    ("kl", "KL from the reference, nats for each answer"),
    ("entropy", "entropy, nats per token"),
    ("length", "length, tokens"),
    ("truncated", "share cut off at max_tokens"),
    ("sampler_gap", "the engine's log-probabilities against the trainer's, mean difference"),
    ("skipped", "answers skipped"),
)


def add_rollouts(report: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Adds a section and rollouts.png to the report in a folder, once; `history` has the figures
    of each iteration. Raises OSError."""
    markdown = report / "report.md"
    text = markdown.read_text(encoding="utf-8")
    if _SECTION in text or not history:
        return
    _draw(report / "rollouts.png", history)
    lines = [_SECTION, "", f"{len(history)} iterations.", ""]
    lines += ["| | first | last |", "|---|---|---|"]
    for key, label in _ROWS:
        lines.append(f"| {label} | {history[0][key]:.4g} | {history[-1][key]:.4g} |")
    lines += ["", "![Rollouts](rollouts.png)", ""]
    json_path = report / "report.json"
    value = json.loads(json_path.read_text(encoding="utf-8"))
    value["rollouts"] = [dict(entry) for entry in history]
    json_path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    # Last: its heading says that all is there.
    markdown.write_text(text.rstrip("\n") + "\n\n" + "\n".join(lines), encoding="utf-8")


def _draw(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    figure = Figure(figsize=(10, 6), layout="constrained")
    (over_time, against), (lengths, entropies) = figure.subplots(2, 2)
    column = {key: [entry[key] for entry in history] for key, _ in _ROWS}
    over_time.plot(column["reward"])
    over_time.set(xlabel="iteration", ylabel="mean reward")
    against.plot(column["kl"], column["reward"], marker=".")
    against.set(xlabel="KL from the reference, nats for each answer", ylabel="mean reward")
    lengths.plot(column["length"])
    lengths.set(xlabel="iteration", ylabel="length, tokens")
    entropies.plot(column["entropy"])
    entropies.set(xlabel="iteration", ylabel="entropy, nats per token")
    figure.savefig(path, dpi=110)
