"""The part of a job that needs torch: search and training."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from graftwork_trainer.base.model import load_training_base
from graftwork_trainer.datasets.snapshot import Snapshot
from graftwork_trainer.jobs.launcher import JobOrder
from graftwork_trainer.jobs.records import Progress
from graftwork_trainer.jobs.spec import JobSpec
from graftwork_trainer.recipes.online import ServingAccess
from graftwork_trainer.recipes.run import TrainingProgress, TrainingRun, TrainingStopped
from graftwork_trainer.recipes.table import ONLINE_RECIPES, RECIPES
from graftwork_trainer.search import SearchResult, TellTrial, search
from graftwork_trainer.stop import EXIT_STOPPED, Stop


class TrainingPhase:
    """One job on one snapshot; `initial` is the folder of the adapter that it goes on from.

    Where the job is to stop, a checkpoint is written and the process ends (SystemExit).
    """

    def __init__(
        self,
        order: JobOrder,
        spec: JobSpec,
        snapshot: Snapshot,
        initial: Path | None,
        stop: Stop,
    ) -> None:
        self._order = order
        self._spec = spec
        self._snapshot = snapshot
        self._initial = initial
        self._stop = stop
        self._base = load_training_base(Path(order.base))

    def search(self, folder: Path, tell: TellTrial) -> SearchResult:
        if self._spec.search is None:
            raise ValueError("the job searches nothing")
        run = self._run(folder, {}, _ignore)
        return search(run, self._spec.search, self._train, tell)

    def train(
        self, folder: Path, chosen: Mapping[str, Any], report: Callable[[Progress], None]
    ) -> Path:
        """The adapter's folder. `chosen` are the values that a search found best."""

        def tell(progress: TrainingProgress) -> None:
            report(Progress("training", **asdict(progress)))

        return self._train(self._run(folder, chosen, tell))

    def _train(self, run: TrainingRun) -> Path:
        with self._stop.waits_for_checkpoint():
            try:
                return self._recipe(run)
            except TrainingStopped:
                raise SystemExit(EXIT_STOPPED) from None

    def _recipe(self, run: TrainingRun) -> Path:
        name, options = self._spec.recipe, self._spec.recipe_options
        if name in ONLINE_RECIPES:
            return ONLINE_RECIPES[name](run, self._serving(), options)
        return RECIPES[name](run, options)

    def _serving(self) -> ServingAccess:
        settings = self._spec.dataset.settings
        tasks = list(settings.selection.tasks) if settings else []
        return ServingAccess(
            target=self._order.server,
            adapter=self._spec.adapter,
            owner=self._order.job_id,
            task=tasks[0] if len(tasks) == 1 else self._spec.adapter,
            initial_version=self._spec.initial_version,
        )

    def _run(
        self,
        folder: Path,
        chosen: Mapping[str, Any],
        progress: Callable[[TrainingProgress], None],
    ) -> TrainingRun:
        values, config = dict(chosen), dict(self._spec.method_config)
        if "rank" in values:
            config["r"] = values.pop("rank")
        return TrainingRun(
            base=self._base,
            train=self._snapshot.folder / "train.jsonl",
            validation=self._snapshot.folder / "validation.jsonl",
            folder=folder,
            hyperparameters=self._spec.hyperparameters.replaced(**values),
            method=self._spec.method,
            method_config=config,
            initial=self._initial,
            progress=progress,
            should_stop=self._stop.is_asked,
            threads=self._order.threads,
        )


def _ignore(progress: TrainingProgress) -> None:
    """The steps of trials are not told, but the trials."""
