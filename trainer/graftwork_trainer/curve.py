"""The losses of a training, over all attempts of its job."""

import json
from pathlib import Path

from graftwork_trainer.evaluation.report_content import CurvePoint

_MAX_POINTS = 500


class LossCurve:
    """A file of a job's work folder; a step that is taken again replaces what it gave before."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "curve.jsonl"

    def add(self, step: int, loss: float) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([step, loss]) + "\n")

    def points(self) -> list[CurvePoint]:
        """At most a few hundred, evenly spread."""
        losses: dict[int, float] = {}
        if self._path.exists():
            for line in self._path.read_text(encoding="utf-8").splitlines():
                try:
                    step, loss = json.loads(line)
                except ValueError:  # the last line of a killed process
                    continue
                losses[step] = loss
        steps = sorted(losses)
        stride = -(-len(steps) // _MAX_POINTS) or 1
        return [CurvePoint(step, training_loss=losses[step]) for step in steps[::stride]]
