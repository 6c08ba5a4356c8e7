"""What the recipes over preferences share: token ids as the server would make them, a reference
model, and how TRL's trainers are kept from tokenizing anew."""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset
from graftwork.status import InvalidFieldError
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, set_seed

from graftwork_trainer.methods.attach import AttachedAdapter, attach_initial, carried_prompt
from graftwork_trainer.recipes.checkpoints import CheckpointedTrainer
from graftwork_trainer.recipes.common import attach, count_steps, run_trainer, torch_threads
from graftwork_trainer.recipes.reporting import ProgressReporter
from graftwork_trainer.recipes.run import TrainingRun, TrainingSummary
from graftwork_trainer.recipes.tokenization import ExampleTokenizer, prompt_of, read_lines, text_of

Row = dict[str, Any]
MakeTrainer = Callable[[AttachedAdapter, Dataset, Dataset | None, int], Trainer]


@dataclass(slots=True)
class Rows:
    """Examples that are short enough, and how many are not or teach nothing."""

    rows: list[Row] = field(default_factory=list)
    too_long: int = 0
    equal: int = 0  # both answers are the same

    @property
    def left_out(self) -> int:
        return self.too_long + self.equal


class PretokenizedTrainer(CheckpointedTrainer):
    """Mixed into a trainer of TRL before it, whose rows are token ids already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


def read_pairs(run: TrainingRun, path: Path) -> Rows:
    """Rows of `prompt_ids`, `chosen_ids` and `rejected_ids`, from examples in the format
    preference. Raises InvalidFieldError."""
    tokenizer = ExampleTokenizer(run.base, carried_prompt(run.initial))
    found = Rows()
    for name, value in read_lines(path):
        check_format(value, ("preference",), name)
        texts = [text_of(value, key, name) for key in ("chosen", "rejected")]
        if texts[0] == texts[1]:
            found.equal += 1
            continue
        prompt = prompt_of(value, name)
        chosen, rejected = (tokenizer.tokenize(prompt, text, name) for text in texts)
        if max(len(chosen), len(rejected)) > run.hyperparameters.max_length:
            found.too_long += 1
            continue
        found.rows.append(
            {
                "prompt_ids": list(chosen.prompt),
                "chosen_ids": list(chosen.completion),
                "rejected_ids": list(rejected.completion),
            }
        )
    return found


def check_format(value: Mapping[str, Any], formats: tuple[str, ...], name: str) -> None:
    """Raises InvalidFieldError for an example of another format."""
    if value.get("format") not in formats:
        raise InvalidFieldError(f"{name}.format", f"must be {' or '.join(formats)}")


def train_by_trl(
    run: TrainingRun,
    read: Callable[[TrainingRun, Path], Rows],
    make_trainer: MakeTrainer,
    *,
    make_model: Callable[[TrainingRun, int], AttachedAdapter] | None = None,
    after: Callable[[AttachedAdapter, list[Row]], Mapping[str, float]] | None = None,
) -> Path:
    """Trains, evaluates on the validation split and saves; returns the adapter's folder. A run
    that was killed goes on from its last checkpoint; one that is done is not done again.

    `make_trainer` gets adapter, training rows, validation rows and the number of steps; `after`
    gives further figures of the trained adapter on the validation rows. Raises InvalidFieldError
    for what cannot be trained, TrainingStopped where `should_stop` said so.
    """
    if run.adapter_folder.exists():
        return run.adapter_folder
    run.folder.mkdir(parents=True, exist_ok=True)
    with torch_threads(run.threads):
        _train(run, read, make_trainer, make_model or _causal_model, after)
    return run.adapter_folder


def _train(
    run: TrainingRun,
    read: Callable[[TrainingRun, Path], Rows],
    make_trainer: MakeTrainer,
    make_model: Callable[[TrainingRun, int], AttachedAdapter],
    after: Callable[[AttachedAdapter, list[Row]], Mapping[str, float]] | None,
) -> None:
    parameters = run.hyperparameters
    found = read(run, run.train)
    if not found.rows:
        raise _nothing_left(run, found)
    validation = read(run, run.validation).rows if run.validation else []
    total_steps = count_steps(len(found.rows), parameters)

    set_seed(parameters.seed)
    adapter = make_model(run, total_steps)
    reporter = ProgressReporter(run.progress)
    trainer = make_trainer(
        adapter,
        Dataset.from_list(found.rows),
        Dataset.from_list(validation) if validation else None,
        total_steps,
    )
    trainer.add_callback(reporter)
    run_trainer(run, trainer, adapter)

    metrics = _validation_metrics(trainer) if validation else {}
    if validation and after is not None:
        metrics |= after(adapter, validation)
    TrainingSummary(
        method=adapter.method.peft_type,
        steps=total_steps,
        train_loss=reporter.final_loss,
        validation_loss=metrics.pop("loss", None),
        train_examples=len(found.rows),
        validation_examples=len(validation),
        left_out=found.left_out,
        trained_parameters=adapter.num_trained,
        tokens=int(getattr(trainer, "_total_train_tokens", 0)),
        seconds=reporter.seconds,
        metrics=metrics,
    ).write(run.folder)
    adapter.save(run.adapter_folder, run.base.description.digest)


def reference_model(run: TrainingRun) -> PreTrainedModel:
    """What the policy is compared with: the base, or the version that the run goes on from. A tree
    of its own over the base's weights, so that it costs no memory and no adapter is switched off
    and on. Raises InvalidFieldError for a version with virtual tokens."""
    model = run.base.fresh_model()
    padded_attention(model)
    if run.initial is None:
        return model
    adapter = attach_initial(model, run.initial, run.base.description.digest)
    if not adapter.method.packs:
        raise InvalidFieldError(
            "initial_version",
            f"{adapter.method.peft_type} cannot be gone on from by this recipe: train anew",
        )
    adapter.model.requires_grad_(requires_grad=False)
    return adapter.base  # with the adapter in its modules


def padded_attention(model: PreTrainedModel) -> None:
    """TRL's batches are padded, not packed."""
    capped = getattr(model.config, "attn_logit_softcapping", None)
    model.set_attn_implementation("eager" if capped else "sdpa")


def own_tokenizer(run: TrainingRun) -> PreTrainedTokenizerFast:
    """For a trainer that sets the padding token."""
    return copy.deepcopy(run.base.tokenizer)


def precomputes_reference(run: TrainingRun) -> bool:
    """Whether each example is seen more than once: then its reference is computed ahead."""
    return run.hyperparameters.epochs > 1


def _causal_model(run: TrainingRun, total_steps: int) -> AttachedAdapter:
    model = run.base.fresh_model()
    adapter = attach(run, model, total_steps)
    padded_attention(model)
    return adapter


def _validation_metrics(trainer: Trainer) -> dict[str, float]:
    """By TRL's names without "eval_"; times are left out."""
    found = trainer.evaluate()
    timing = ("runtime", "per_second", "epoch")
    return {
        name.removeprefix("eval_"): float(value)
        for name, value in found.items()
        if not name.endswith(timing)
    }


def _nothing_left(run: TrainingRun, found: Rows) -> InvalidFieldError:
    if found.too_long:
        return InvalidFieldError(
            "hyperparameters.max_length",
            f"is {run.hyperparameters.max_length} tokens, and each of the {found.too_long} "
            "examples is longer: raise it",
        )
    if found.equal:
        return InvalidFieldError(
            "dataset", f"all {found.equal} examples prefer an answer to itself"
        )
    return InvalidFieldError("dataset", "holds no example to train on")
