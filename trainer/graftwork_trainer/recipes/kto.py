"""Kahneman-Tversky optimization (Ethayarajh et al., 2024, arXiv:2402.01306), by TRL: learns from
answers that are good or bad by themselves."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from datasets import Dataset
from graftwork.status import InvalidFieldError
from transformers import Trainer
from trl import KTOConfig, KTOTrainer

from graftwork_trainer.methods.attach import AttachedAdapter, carried_prompt
from graftwork_trainer.recipes.common import training_arguments
from graftwork_trainer.recipes.options import KtoOptions
from graftwork_trainer.recipes.preferences import (
    PretokenizedTrainer,
    Rows,
    check_format,
    own_tokenizer,
    precomputes_reference,
    reference_model,
    train_by_trl,
)
from graftwork_trainer.recipes.run import TrainingRun
from graftwork_trainer.recipes.tokenization import ExampleTokenizer, prompt_of, read_lines, text_of


class _Trainer(PretokenizedTrainer, KTOTrainer):
    pass


def train_kto(run: TrainingRun, options: Mapping[str, Any] | None = None) -> Path:
    """Trains an adapter to give answers like the good ones; errors as
    `preferences.train_by_trl`."""
    chosen = KtoOptions.parse(options or {})
    if run.hyperparameters.batch_size < 2:
        raise InvalidFieldError(
            "hyperparameters.batch_size",
            "must be at least 2: the divergence is estimated on the answers to other prompts",
        )

    def make_trainer(
        adapter: AttachedAdapter, train: Dataset, validation: Dataset | None, total_steps: int
    ) -> Trainer:
        return _Trainer(
            model=adapter.model,
            ref_model=reference_model(run),
            args=KTOConfig(
                **training_arguments(run, adapter.method, total_steps),
                per_device_eval_batch_size=run.hyperparameters.batch_size,
                train_sampling_strategy="sequential",
                beta=chosen.beta,
                desirable_weight=chosen.desirable_weight,
                undesirable_weight=chosen.undesirable_weight,
                max_length=None,
                precompute_ref_log_probs=precomputes_reference(run),
            ),
            train_dataset=train,
            eval_dataset=validation,
            processing_class=own_tokenizer(run),
        )

    return train_by_trl(run, _read, make_trainer)


def _read(run: TrainingRun, path: Path) -> Rows:
    """Rows of `prompt_ids`, `completion_ids`, `label`, and `KL_completion_ids`: the answer of the
    row before in its batch, as TRL pairs them. Raises InvalidFieldError."""
    tokenizer = ExampleTokenizer(run.base, carried_prompt(run.initial))
    found = Rows()
    for name, value in read_lines(path):
        check_format(value, ("unpaired",), name)
        label = value.get("label")
        if not isinstance(label, bool):
            raise InvalidFieldError(f"{name}.label", "must be true or false")
        example = tokenizer.tokenize(
            prompt_of(value, name), text_of(value, "completion", name), name
        )
        if len(example) > run.hyperparameters.max_length:
            found.too_long += 1
            continue
        found.rows.append(
            {
                "prompt_ids": list(example.prompt),
                "completion_ids": list(example.completion),
                "label": label,
            }
        )
    labels = {row["label"] for row in found.rows}
    if path == run.train and len(labels) == 1:
        raise InvalidFieldError(
            "dataset",
            f"all {len(found.rows)} answers are {'good' if labels.pop() else 'bad'}: there is "
            "nothing to tell apart",
        )
    size = run.hyperparameters.batch_size
    for start in range(0, len(found.rows), size):
        batch = found.rows[start : start + size]
        for place, row in enumerate(batch):
            row["KL_completion_ids"] = batch[place - 1]["completion_ids"]
    return found
