"""`graftwork feedback compare`: which answer is better, asked of a person or a judge."""

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from graftwork.cli import console
from graftwork.cli.comparisons import Comparison, sample
from graftwork.cli.datasets import read_prompts
from graftwork.cli.deciders import Decider, Quit, open_decider
from graftwork.cli.failures import Command, Failure
from graftwork.cli.live_prompts import unjudged_prompts
from graftwork.cli.options import (
    author_option,
    chat_options,
    settings_options,
    stop_option,
    task_option,
    to_prompt,
)
from graftwork.cli.session import Session, pass_session
from graftwork.client import Client
from graftwork.errors import NotFound
from graftwork.feedback_types import (
    Answer,
    FeedbackOptions,
    FeedbackValue,
    Preference,
    Ranking,
    Refusal,
    Source,
)
from graftwork.types import Prompt

_MOST_ANSWERS = 9  # a key for each
_LONGEST_INTERVAL_S = 86400.0


@click.command(cls=Command)
@click.argument("prompt", required=False)
@click.option(
    "--prompts",
    "file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The prompts in a file: a line each, or the field prompt of .jsonl.",
)
@click.option(
    "--live",
    metavar="NAME",
    help="What users asked of this adapter or task lately and nobody has compared answers to.",
)
@click.option(
    "--every",
    "interval_s",
    type=click.FloatRange(min=0, min_open=True, max=_LONGEST_INTERVAL_S),
    metavar="SECONDS",
    help="With --live: look again after so long, until it is stopped.",
)
@click.option("--limit", type=click.IntRange(min=1), help="End after so many comparisons.")
@click.option(
    "-a", "--adapter", metavar="NAME[@VERSION]", help="Answers; default: the base, or --live's."
)
@click.option("--against", metavar="NAME[@VERSION]", help='One answer of each; "" is the base.')
@click.option(
    "-n",
    "number",
    type=click.IntRange(2, _MOST_ANSWERS),
    help="How many answers to sample.  [default: 2]",
)
@chat_options
@settings_options
@stop_option
@task_option
@click.option(
    "--judge",
    metavar="HOST:PORT|adapter:NAME",
    help="Ask a JudgeService or a reward adapter instead of you; grpcs:// before it is TLS.",
)
@author_option
@pass_session
def compare(
    session: Session,
    /,
    *,
    prompt: str | None,
    file: Path | None,
    live: str | None,
    interval_s: float | None,
    limit: int | None,
    adapter: str | None,
    against: str | None,
    number: int | None,
    chat: bool,
    system: str | None,
    task: str | None,
    judge: str | None,
    author: str,
    **settings: Any,
) -> None:
    """Show answers side by side, ask which is better, and submit it as feedback.

    Nothing tells which version gave which answer until you have chosen. PROMPT "-" is read from
    stdin. Answer with a line on the terminal: the number of the best, t for a tie, s to skip, q to
    quit, and a comment behind it where you have one. --seed is of the first prompt; each further
    one has the next.
    """
    _check_options(
        prompt=prompt,
        file=file,
        live=live,
        interval_s=interval_s,
        adapter=adapter,
        against=against,
        number=number,
    )
    client = session.client
    name = adapter or ""
    task = task or live or next(filter(None, map(_name, (name, against or ""))), "")
    if live is not None:
        prompts = _live_prompts(client, task, interval_s)
    elif file is not None:
        prompts = iter(read_prompts(file, chat=chat))
    else:
        prompts = iter([to_prompt(prompt or "", chat=chat, system=system)])
    if settings["temperature"] is None:
        settings["temperature"] = 1.0  # greedy answers would all be the same
    seed = settings["seed"]
    source = Source.HUMAN if judge is None else Source.MODEL
    run = _Run(client, {"source": source, "author": author}, limit)
    with closing(open_decider(judge, client, is_stdin_taken=prompt == "-")) as decider:
        try:
            for index, asked in enumerate(prompts):
                if live is not None:
                    name = _live_selector(client, live)
                with console.spinner("generating"):
                    comparison = sample(
                        client,
                        asked,
                        adapter=name,
                        against=against,
                        number=number or 2,
                        options={
                            **settings,
                            "task": task,
                            "seed": None if seed is None else seed + index,
                        },
                    )
                run.take(comparison, decider)
        except Quit:
            pass
        finally:
            run.show_counts()


