"""Odds ratio preference optimization (Hong et al., 2024, arXiv:2403.07691), by TRL: learns the
chosen answers and, at once, to prefer them; without a reference."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from graftwork.status import InvalidFieldError
from transformers import Trainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from graftwork_trainer.methods.attach import AttachedAdapter
from graftwork_trainer.recipes.common import training_arguments
from graftwork_trainer.recipes.options import OrpoOptions
from graftwork_trainer.recipes.preferences import (
    PretokenizedTrainer,
    Row,
    Rows,
    own_tokenizer,
    read_pairs,
    train_by_trl,
)
from graftwork_trainer.recipes.run import TrainingRun

_IGNORED = -100


class _Trainer(PretokenizedTrainer, ORPOTrainer):
    def tokenize_row(self, feature: Row, model: object = None) -> Row:  # noqa: ARG002 - TRL's
        """Its columns for a pair of token ids."""
        columns: Row = {}
        prompt = feature["prompt_ids"]
        for side in ("chosen", "rejected"):
            completion = feature[f"{side}_ids"]
            ids = [*prompt, *completion]
            columns[f"{side}_input_ids"] = ids
            columns[f"{side}_attention_mask"] = [1] * len(ids)
            columns[f"{side}_labels"] = [_IGNORED] * len(prompt) + completion
        columns["prompt_input_ids"] = prompt
        columns["prompt_attention_mask"] = [1] * len(prompt)
        return columns


def train_orpo(run: TrainingRun, options: Mapping[str, Any] | None = None) -> Path:
    """Trains an adapter on what was chosen and against what was rejected; errors as
    `preferences.train_by_trl`."""
    chosen = OrpoOptions.parse(options or {})

    def make_trainer(
        adapter: AttachedAdapter, train: Dataset, validation: Dataset | None, total_steps: int
    ) -> Trainer:
        if not adapter.method.packs:
            raise InvalidFieldError(
                "method", f"{adapter.method.peft_type} does not go with orpo: take dpo, or LORA"
            )
        return _Trainer(
            model=adapter.model,
            args=ORPOConfig(
                **training_arguments(run, adapter.method, total_steps),
                per_device_eval_batch_size=run.hyperparameters.batch_size,
                beta=chosen.beta,
                max_length=run.hyperparameters.max_length,
            ),
            train_dataset=train,
            eval_dataset=validation,
            processing_class=_with_padding(own_tokenizer(run)),
        )

    return train_by_trl(run, _read, make_trainer)


def _read(run: TrainingRun, path: Path) -> Rows:
    """TRL wants texts beside the ids; they are not looked at."""
    found = read_pairs(run, path)
    for row in found.rows:
        row.update(prompt="", chosen="", rejected="")
    return found


def _with_padding(tokenizer: Any) -> Any:
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer
