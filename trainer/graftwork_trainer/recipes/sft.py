"""Supervised fine-tuning: learn to say the completions."""

from pathlib import Path

from datasets import Dataset
from graftwork.status import InvalidFieldError
from transformers import set_seed
from trl import SFTConfig

from graftwork_trainer.base.completion_loss import add_completion_loss
from graftwork_trainer.methods.attach import carried_prompt
from graftwork_trainer.recipes import batches
from graftwork_trainer.recipes.common import (
    attach,
    count_steps,
    run_trainer,
    torch_threads,
    training_arguments,
)
from graftwork_trainer.recipes.reporting import ProgressReporter
from graftwork_trainer.recipes.run import TrainingRun, TrainingSummary
from graftwork_trainer.recipes.sft_trainer import CompletionSftTrainer, mean_loss
from graftwork_trainer.recipes.tokenization import ExampleTokenizer, prompt_of, read_lines, text_of

FORMATS = ("sft", "classification")


def train_sft(run: TrainingRun) -> Path:
    """Trains an adapter on the completions of a snapshot; returns its folder, which can be
    registered. A run that was killed goes on from its last checkpoint; one that is done is not
    done again.

    Raises InvalidFieldError for what cannot be trained, TrainingStopped where `should_stop` said
    so, OSError where the disk is full.
    """
    if run.adapter_folder.exists():
        return run.adapter_folder
    run.folder.mkdir(parents=True, exist_ok=True)
    with torch_threads(run.threads):
        _train(run)
    return run.adapter_folder


def _train(run: TrainingRun) -> None:
    parameters = run.hyperparameters
    rows, left_out = _read_rows(run, run.train)
    if not rows:
        raise _nothing_left(run, left_out)
    validation, _ = _read_rows(run, run.validation) if run.validation else ([], 0)
    total_steps = count_steps(len(rows), parameters)

    set_seed(parameters.seed)
    model = run.base.fresh_model()
    add_completion_loss(model)
    adapter = attach(run, model, total_steps)

    reporter = ProgressReporter(run.progress)
    collate = batches.packed if adapter.method.packs else batches.padded
    trainer = CompletionSftTrainer(
        reporter=reporter,
        group_size=parameters.shifted_attention_group,
        model=adapter.model,
        args=SFTConfig(
            **training_arguments(run, adapter.method, total_steps),
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        ),
        train_dataset=Dataset.from_list(rows),
        data_collator=collate,
        processing_class=run.base.tokenizer,
    )
    run_trainer(run, trainer, adapter)

    validation_loss = None
    if validation:
        size = parameters.batch_size
        parts = (validation[i : i + size] for i in range(0, len(validation), size))
        validation_loss = mean_loss(adapter.model, map(collate, parts))
    TrainingSummary(
        method=adapter.method.peft_type,
        steps=total_steps,
        train_loss=reporter.final_loss,
        validation_loss=validation_loss,
        train_examples=len(rows),
        validation_examples=len(validation),
        left_out=left_out,
        trained_parameters=adapter.num_trained,
        tokens=reporter.num_tokens,
        seconds=reporter.seconds,
    ).write(run.folder)
    adapter.save(run.adapter_folder, run.base.description.digest)


def _read_rows(run: TrainingRun, path: Path) -> tuple[list[batches.Row], int]:
    """The examples that are short enough, and how many are not."""
    tokenizer = ExampleTokenizer(run.base, carried_prompt(run.initial))
    rows, left_out = [], 0
    for name, value in read_lines(path):
        if value.get("format") not in FORMATS:
            raise InvalidFieldError(f"{name}.format", f"must be one of {', '.join(FORMATS)}")
        completion = text_of(value, "completion", name)
        example = tokenizer.tokenize(prompt_of(value, name), completion, name)
        if len(example) > run.hyperparameters.max_length:
            left_out += 1
            continue
        rows.append(batches.row_of(example, train_on_prompt=run.hyperparameters.train_on_prompt))
    return rows, left_out


def _nothing_left(run: TrainingRun, left_out: int) -> InvalidFieldError:
    if not left_out:
        return InvalidFieldError("dataset", "holds no example to train on")
    return InvalidFieldError(
        "hyperparameters.max_length",
        f"is {run.hyperparameters.max_length} tokens, and each of the {left_out} examples is "
        "longer: raise it",
    )
