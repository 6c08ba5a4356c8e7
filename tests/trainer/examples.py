"""Snapshots of a task that a tiny model can learn."""

import json
from pathlib import Path
from typing import Any

from graftwork_trainer.base.model import TrainingBase
from graftwork_trainer.recipes.hyperparameters import Hyperparameters
from graftwork_trainer.recipes.run import TrainingRun

WORDS = ["fox", "dog", "world", "hello", "quick", "brown", "lazy", "jumps"]


def write_examples(path: Path, count: int, *, offset: int = 0) -> Path:
    """Answers "ham" or "spam", whichever the last word says."""
    lines = []
    for index in range(offset, offset + count):
        word = WORDS[index % len(WORDS)]
        messages = [{"role": "user", "content": f"{'the ' * (index % 5)}{word}"}]
        lines.append(
            {
                "format": "classification",
                "id": f"e{index}",
                "task": "t",
                "prompt": {"messages": messages},
                "completion": "spam" if len(word) > 4 else "ham",
            }
        )
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def make_run(base: TrainingBase, folder: Path, **changes: Any) -> TrainingRun:
    """Sixteen steps in folder/run; `hyperparameters` are changes of the defaults here."""
    parameters = {"epochs": 2.0, "batch_size": 4, "learning_rate": 0.01}
    parameters |= changes.pop("hyperparameters", {})
    fields: dict[str, Any] = {
        "base": base,
        "train": write_examples(folder / "train.jsonl", 32),
        "validation": write_examples(folder / "validation.jsonl", 8, offset=100),
        "folder": folder / "run",
        "hyperparameters": Hyperparameters(**parameters),
    }
    return TrainingRun(**{**fields, **changes})
