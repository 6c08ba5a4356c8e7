"""A training job as a bar on a terminal, and as lines elsewhere."""

from datetime import timedelta
from types import TracebackType
from typing import Self

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from graftwork.cli import console
from graftwork.training_types import JobState, TrainingJob


class JobBar:
    """Draws what a watched job reports; where nobody watches, a line for each phase."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[figures]}"),
            console=Console(stderr=True),
            transient=True,
            disable=not console.interactive(),
        )
        self._task = self._bar.add_task("waiting", total=None, figures="")
        self._shown = ""

    def update(self, job: TrainingJob) -> None:
        progress = job.progress
        phase = progress.phase if job.state is JobState.RUNNING else job.state.value
        if phase and phase != self._shown and not console.interactive():
            click.echo(phase, err=True)
        self._shown = phase
        self._bar.update(
            self._task,
            description=phase or "starting",
            completed=progress.step,
            total=progress.total_steps or None,
            figures=figures(job),
        )

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()


def figures(job: TrainingJob) -> str:
    """Steps, loss, rate and what remains, as far as they are known."""
    progress = job.progress
    parts = []
    if progress.total_steps:
        parts.append(f"{progress.step}/{progress.total_steps}")
    if progress.loss:
        parts.append(f"loss {progress.loss:.3f}")
    if progress.tokens_per_second:
        parts.append(f"{progress.tokens_per_second:.0f} tokens/s")
    if progress.remaining_s is not None:
        parts.append(f"{timedelta(seconds=round(progress.remaining_s))} left")
    return "  ".join(parts)