def _check_options(
    *,
    prompt: str | None,
    file: Path | None,
    live: str | None,
    interval_s: float | None,
    adapter: str | None,
    against: str | None,
    number: int | None,
) -> None:
    if sum(source is not None for source in (prompt, file, live)) != 1:
        raise click.UsageError("a PROMPT, or --prompts, or --live")
    if live is None and interval_s is not None:
        raise click.UsageError("--every goes with --live")
    if interval_s is not None and math.isnan(interval_s):  # which every range lets pass
        raise click.UsageError("--every is not a number")
    if live is not None and adapter is not None:
        raise click.UsageError("--live names the adapter: leave --adapter out")
    if against is not None and number is not None:
        raise click.UsageError("--against compares one answer of each: leave -n out")


def _name(selector: str) -> str:
    return selector.partition("@")[0]


def _live_prompts(client: Client, task: str, interval_s: float | None) -> Iterator[Prompt]:
    """Each once; those that come while this runs, too, where there is an interval."""
    seen: set[Prompt] = set()
    while True:
        with console.spinner("looking for prompts"):
            found = unjudged_prompts(client, task)
        for prompt in found:
            if prompt not in seen:
                seen.add(prompt)
                yield prompt
        if interval_s is None:
            if not seen:
                console.note(f"no user has lately asked anything of {task} that is not compared")
            return
        with console.spinner("waiting for prompts"):
            time.sleep(interval_s)


def _live_selector(client: Client, name: str) -> str:
    """The adapter, or the base until it has a live version."""
    try:
        adapter = client.adapters.get(name)
    except NotFound:
        pass
    else:
        if adapter.live_version or adapter.traffic_split:
            return name
    console.note(f"{name} has no live version yet: the base answers")
    return ""


@dataclass
class _Run:
    """Takes verdicts, submits them, and counts."""

    client: Client
    beside: FeedbackOptions
    limit: int | None
    counts: Counter[str] = field(default_factory=Counter)

    def take(self, comparison: Comparison, decider: Decider) -> None:
        """Raises Quit once the limit is reached."""
        if len(comparison.candidates) < 2:
            console.note("all answers read the same: nothing to compare")
            self.counts["with identical answers"] += 1
            return
        if any(candidate.is_cut for candidate in comparison.candidates):
            console.note(
                "an answer is cut off, and data sets leave it out: --max-tokens gives it more"
            )
        verdict = decider.decide(comparison)
        if verdict.items:
            self._submit(comparison, verdict.items)
        self.counts[verdict.outcome] += 1
        if self.counts["compared"] == self.limit:
            raise Quit

    def show_counts(self) -> None:
        counts = {"compared": self.counts["compared"], **self.counts}
        click.echo(", ".join(f"{number} {what}" for what, number in counts.items()))

    def _submit(self, comparison: Comparison, items: Iterable[FeedbackOptions]) -> None:
        outcomes = self.client.feedback.submit_many({**self.beside, **item} for item in items)
        for outcome in outcomes:
            if isinstance(outcome, Refusal):
                raise Failure(outcome.message)
            click.echo(f"{outcome.id}  {_told(comparison, outcome.value)}")


def _told(comparison: Comparison, value: FeedbackValue) -> str:
    """A preference or ranking with the numbers that were shown and who answered."""
    told = {
        candidate.answer: f"{place} ({candidate.served_by})"
        for place, candidate in enumerate(comparison.candidates, start=1)
    }

    def name(answer: Answer) -> str:
        return told[answer]

    match value:
        case Preference(chosen, rejected, _, tie):
            return f"{name(chosen)} {'=' if tie else '>'} {name(rejected)}"
        case Ranking(ranks):
            return " > ".join(" = ".join(map(name, rank)) for rank in ranks)
        case _:
            raise TypeError(f"{type(value).__name__} compares nothing")
