"""Looks for hyperparameters with Optuna, by the validation loss of short trainings."""

import dataclasses
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import optuna
from graftwork.status import InvalidFieldError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from graftwork_trainer.methods.catalogue import find_method
from graftwork_trainer.methods.method import BaseShape
from graftwork_trainer.recipes.common import count_steps
from graftwork_trainer.recipes.hyperparameters import Hyperparameters
from graftwork_trainer.recipes.run import TrainingRun, TrainingStopped, read_summary

PARAMETERS = ("learning_rate", "rank", "epochs", "batch_size")
MAX_TRIALS = 100
_RANKS = (4, 8, 16, 32, 64)
_BATCH_SIZES = (4, 8, 16, 32)
_MAX_EPOCHS = 5
_FOLDER = "search"


@dataclass(frozen=True, slots=True)
class SearchSpec:
    """`graftwork.v1.SearchSpec`, checked. Raises InvalidFieldError."""

    trials: int
    parameters: tuple[str, ...] = PARAMETERS
    steps_per_trial: int | None = None  # None: a quarter of the run's

    def __post_init__(self) -> None:
        if not 1 <= self.trials <= MAX_TRIALS:
            raise InvalidFieldError("search.trials", f"must be from 1 to {MAX_TRIALS}")
        if unknown := [name for name in self.parameters if name not in PARAMETERS]:
            raise InvalidFieldError(
                "search.parameters", f"{unknown[0]!r} is none of {', '.join(PARAMETERS)}"
            )
        if self.steps_per_trial is not None and self.steps_per_trial < 1:
            raise InvalidFieldError("search.steps_per_trial", "must be at least 1")


@dataclass(frozen=True, slots=True)
class Trial:
    """One short training, for the report."""

    number: int
    values: Mapping[str, float]  # by the name in PARAMETERS
    validation_loss: float | None  # None: it could not be trained
    steps: int = 0
    error: str = ""


@dataclass(frozen=True, slots=True)
class SearchResult:
    """All trials in their order, and the run that the best one makes."""

    trials: tuple[Trial, ...]
    best: Trial
    run: TrainingRun

    def to_json(self) -> dict[str, Any]:
        """For the report."""
        return {
            "trials": [dataclasses.asdict(trial) for trial in self.trials],
            "best": dataclasses.asdict(self.best),
        }


def search(
    run: TrainingRun,
    spec: SearchSpec,
    train: Callable[[TrainingRun], Path],
    on_trial: Callable[[Trial], None] = lambda _: None,
) -> SearchResult:
    """Trains `spec.trials` short runs with `train`, a recipe such as `train_sft`, and returns `run`
    with the best values. A search that was killed goes on after its last finished trial.

    Raises InvalidFieldError where there is nothing to search by or no trial could be trained,
    TrainingStopped where the run's `should_stop` said so.
    """
    if run.validation is None or not run.validation.stat().st_size:
        raise InvalidFieldError("search", "needs validation examples: raise validation_share")
    space = _Space.of(run, spec)
    folder = run.folder / _FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    study = _open_study(folder / "trials.log", run.hyperparameters.seed)

    def objective(trial: optuna.Trial) -> float:
        own = dataclasses.replace(
            space.suggest(trial), folder=folder / f"trial-{trial.number}", initial=run.initial
        )
        try:
            train(own)
        except InvalidFieldError as error:
            trial.set_user_attr("error", error.message)
            raise
        summary = read_summary(own.folder)
        trial.set_user_attr("steps", summary.steps)
        shutil.rmtree(own.folder)
        return summary.validation_loss if summary.validation_loss is not None else math.nan

    while (done := _finished(study)) < spec.trials:
        study.optimize(objective, n_trials=1, catch=(InvalidFieldError,))
        if _finished(study) > done:
            on_trial(_trial_of(study.trials[-1]))
        if run.should_stop():
            raise TrainingStopped("stopped between two trials")
    trials = tuple(_trial_of(trial) for trial in study.trials if trial.state.is_finished())
    result = SearchResult(trials, _best(trials), space.chosen(study))
    (folder / "search.json").write_text(json.dumps(result.to_json(), indent=2))
    return result


