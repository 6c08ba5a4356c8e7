"""`graftwork train ...`."""

from datetime import datetime
from pathlib import Path
from typing import Any

import click

from graftwork.cli import console
from graftwork.cli.failures import CommandGroup, Failure
from graftwork.cli.options import json_option
from graftwork.cli.session import Session, pass_session
from graftwork.cli.train_options import spec_options, to_spec
from graftwork.cli.train_policies import policies
from graftwork.cli.train_progress import JobBar
from graftwork.training_types import JobState, TrainingJob

STATES = [state.value for state in JobState if state is not JobState.UNKNOWN]

job_argument = click.argument("job_id", metavar="JOB")


@click.group(cls=CommandGroup)
def train() -> None:
    """Train adapters from feedback, and see what became of them."""


train.add_command(policies)


@train.command()
@click.argument("adapter")
@spec_options
@click.option("--watch", is_flag=True, help="Show its progress until it has ended.")
@json_option
@pass_session
def start(session: Session, /, *, adapter: str, watch: bool, as_json: bool, **options: Any) -> None:
    """Queue a job that gives ADAPTER its next version."""
    spec = to_spec(options)
    with console.spinner("queueing"):
        job = session.client.training.start(adapter, **spec)
    if watch:
        _watch(session, job.id, as_json)
    elif as_json:
        console.print_json(job)
    else:
        click.echo(job.id)


@train.command("list")
@click.argument("adapter", default="")
@click.option(
    "--state", "states", type=click.Choice(STATES), multiple=True, help="In this state. Repeatable."
)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True)
@json_option
@pass_session
def list_jobs(
    session: Session, adapter: str, *, states: tuple[str, ...], limit: int, as_json: bool
) -> None:
    """List the jobs of one adapter, or of all, newest first."""
    found: list[TrainingJob] = []
    with console.spinner("asking"):
        for job in session.client.training.list(adapter, *map(JobState, states)):
            found.append(job)
            if len(found) == limit:
                break
    if as_json:
        console.print_json(found)
        return
    console.print_table(
        ["job", "adapter", "state", "phase", "#step", "#loss", "version", "created"],
        [
            (
                job.id,
                job.adapter,
                job.state.value,
                "" if job.state.is_final else job.progress.phase,
                _steps(job),
                f"{job.progress.loss:.3f}" if job.progress.loss else "",
                job.version,
                _time(job.create_time),
            )
            for job in found
        ],
    )


@train.command()
@job_argument
@json_option
@pass_session
def show(session: Session, job_id: str, *, as_json: bool) -> None:
    """Show one job."""
    with console.spinner("asking"):
        job = session.client.training.get(job_id)
    _show(job, as_json)


@train.command()
@job_argument
@json_option
@pass_session
def watch(session: Session, job_id: str, *, as_json: bool) -> None:
    """Show a job's progress until it has ended.

    Exits with 1 where it did not succeed.
    """
    _watch(session, job_id, as_json)


@train.command()
@job_argument
@json_option
@pass_session
def cancel(session: Session, job_id: str, *, as_json: bool) -> None:
    """End a job that waits or runs."""
    with console.spinner("cancelling"):
        job = session.client.training.cancel(job_id)
    _show(job, as_json)


@train.command()
@job_argument
@click.option(
    "--output",
    type=click.Path(file_okay=False, path_type=Path),
    help="Write report.md, report.json and the plots to this folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
@pass_session
def report(session: Session, job_id: str, *, output: Path | None, as_json: bool) -> None:
    """Show the evaluation that decided about a job's candidate."""
    with console.spinner("asking"):
        found = session.client.training.report(job_id)
    if output is None:
        click.echo(found.json if as_json else console.printable(found.markdown))
        return
    output.mkdir(parents=True, exist_ok=True)
    (output / "report.md").write_text(found.markdown, encoding="utf-8")
    (output / "report.json").write_text(found.json, encoding="utf-8")
    for name, png in found.plots.items():
        if Path(name).name != name:
            raise Failure(f"the server sent a plot under the name {name!r}, which is no file name")
        (output / name).write_bytes(png)
    click.echo(f"report.md, report.json and {len(found.plots)} plots -> {output}")


def _watch(session: Session, job_id: str, as_json: bool) -> None:
    with JobBar() as bar:
        for job in session.client.training.watch(job_id):
            bar.update(job)
    _show(job, as_json)
    if job.state is not JobState.SUCCEEDED:
        raise click.exceptions.Exit(1)


def _show(job: TrainingJob, as_json: bool) -> None:
    if as_json:
        console.print_json(job)
        return
    progress = job.progress
    fields: list[tuple[str, object]] = [
        ("job", job.id),
        ("adapter", job.adapter),
        ("state", job.state.value),
        ("phase", "" if job.state.is_final else progress.phase),
        ("step", _steps(job)),
        ("loss", f"{progress.loss:.4f}" if progress.loss else ""),
        ("version", job.version),
        ("message", job.message),
        ("snapshot", job.snapshot),
        ("policy", job.policy),
        ("attempt", job.attempt if job.attempt > 1 else ""),
        ("created", _time(job.create_time)),
        ("started", _time(job.start_time)),
        ("ended", _time(job.end_time)),
    ]
    console.print_fields([field for field in fields if field[1] != ""])


def _steps(job: TrainingJob) -> str:
    progress = job.progress
    return f"{progress.step}/{progress.total_steps}" if progress.total_steps else ""


def _time(time: datetime | None) -> str:
    return "" if time is None else time.astimezone().strftime("%Y-%m-%d %H:%M:%S")
