"""Searches hyperparameters with Optuna: short trainings, judged by their loss on the validation
split. Trials are kept on disk, so that a search that was killed goes on."""

import math
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import optuna
from graftwork.status import InvalidFieldError
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from graftwork_trainer.job_state import Trial
from graftwork_trainer.jobs.spec import SearchSpec
from graftwork_trainer.methods.catalogue import find_method
from graftwork_trainer.recipes.common import count_steps
from graftwork_trainer.recipes.run import TrainingRun, read_summary
from graftwork_trainer.recipes.tokenization import read_lines

RANKS = (4, 8, 16, 32)
BATCH_SIZES = (4, 8, 16)
_RATE_FACTOR = 10.0  # either way of the job's own learning rate
_EPOCHS_FACTOR = 2.0
_RANKED = frozenset({"LORA", "DELORA", "MISS", "VERA", "RANDLORA", "LOHA", "LOKR", "SHIRA", "HRA"})

# Trials that are done, all there will be, and the lowest loss so far.
TellTrial = Callable[[int, int, float | None], None]


@dataclass(frozen=True, slots=True)
class SearchResult:
    chosen: Mapping[str, Any]  # of the best trial: "rank" and fields of Hyperparameters
    trials: tuple[Trial, ...]


def search(
    run: TrainingRun, spec: SearchSpec, recipe: Callable[[TrainingRun], Path], tell: TellTrial
) -> SearchResult:
    """Tries values around those of `run`, in its folder.

    Raises InvalidFieldError where rank is asked for and the method has none, or where no trial
    could be trained, TrainingStopped, and what the recipe raises.
    """
    _check_rank(run, spec)
    run.folder.mkdir(parents=True, exist_ok=True)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        study_name="search",
        storage=JournalStorage(JournalFileBackend(str(run.folder / "trials.log"))),
        load_if_exists=True,
    )
    # The same seed after a crash would suggest again what was tried before it.
    seed = run.hyperparameters.seed + len(study.get_trials(deepcopy=False))
    study.sampler = optuna.samplers.TPESampler(seed=seed)
    num_examples = sum(1 for _ in read_lines(run.train))
    while len(done := _ended(study)) < spec.trials:
        tell(len(done), spec.trials, _lowest(done))
        trial = study.ask()
        loss = _train(_of_trial(run, spec, trial, num_examples), recipe)
        if math.isfinite(loss):
            study.tell(trial, loss)
        else:
            study.tell(trial, state=TrialState.FAIL)
    tell(len(done), spec.trials, _lowest(done))
    return SearchResult(_best(done), tuple(map(_trial, done)))


def _of_trial(
    run: TrainingRun, spec: SearchSpec, trial: optuna.Trial, num_examples: int
) -> TrainingRun:
    """The run with the trial's values, for a part of its steps."""
    parameters, config = run.hyperparameters, dict(run.method_config)
    changes: dict[str, Any] = {}
    if "learning_rate" in spec.parameters:
        rate = parameters.learning_rate or find_method(run.method or "LORA").learning_rate
        low, high = rate / _RATE_FACTOR, min(10.0, rate * _RATE_FACTOR)
        changes["learning_rate"] = trial.suggest_float("learning_rate", low, high, log=True)
    if "epochs" in spec.parameters:
        low, high = parameters.epochs / _EPOCHS_FACTOR, parameters.epochs * _EPOCHS_FACTOR
        changes["epochs"] = trial.suggest_float("epochs", low, high, log=True)
    if "batch_size" in spec.parameters:
        changes["batch_size"] = trial.suggest_categorical("batch_size", BATCH_SIZES)
    if "rank" in spec.parameters:
        config["r"] = trial.suggest_categorical("rank", RANKS)
    parameters = parameters.replaced(**changes)
    steps = math.ceil(count_steps(num_examples, parameters) / 4)
    if spec.steps_per_trial is not None:
        steps = spec.steps_per_trial
    return replace(
        run,
        folder=run.folder / str(trial.number),
        hyperparameters=parameters.replaced(max_steps=steps),
        method_config=config,
    )


def _train(run: TrainingRun, recipe: Callable[[TrainingRun], Path]) -> float:
    recipe(run)
    summary = read_summary(run.folder)
    shutil.rmtree(run.folder)
    return summary.train_loss if summary.validation_loss is None else summary.validation_loss


def _check_rank(run: TrainingRun, spec: SearchSpec) -> None:
    if "rank" in spec.parameters and run.method.upper() not in _RANKED:
        raise InvalidFieldError(
            "search.parameters",
            f"{run.method} has no rank: name the parameters to search, without it",
        )


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    """Those of killed processes still run, and never end."""
    return study.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))


def _lowest(trials: list[FrozenTrial]) -> float | None:
    return min((trial.value for trial in trials if trial.value is not None), default=None)


def _best(trials: list[FrozenTrial]) -> Mapping[str, Any]:
    trained = [trial for trial in trials if trial.value is not None]
    if not trained:
        raise InvalidFieldError(
            "search", "no trial had a finite loss: lower hyperparameters.learning_rate"
        )
    return dict(min(trained, key=lambda trial: trial.value or 0.0).params)


def _trial(trial: FrozenTrial) -> Trial:
    return Trial(trial.number, dict(trial.params), trial.value)