@dataclass(frozen=True, slots=True)
class _Space:
    """What is searched, around a run."""

    run: TrainingRun
    parameters: tuple[str, ...]
    steps: int

    @classmethod
    def of(cls, run: TrainingRun, spec: SearchSpec) -> "_Space":
        parameters = spec.parameters or PARAMETERS
        has_rank = run.initial is None and "r" in find_method(run.method).defaults(
            BaseShape.of(run.base.model)
        )
        if not has_rank and parameters == PARAMETERS:
            parameters = tuple(name for name in PARAMETERS if name != "rank")
        elif not has_rank and "rank" in parameters:
            raise InvalidFieldError(
                "search.parameters", f"{run.method} of this job has no rank to search"
            )
        with run.train.open("rb") as lines:
            num_examples = sum(1 for _ in lines)
        steps = spec.steps_per_trial or max(1, count_steps(num_examples, run.hyperparameters) // 4)
        return cls(run, parameters, steps)

    def suggest(self, trial: optuna.Trial) -> TrainingRun:
        """A short run for a trial."""
        usual = self.run.hyperparameters.learning_rate
        if usual is None:
            usual = find_method(self.run.method).learning_rate
        values: dict[str, Any] = {}
        for name in self.parameters:
            match name:
                case "learning_rate":
                    values[name] = trial.suggest_float(name, usual / 10, usual * 10, log=True)
                case "rank":
                    values[name] = trial.suggest_categorical(name, _RANKS)
                case "epochs":
                    values[name] = trial.suggest_int(name, 1, _MAX_EPOCHS)
                case "batch_size":
                    values[name] = trial.suggest_categorical(name, _BATCH_SIZES)
        changed = _with_values(self.run, values)
        limit = min(self.steps, self.run.hyperparameters.max_steps or self.steps)
        return dataclasses.replace(
            changed, hyperparameters=changed.hyperparameters.replaced(max_steps=limit)
        )

    def chosen(self, study: optuna.Study) -> TrainingRun:
        """The whole run with the best values."""
        return _with_values(self.run, study.best_trial.params)


def _with_values(run: TrainingRun, values: Mapping[str, Any]) -> TrainingRun:
    config = dict(run.method_config)
    if "rank" in values:
        config["r"] = values["rank"]
        if run.method.upper() == "LORA":
            config["lora_alpha"] = 2 * values["rank"]
    changes = {name: value for name, value in values.items() if name != "rank"}
    if "epochs" in changes:
        changes["epochs"] = float(changes["epochs"])
    parameters: Hyperparameters = run.hyperparameters.replaced(**changes)
    return dataclasses.replace(run, hyperparameters=parameters, method_config=config)


def _open_study(path: Path, seed: int) -> optuna.Study:
    logging.getLogger("optuna").setLevel(logging.WARNING)
    study = optuna.create_study(
        study_name=_FOLDER,
        storage=JournalStorage(JournalFileBackend(str(path))),
        load_if_exists=True,
    )
    for trial in study.trials:
        if not trial.state.is_finished():  # the process died in it
            study.tell(trial.number, state=TrialState.FAIL)
            shutil.rmtree(path.parent / f"trial-{trial.number}", ignore_errors=True)
    # The same seed would suggest again what was tried before.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    return study


def _finished(study: optuna.Study) -> int:
    """Trials that gave an answer: those that died are not counted."""
    return sum(
        trial.state == TrialState.COMPLETE or "error" in trial.user_attrs for trial in study.trials
    )


def _trial_of(trial: FrozenTrial) -> Trial:
    return Trial(
        trial.number,
        dict(trial.params),
        trial.value if trial.state == TrialState.COMPLETE else None,
        trial.user_attrs.get("steps", 0),
        trial.user_attrs.get("error", ""),
    )


def _best(trials: tuple[Trial, ...]) -> Trial:
    able = [trial for trial in trials if trial.validation_loss is not None]
    if not able:
        raise InvalidFieldError("search", f"no trial could be trained: {trials[-1].error}")
    return min(able, key=lambda trial: trial.validation_loss or 0.0)
