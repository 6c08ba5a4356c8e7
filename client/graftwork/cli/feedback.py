"""`graftwork feedback ...`."""

import itertools
from datetime import datetime
from typing import Any

import click

from graftwork.cli import console
from graftwork.cli.compare import compare
from graftwork.cli.failures import CommandGroup
from graftwork.cli.feedback_data import export, import_dataset
from graftwork.cli.options import (
    ORIGINS,
    author_option,
    aware,
    chat_options,
    json_option,
    source_option,
    time_options,
    to_prompt,
)
from graftwork.cli.session import Session, pass_session
from graftwork.feedback_types import (
    Answer,
    Feedback,
    LoggedGeneration,
    Preference,
    Ranking,
    Source,
)
from graftwork.types import Conversation, Origin

_CUT = 60  # characters of a text in a table

limit_option = click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    help="Most entries to show, newest first.",
)


@click.group(cls=CommandGroup)
def feedback() -> None:
    """Give feedback on generations, and read the journal."""


@feedback.command()
@click.argument("generation_id", required=False, metavar="[GENERATION]")
@click.option("--group", "group_id", metavar="ID", help="On all answers of a request instead.")
@click.option("--episode", "episode_id", metavar="ID", help="On a whole conversation instead.")
@click.option("--prompt", metavar="TEXT", help='On a prompt of your own instead; "-" is stdin.')
@chat_options
@click.option("--task", metavar="NAME", help="The task of --prompt.")
@click.option("--up/--down", "thumbs", default=None, help="Good or bad.")
@click.option("--reward", type=float, help="A number; higher is better.")
@click.option("--label", metavar="TEXT", help="The right class.")
@click.option("--correction", metavar="TEXT", help="What it should have said.")
@click.option("--demonstration", metavar="TEXT", help="What to say to the prompt.")
@click.option(
    "--prefer",
    nargs=2,
    metavar="CHOSEN REJECTED",
    help="Which answer is better: ids of generations, or texts with --prompt.",
)
@click.option("--remark", metavar="TEXT", help="For people.")
@source_option
@author_option
@click.option("--comment", default="", metavar="TEXT", help="Beside any of these.")
@click.option(
    "--supersedes", default="", metavar="ID", help="Your earlier feedback that this replaces."
)
@json_option
@pass_session
def submit(
    session: Session,
    /,
    *,
    prompt: str | None,
    chat: bool,
    system: str | None,
    prefer: tuple[str, str] | None,
    source: str,
    as_json: bool,
    **options: Any,
) -> None:
    """Give feedback on a generation, whose id `generate` shows."""
    item = {name: value for name, value in options.items() if value not in (None, "")}
    if prompt is not None:
        item["prompt"] = to_prompt(prompt, chat=chat, system=system)
    if prefer:
        answers = [Answer(text) if prompt is not None else Answer("", text) for text in prefer]
        item["preference"] = Preference(answers[0], answers[1])
    with console.spinner("submitting"):
        given = session.client.feedback.submit(source=Source(source), **item)
    if as_json:
        console.print_json(given)
    else:
        click.echo(given.id)


@feedback.command("list")
@click.option("--generation", "generation_id", metavar="ID", help="On this generation.")
@click.option("--group", "group_id", metavar="ID", help="On this group or its generations.")
@click.option("--episode", "episode_id", metavar="ID", help="On this episode or anything of it.")
@click.option("--task", metavar="NAME", help="Of this task.")
@click.option("--author", metavar="ID", help="By this author.")
@click.option("--kind", "kinds", multiple=True, help="Of this kind. Repeatable.")
@click.option("--superseded", "include_superseded", is_flag=True, help="Replaced ones, too.")
@time_options
@limit_option
@json_option
@pass_session
def list_feedback(
    session: Session,
    /,
    *,
    limit: int,
    as_json: bool,
    after: datetime | None,
    before: datetime | None,
    **query: Any,
) -> None:
    """List feedback."""
    with console.spinner("asking"):
        listed = session.client.feedback.list(
            page_size=min(limit, 1000), after=aware(after), before=aware(before), **query
        )
        found = list(itertools.islice(listed, limit))
    if as_json:
        console.print_json(found)
        return
    console.print_table(
        ["id", "kind", "value", "on", "by", "time"],
        [
            (
                one.id,
                one.kind,
                _cut(_value(one)),
                _target(one),
                f"{one.author or '-'} ({one.source.value})",
                _time(one.create_time),
            )
            for one in found
        ],
    )


