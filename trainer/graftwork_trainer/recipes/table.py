"""The recipes by name; `jobs/catalogue.py` says what each learns from."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from graftwork_trainer.recipes.dpo import train_dpo
from graftwork_trainer.recipes.grpo import train_grpo, train_rloo
from graftwork_trainer.recipes.kto import train_kto
from graftwork_trainer.recipes.online import ServingAccess
from graftwork_trainer.recipes.orpo import train_orpo
from graftwork_trainer.recipes.ppo import train_ppo
from graftwork_trainer.recipes.reward import train_reward
from graftwork_trainer.recipes.run import TrainingRun
from graftwork_trainer.recipes.sft import train_sft

# From a run and a job's recipe_options to the adapter's folder.
RECIPES: Mapping[str, Callable[[TrainingRun, Mapping[str, Any]], Path]] = {
    "sft": lambda run, _: train_sft(run),
    "reward": train_reward,
    "dpo": train_dpo,
    "kto": train_kto,
    "orpo": train_orpo,
}
# The same for those that ask the server for answers.
ONLINE_RECIPES: Mapping[str, Callable[[TrainingRun, ServingAccess, Mapping[str, Any]], Path]] = {
    "ppo": train_ppo,
    "grpo": train_grpo,
    "rloo": train_rloo,
}
