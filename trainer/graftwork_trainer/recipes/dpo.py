"""Direct preference optimization (Rafailov et al., 2023, arXiv:2305.18290), by TRL."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import Trainer
from trl import DPOConfig, DPOTrainer

from graftwork_trainer.methods.attach import AttachedAdapter
from graftwork_trainer.recipes.common import training_arguments
from graftwork_trainer.recipes.options import DpoOptions
from graftwork_trainer.recipes.preferences import (
    PretokenizedTrainer,
    own_tokenizer,
    precomputes_reference,
    read_pairs,
    reference_model,
    train_by_trl,
)
from graftwork_trainer.recipes.run import TrainingRun


class _Trainer(PretokenizedTrainer, DPOTrainer):
    pass


def train_dpo(run: TrainingRun, options: Mapping[str, Any] | None = None) -> Path:
    """Trains an adapter to prefer what was chosen; errors as `preferences.train_by_trl`."""
    chosen = DpoOptions.parse(options or {})

    def make_trainer(
        adapter: AttachedAdapter, train: Dataset, validation: Dataset | None, total_steps: int
    ) -> Trainer:
        return _Trainer(
            model=adapter.model,
            ref_model=reference_model(run),
            args=DPOConfig(
                **training_arguments(run, adapter.method, total_steps),
                per_device_eval_batch_size=run.hyperparameters.batch_size,
                beta=chosen.beta,
                max_length=None,
                precompute_ref_log_probs=precomputes_reference(run),
            ),
            train_dataset=train,
            eval_dataset=validation,
            processing_class=own_tokenizer(run),
        )

    return train_by_trl(run, read_pairs, make_trainer)