@feedback.command()
@click.option("--id", "ids", multiple=True, metavar="ID", help="This one. Repeatable.")
@click.option("--group", "group_id", metavar="ID", help="Of this group.")
@click.option("--episode", "episode_id", metavar="ID", help="Of this episode.")
@click.option("--task", metavar="NAME", help="Of this task.")
@click.option(
    "-a", "--adapter", metavar="NAME[@VERSION]", help='Served by this adapter, or by "base".'
)
@click.option("--origin", "origins", type=click.Choice(ORIGINS), multiple=True)
@click.option("--with-feedback", is_flag=True, help="Only what feedback is about.")
@time_options
@limit_option
@json_option
@pass_session
def generations(
    session: Session,
    /,
    *,
    limit: int,
    as_json: bool,
    after: datetime | None,
    before: datetime | None,
    origins: tuple[str, ...],
    **query: Any,
) -> None:
    """List logged generations."""
    with console.spinner("asking"):
        listed = session.client.feedback.generations(
            page_size=min(limit, 1000),
            after=aware(after),
            before=aware(before),
            origins=[Origin(origin) for origin in origins],
            **query,
        )
        found = list(itertools.islice(listed, limit))
    if as_json:
        console.print_json(found)
        return
    console.print_table(
        ["id", "task", "served by", "prompt", "completion", "time"],
        [
            (
                one.id,
                one.task,
                one.served_by,
                _cut(_prompt(one)),
                _cut(one.completion),
                _time(one.create_time),
            )
            for one in found
        ],
    )


@feedback.command()
@click.argument("ids", nargs=-1, metavar="[GENERATION]...")
@click.option("--author", default="", metavar="ID", help="What this author gave feedback on.")
@click.option("--episode", "episode_id", default="", metavar="ID", help="All of an episode.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
@json_option
@pass_session
def delete(
    session: Session,
    /,
    *,
    ids: tuple[str, ...],
    author: str,
    episode_id: str,
    yes: bool,
    as_json: bool,
) -> None:
    """Delete generations and the feedback on them, for ever."""
    if sum(map(bool, (ids, author, episode_id))) != 1:
        raise click.UsageError("ids, or --author, or --episode")
    if not yes:
        click.confirm("Delete them and the feedback on them for ever?", abort=True, err=True)
    with console.spinner("deleting"):
        deleted = session.client.feedback.delete(ids, author=author, episode_id=episode_id)
    if as_json:
        console.print_json(deleted)
        return
    click.echo(f"{deleted.num_generations} generations, {deleted.num_feedback} items of feedback")
    if deleted.trained_versions:
        click.echo("Trained on them: " + ", ".join(deleted.trained_versions))


def _value(one: Feedback) -> str:
    match one.value:
        case bool(up):
            return "up" if up else "down"
        case Preference(chosen, rejected, _, tie):
            return f"{_answer(chosen)} {'=' if tie else '>'} {_answer(rejected)}"
        case Ranking(ranks):
            return " > ".join(" = ".join(map(_answer, rank)) for rank in ranks)
        case value:
            return str(value)


def _answer(answer: Answer) -> str:
    return answer.generation_id or repr(answer.text)


def _target(one: Feedback) -> str:
    for name in ("generation_id", "group_id", "episode_id"):
        if value := getattr(one, name):
            return f"{name.removesuffix('_id')} {value}"
    return "prompt" if one.prompt is None else _cut(f"prompt {_text(one.prompt.input)!r}")


def _prompt(one: LoggedGeneration) -> str:
    return _text(one.input) if isinstance(one.input, str | Conversation) else "token ids"


def _text(source: str | Conversation) -> str:
    if isinstance(source, str):
        return source
    last = source.messages[-1]
    return str(getattr(last, "content", last))


def _cut(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _CUT else line[: _CUT - 1] + "…"


def _time(time: datetime) -> str:
    return time.astimezone().strftime("%Y-%m-%d %H:%M")


for command in (compare, export, import_dataset):
    feedback.add_command(command)
