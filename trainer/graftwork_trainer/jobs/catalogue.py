"""What a job may ask for: recipes with the example formats that they learn from, and methods."""

from collections.abc import Mapping
from dataclasses import dataclass

from graftwork_trainer.datasets.examples import FORMATS

# The first is taken where a job names none.
RECIPE_FORMATS: Mapping[str, tuple[str, ...]] = {
    "sft": ("sft", "classification"),
    "reward": ("reward", "preference"),
    "dpo": ("preference",),
    "kto": ("unpaired",),
    "orpo": ("preference",),
    # Only their prompts are taken.
    "ppo": FORMATS,
    "grpo": FORMATS,
    "rloo": FORMATS,
}
DEFAULT_RECIPE = "sft"
DEFAULT_METHOD = "LORA"


@dataclass(frozen=True, slots=True)
class Catalogue:
    """What this server can train."""

    recipe_formats: Mapping[str, tuple[str, ...]]
    methods: frozenset[str]  # PEFT's names

    def formats_of(self, recipe: str) -> tuple[str, ...]:
        """Of a known recipe, or of the default one where it is ""."""
        return self.recipe_formats[recipe or DEFAULT_RECIPE]
