"""`graftwork feedback export` and `import`."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from graftwork.cli import console
from graftwork.cli.datasets import read_feedback
from graftwork.cli.failures import Command, Failure
from graftwork.cli.options import (
    ORIGINS,
    SOURCES,
    author_option,
    aware,
    json_option,
    source_option,
    time_options,
)
from graftwork.cli.session import Session, pass_session
from graftwork.feedback_types import FeedbackOptions, Refusal, Source
from graftwork.types import Origin

_BATCH = 500  # lines of an import in one call
_SHOWN_REFUSALS = 5


@click.command(cls=Command)
@click.argument(
    "format_name",
    metavar="FORMAT",
    type=click.Choice(["sft", "preference", "unpaired", "reward", "classification"]),
)
@click.option("-o", "--output", type=click.Path(dir_okay=False, path_type=Path), help="A file.")
@click.option("--task", "tasks", multiple=True, metavar="NAME", help="Of this task. Repeatable.")
@click.option("--origin", "origins", type=click.Choice(ORIGINS), multiple=True)
@click.option("--source", "sources", type=click.Choice(SOURCES), multiple=True)
@click.option("--reward-threshold", type=float, help='For "unpaired": such rewards are good.')
@click.option(
    "--scrub/--no-scrub", default=None, help="Replace personal data and secrets; the default."
)
@time_options
@pass_session
def export(
    session: Session,
    /,
    *,
    format_name: str,
    output: Path | None,
    origins: tuple[str, ...],
    sources: tuple[str, ...],
    after: datetime | None,
    before: datetime | None,
    **query: Any,
) -> None:
    """Write what a training job would read, as JSON lines.

    FORMAT says what becomes of feedback. Without --output the lines go to stdout.
    """
    examples = session.client.feedback.export(
        format_name,
        origins=[Origin(origin) for origin in origins],
        sources=[Source(source) for source in sources],
        after=aware(after),
        before=aware(before),
        **query,
    )
    if output is None:
        for example in examples:
            click.echo(json.dumps(example, ensure_ascii=False))
        return
    number = 0
    with console.counter(f"exporting to {output}") as count, output.open("wb") as file:
        for number, example in enumerate(examples, start=1):
            file.write(json.dumps(example, ensure_ascii=False).encode() + b"\n")
            count(number)
    click.echo(f"{number} examples -> {output}")


@click.command("import", cls=Command)
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--task", default="", metavar="NAME", help="The task of lines that name none.")
@click.option("--chat", is_flag=True, help="Prompts that are texts are what a user says.")
@source_option
@author_option
@click.option("--strict", is_flag=True, help="Exit with 1 where a line is refused.")
@json_option
@pass_session
def import_dataset(
    session: Session,
    /,
    *,
    file: Path,
    task: str,
    chat: bool,
    source: str,
    author: str,
    strict: bool,
    as_json: bool,
) -> None:
    """Take in a data set of JSON lines as feedback.

    A line of FILE has prompt and completion, or messages, or prompt, chosen and rejected, or prompt
    and label, or text and label. Running it again takes nothing twice.
    """
    refused: list[tuple[int, Refusal]] = []
    kinds: Counter[str] = Counter()
    total = file.stat().st_size
    lines = read_feedback(file, chat=chat)
    with console.progress_bar(f"importing {file.name}") as progress:
        for batch in _batches(lines):
            items = []
            for _, options, _ in batch:
                item: FeedbackOptions = {"task": task, "author": author, **options}
                item["source"] = Source(source)
                items.append(item)
            outcomes = session.client.feedback.submit_many(items)
            for (number, _, _), outcome in zip(batch, outcomes, strict=True):
                if isinstance(outcome, Refusal):
                    refused.append((number, outcome))
                else:
                    kinds[outcome.kind] += 1
            progress(batch[-1][2], total)
    reasons = Counter(refusal.reason for _, refusal in refused)
    if as_json:
        click.echo(json.dumps({"taken": dict(kinds), "refused": dict(reasons)}))
    else:
        taken = ", ".join(f"{number} {kind}" for kind, number in kinds.items())
        click.echo(f"{sum(kinds.values())} taken" + (f": {taken}" if taken else ""))
        _show_refusals(refused, reasons)
    if strict and refused:
        raise Failure(f"{len(refused)} lines were refused")


def _show_refusals(refused: list[tuple[int, Refusal]], reasons: Counter[str]) -> None:
    if not refused:
        return
    counts = ", ".join(f"{number} {reason}" for reason, number in reasons.items())
    click.echo(f"{len(refused)} refused: {counts}")
    for number, refusal in refused[:_SHOWN_REFUSALS]:
        console.note(f"line {number}: {refusal.message}")
    if len(refused) > _SHOWN_REFUSALS:
        console.note("...")


def _batches(
    lines: Iterator[tuple[int, FeedbackOptions, int]],
) -> Iterator[list[tuple[int, FeedbackOptions, int]]]:
    while batch := list(itertools.islice(lines, _BATCH)):
        yield batch
