"""`graftwork generate`, `score`, `tokenize` and `model`."""

import itertools
from typing import Any

import click

from graftwork.cli import console
from graftwork.cli.failures import Command
from graftwork.cli.options import (
    JsonSchemaType,
    PairType,
    adapter_options,
    chat_options,
    ids_option,
    json_option,
    settings_options,
    stop_option,
    store_option,
    task_option,
    to_adapters,
    to_prompt,
)
from graftwork.cli.session import Session, pass_session
from graftwork.client import GenerationStream
from graftwork.types import Generation, TokenLogprob


@click.command(cls=Command)
@click.argument("prompt")
@adapter_options
@chat_options
@settings_options
@stop_option
@click.option(
    "--stop-token-id",
    "stop_token_ids",
    type=int,
    multiple=True,
    metavar="ID",
    help="End after this token. Repeatable.",
)
@click.option("--ignore-eos", is_flag=True, help="Go on past the model's own end tokens.")
@click.option(
    "--logit-bias",
    type=PairType("ID=BIAS", float),
    multiple=True,
    help="Add to a token's logit. Repeatable.",
)
@click.option(
    "--json-schema",
    type=JsonSchemaType(),
    metavar="JSON|@FILE",
    help="The answer matches this JSON schema.",
)
@click.option("--regex", metavar="PATTERN", help="The whole answer matches this pattern.")
@click.option(
    "--choice", multiple=True, metavar="TEXT", help="The answer is one of these. Repeatable."
)
@click.option("-n", "n", type=int, help="How many answers to sample.")
@click.option(
    "--logprobs",
    type=int,
    metavar="K",
    help="Log-probability of each token, with K alternatives; with --json.",
)
@click.option(
    "--prompt-logprobs",
    type=int,
    metavar="K",
    help="The same for the prompt's tokens; with --json.",
)
@click.option(
    "--episode-id", default="", metavar="ID", help="Ties the generations of one task together."
)
@task_option
@store_option
@ids_option
@json_option
@pass_session
def generate(
    session: Session,
    /,
    *,
    prompt: str,
    chat: bool,
    system: str | None,
    as_json: bool,
    show_ids: bool,
    adapters: tuple[str, ...],
    **options: Any,
) -> None:
    """Generate from a prompt, printing tokens as they come.

    PROMPT "-" is read from stdin. The text is taken as it is, unless --chat or --system is given.
    """
    if not as_json and (options["logprobs"], options["prompt_logprobs"]) != (None, None):
        raise click.UsageError("log-probabilities are printed with --json only")
    options["logit_bias"] = dict(options["logit_bias"]) or None
    options["choice"] = options["choice"] or None
    options |= to_adapters(adapters)
    text = to_prompt(prompt, chat=chat, system=system)
    if as_json or (options["n"] or 1) > 1:
        with console.spinner("generating"):
            result = session.client.generate(text, **options)
    else:
        with session.client.stream(text, **options) as stream:
            print_stream(stream, [])
            result = stream.result
    if as_json:
        console.print_json(result)
        return
    if len(result.choices) > 1:
        _print_choices(result)
    if console.interactive():
        console.note(describe(result))
    if show_ids:
        print_ids(result)


def print_ids(result: Generation) -> None:
    """What feedback refers to, one line for each answer, on stderr."""
    for choice in result.choices:
        click.echo(choice.generation_id, err=True)


def _print_choices(result: Generation) -> None:
    for choice in result.choices:
        click.secho(f"[{choice.index}]", bold=True)
        console.write(choice.text)
        click.echo()


def print_stream(stream: GenerationStream, said: list[str]) -> None:
    """Writes the text as it comes, and ends the line whatever happens; `said` collects it."""
    with console.spinner("waiting for the first token"):
        first = list(itertools.islice(stream, 1))
    try:
        for delta in itertools.chain(first, stream):
            said.append(delta.text)
            console.write(delta.text)
    finally:
        if said:
            click.echo()


def describe(result: Generation) -> str:
    """Who answered, how much, and why it ended."""
    parts = [str(result.served_by)]
    if result.usage is not None:
        parts.append(f"{result.usage.prompt_tokens} + {result.usage.completion_tokens} tokens")
    reasons = {choice.finish_reason.value for choice in result.choices if choice.finish_reason}
    parts.extend(sorted(reasons))
    if len(result.choices) == 1:
        parts.append(result.choices[0].generation_id)
    return " · ".join(parts)


@click.command(cls=Command)
@click.argument("prompt")
@click.argument("completions", nargs=-1, required=True)
@adapter_options
@chat_options
@json_option
@pass_session
def score(
    session: Session,
    /,
    *,
    prompt: str,
    completions: tuple[str, ...],
    adapters: tuple[str, ...],
    adapter_scale: float | None,
    chat: bool,
    system: str | None,
    as_json: bool,
) -> None:
    """Print the log-probabilities of completions of a prompt.

    PROMPT "-" is read from stdin. Each of COMPLETIONS is scored after it, one by one.
    """
    text = to_prompt(prompt, chat=chat, system=system)
    with console.spinner("scoring"):
        result = session.client.score(
            text, completions, adapter_scale=adapter_scale, **to_adapters(adapters)
        )
    if as_json:
        console.print_json(result)
        return
    console.print_table(
        ["#logprob", "#per token", "#tokens", "completion"],
        [
            (
                f"{scored.total_logprob:.3f}",
                _per_token(scored.total_logprob, scored.logprobs),
                len(scored.logprobs),
                completion,
            )
            for completion, scored in zip(completions, result.scores, strict=True)
        ],
    )


def _per_token(total: float, logprobs: tuple[TokenLogprob, ...]) -> str:
    return f"{total / len(logprobs):.3f}" if logprobs else "-"


@click.command(cls=Command)
@click.argument("text")
@chat_options
@json_option
@pass_session
def tokenize(session: Session, text: str, chat: bool, system: str | None, as_json: bool) -> None:
    """Print the tokens of a text as the base sees them.

    TEXT "-" is read from stdin.
    """
    with console.spinner("tokenizing"):
        result = session.client.tokenize(to_prompt(text, chat=chat, system=system))
    if as_json:
        console.print_json(result)
        return
    rows = zip(result.token_ids, map(repr, result.tokens), strict=True)
    console.print_table(["#id", "token"], rows)


@click.command(cls=Command)
@json_option
@pass_session
def model(session: Session, as_json: bool) -> None:
    """Describe the base model and the limits of the server."""
    with console.spinner("asking"):
        result = session.client.model()
    if as_json:
        console.print_json(result)
        return
    limits = result.limits
    console.print_fields(
        [
            ("model", result.name),
            ("architecture", result.architecture),
            ("parameters", f"{result.num_parameters:,}"),
            ("quantization", result.quantization),
            ("device", result.device),
            ("weights", console.size(result.weight_bytes)),
            ("digest", result.digest),
            ("context", f"{limits.max_context_tokens:,} tokens"),
            (
                "new tokens",
                f"{limits.max_new_tokens:,} at most, {limits.default_max_tokens:,} by default",
            ),
            ("adapter rank", f"{limits.max_adapter_rank:,} at most"),
            ("on the device", f"{limits.max_device_adapters:,} adapters at most"),
            ("queue", f"{limits.max_queued_requests:,} requests"),
            ("server", result.server_version),
        ]
    )
