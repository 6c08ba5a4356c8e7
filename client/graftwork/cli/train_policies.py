"""`graftwork train policies ...`."""

from typing import Any

import click

from graftwork.cli import console
from graftwork.cli.failures import CommandGroup
from graftwork.cli.options import json_option
from graftwork.cli.session import Session, pass_session
from graftwork.cli.train_options import spec_options, to_spec
from graftwork.training_types import TrainingPolicy

name_argument = click.argument("name")
every_option = click.option(
    "--every",
    "min_new_feedback",
    type=click.IntRange(min=0),
    metavar="N",
    help="After so many new items of feedback.",
)
schedule_option = click.option(
    "--schedule", metavar="CRON", help='By a cron expression in UTC, such as "0 3 * * *".'
)


@click.group(cls=CommandGroup)
def policies() -> None:
    """Train by itself: after enough new feedback, or on a schedule."""


@policies.command()
@name_argument
@click.argument("adapter")
@every_option
@schedule_option
@click.option("--paused", is_flag=True, help="Start nothing until it is resumed.")
@spec_options
@json_option
@pass_session
def create(
    session: Session,
    /,
    *,
    name: str,
    adapter: str,
    min_new_feedback: int | None,
    schedule: str | None,
    paused: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Start jobs of ADAPTER by itself, under NAME."""
    spec = to_spec(options)
    with console.spinner("creating"):
        policy = session.client.training.policies.create(
            name,
            adapter,
            min_new_feedback=min_new_feedback or 0,
            schedule=schedule or "",
            paused=paused,
            **spec,
        )
    _show(policy, as_json)


@policies.command("list")
@json_option
@pass_session
def list_policies(session: Session, *, as_json: bool) -> None:
    """List all policies."""
    with console.spinner("asking"):
        found = list(session.client.training.policies.list())
    if as_json:
        console.print_json(found)
        return
    console.print_table(
        ["policy", "adapter", "#every", "schedule", "paused", "last job"],
        [
            (
                policy.name,
                policy.adapter,
                policy.min_new_feedback or "",
                policy.schedule,
                "yes" if policy.paused else "",
                policy.last_job,
            )
            for policy in found
        ],
    )


@policies.command()
@name_argument
@json_option
@pass_session
def show(session: Session, name: str, *, as_json: bool) -> None:
    """Show one policy."""
    with console.spinner("asking"):
        policy = session.client.training.policies.get(name)
    _show(policy, as_json)


@policies.command()
@name_argument
@every_option
@schedule_option
@json_option
@pass_session
def update(
    session: Session,
    name: str,
    *,
    min_new_feedback: int | None,
    schedule: str | None,
    as_json: bool,
) -> None:
    """Change when a policy starts jobs."""
    with console.spinner("updating"):
        policy = session.client.training.policies.update(
            name, min_new_feedback=min_new_feedback, schedule=schedule
        )
    _show(policy, as_json)


@policies.command()
@name_argument
@json_option
@pass_session
def pause(session: Session, name: str, *, as_json: bool) -> None:
    """Let a policy start nothing until it is resumed."""
    with console.spinner("pausing"):
        policy = session.client.training.policies.update(name, paused=True)
    _show(policy, as_json)


@policies.command()
@name_argument
@json_option
@pass_session
def resume(session: Session, name: str, *, as_json: bool) -> None:
    """Let a paused policy start jobs again."""
    with console.spinner("resuming"):
        policy = session.client.training.policies.update(name, paused=False)
    _show(policy, as_json)


@policies.command()
@name_argument
@pass_session
def delete(session: Session, name: str) -> None:
    """Remove a policy; its jobs stay."""
    with console.spinner("deleting"):
        session.client.training.policies.delete(name)
    click.echo(f"{name} deleted")


def _show(policy: TrainingPolicy, as_json: bool) -> None:
    if as_json:
        console.print_json(policy)
        return
    fields: list[tuple[str, object]] = [
        ("policy", policy.name),
        ("adapter", policy.adapter),
        ("every", f"{policy.min_new_feedback} items" if policy.min_new_feedback else ""),
        ("schedule", policy.schedule),
        ("paused", "yes" if policy.paused else "no"),
        ("last job", policy.last_job),
    ]
    console.print_fields([field for field in fields if field[1] != ""])
