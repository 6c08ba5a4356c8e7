"""The recipes by name; `jobs/catalogue.py` says what each learns from."""

from collections.abc import Callable, Mapping
from pathlib import Path

from graftwork_trainer.recipes.run import TrainingRun
from graftwork_trainer.recipes.sft import train_sft

RECIPES: Mapping[str, Callable[[TrainingRun], Path]] = {"sft": train_sft}
