"""`graftwork bench`."""

import asyncio
import fnmatch
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from graftwork import bench as load_generator
from graftwork.aio import AsyncClient
from graftwork.bench import Arrivals, Lengths, Popularity, Prompts, Report
from graftwork.bench.prompts import SAMPLE_TEXT
from graftwork.bench.statistics import Distribution
from graftwork.cli import console
from graftwork.cli.failures import Command, Failure
from graftwork.cli.session import Session, pass_session

_DEFAULT_REQUESTS = 100
_DEFAULT_PROMPT_LENGTHS = "64"
_NAMES_SHOWN = 5  # of the adapters that there are, where a pattern matches none
_LAG_WORTH_A_REMARK_MS = 20.0


class LengthsType(click.ParamType):  # type: ignore[type-arg]
    """N, SHORTEST-LONGEST or MEAN~DEVIATION."""

    name = "lengths"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Lengths:
        try:
            return load_generator.parse_lengths(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:  # noqa: ARG002
        return "LENGTHS"


_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command(cls=Command, short_help="Measure a server under load.")
@click.option("--rate", type=_POSITIVE, metavar="R", help="Poisson arrivals, R requests a second.")
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    metavar="N",
    help="N callers, each asking again when it has its answer.",
)
@click.option(
    "--requests",
    "num_requests",
    type=click.IntRange(min=1),
    metavar="N",
    help=f"How many to send.  [default: {_DEFAULT_REQUESTS}, or no limit with --duration]",
)
@click.option(
    "--duration",
    "duration_s",
    type=_POSITIVE,
    metavar="SECONDS",
    help="How long to send; what runs then runs to its end.",
)
@click.option(
    "-a",
    "--adapters",
    "patterns",
    multiple=True,
    metavar="PATTERN",
    help="Adapters to ask for: NAME, NAME@VERSION, or a pattern such as 'task-*'. The first is the "
    "most popular. Repeatable.",
)
@click.option(
    "--popularity",
    type=click.Choice(["base", "uniform", "zipf", "hot"]),
    help="How often each adapter is asked for.  [default: uniform with --adapters, else base]",
)
@click.option(
    "--zipf-exponent",
    type=click.FloatRange(min=0),
    metavar="S",
    help="The k-th adapter's weight is 1/k^S.  [default: 1]",
)
@click.option(
    "--hot-share",
    type=click.FloatRange(min=0, max=1, min_open=True),
    metavar="SHARE",
    help="What the first adapter gets of the requests.  [default: 0.9]",
)
@click.option(
    "--prompt-tokens",
    type=LengthsType(),
    help=f"Of synthetic prompts.  [default: {_DEFAULT_PROMPT_LENGTHS}]",
)
@click.option(
    "--prompts",
    "prompt_file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help='Prompts to draw from, one a line; in a .jsonl file {"prompt": ...} or {"messages": ...}.',
)
@click.option("--chat", is_flag=True, help="Put the texts of --prompts through the chat template.")
@click.option("--output-tokens", type=LengthsType(), default="64", show_default=True)
@click.option(
    "--stop-at-eos", is_flag=True, help="Let answers end at the model's own end tokens, too."
)
@click.option("--store", is_flag=True, help="Let the server keep the answers in its journal.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of all that is drawn.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one line of JSON.")
@pass_session
def bench(session: Session, /, *, as_json: bool, **options: Any) -> None:
    """Send requests to a server, and report throughput, latency, errors and fairness.

    All are sent at once, unless --rate or --concurrency is given. LENGTHS are in tokens: 64, 16-128
    (uniform) or 64~20 (normal: mean and deviation).

    \b
      graftwork bench --concurrency 16 --duration 30
      graftwork bench --rate 4 --requests 200 -a 'task-*' --popularity zipf
    """
    _check(options)
    report = asyncio.run(_measure(session, options))
    if as_json:
        click.echo(json.dumps(report.to_json()))
    else:
        _print(report)
    lag = report.send_lag_ms
    if lag is not None and lag.p99 > _LAG_WORTH_A_REMARK_MS:
        console.note(f"1% of the requests were sent more than {lag.p99:.0f} ms after they were due")
    if not report.num_completed:
        raise Failure("no request was answered")


def _check(options: dict[str, Any]) -> None:
    """Refuses options that exclude or want one another, and fills in which popularity."""
    if options["rate"] is not None and options["concurrency"] is not None:
        raise click.UsageError("--rate and --concurrency exclude one another")
    if options["num_requests"] is None and options["duration_s"] is None:
        options["num_requests"] = _DEFAULT_REQUESTS
    if options["num_requests"] is None and options["rate"] is options["concurrency"] is None:
        raise click.UsageError("--duration needs --rate, --concurrency or --requests")
    if options["prompt_file"] is not None and options["prompt_tokens"] is not None:
        raise click.UsageError("--prompts and --prompt-tokens exclude one another")
    if options["chat"] and options["prompt_file"] is None:
        raise click.UsageError("--chat needs --prompts")
    if options["popularity"] is None:
        options["popularity"] = "uniform" if options["patterns"] else "base"
    if options["popularity"] == "base" and options["patterns"]:
        raise click.UsageError("--popularity base has no --adapters")
    for name, popularity in (("zipf_exponent", "zipf"), ("hot_share", "hot")):
        if options[name] is not None and options["popularity"] != popularity:
            raise click.UsageError(f"--{name.replace('_', '-')} needs --popularity {popularity}")


async def _measure(session: Session, options: dict[str, Any]) -> Report:
    async with session.async_client() as client:
        prompts = await _prompts(client, options)
        adapters = [""]
        if options["popularity"] != "base":
            adapters = await select_adapters(client, options["patterns"])
        requests = load_generator.draw_requests(
            _popularity(options),
            adapters,
            prompts,
            options["output_tokens"],
            seed=options["seed"],
        )
        load = load_generator.Load(
            _arrivals(options),
            options["num_requests"],
            options["duration_s"],
            seed=options["seed"],
            ignore_eos=not options["stop_at_eos"],
            store=None if options["store"] else False,
        )
        with console.counter("answers") as on_done:
            run = await load_generator.run_load(client, load, requests, on_done)
    try:
        return load_generator.summarize(run)
    except ValueError as error:
        raise Failure(str(error)) from error


def _arrivals(options: dict[str, Any]) -> Arrivals:
    if options["rate"] is not None:
        return load_generator.Poisson(options["rate"])
    if options["concurrency"] is not None:
        return load_generator.ClosedLoop(options["concurrency"])
    return load_generator.AllAtOnce()


def _popularity(options: dict[str, Any]) -> Popularity:
    if options["popularity"] == "zipf":
        exponent = options["zipf_exponent"]
        return load_generator.Zipf(1.0 if exponent is None else exponent)
    if options["popularity"] == "hot":
        return load_generator.OneHot(options["hot_share"] or 0.9)
    return load_generator.Even()


async def _prompts(client: AsyncClient, options: dict[str, Any]) -> Prompts:
    """Raises Failure for a file that cannot be read, and for lengths that the server refuses."""
    limits = (await client.model()).limits
    longest_answer = options["output_tokens"].longest
    if longest_answer > limits.max_new_tokens:
        raise Failure(
            f"--output-tokens: up to {longest_answer}, but the server gives"
            f" {limits.max_new_tokens} at most"
        )
    if options["prompt_file"] is not None:
        try:
            prompts = load_generator.read_prompts(options["prompt_file"], chat=options["chat"])
        except UnicodeDecodeError:
            raise
        except ValueError as error:
            raise Failure(f"--prompts: {error}") from error
        return load_generator.GivenPrompts(prompts)
    lengths = options["prompt_tokens"] or load_generator.parse_lengths(_DEFAULT_PROMPT_LENGTHS)
    if lengths.longest + longest_answer > limits.max_context_tokens:
        raise Failure(
            f"--prompt-tokens: up to {lengths.longest} and {longest_answer} of an answer, but the"
            f" server's context is {limits.max_context_tokens} tokens"
        )
    vocabulary = sorted(set((await client.tokenize(SAMPLE_TEXT)).token_ids))
    return load_generator.SyntheticPrompts(lengths, vocabulary)


async def select_adapters(client: AsyncClient, patterns: Sequence[str]) -> list[str]:
    """The selectors that the patterns name, in their order; without patterns, all adapters that
    have a live version. Raises Failure where a pattern names none, NotFound for NAME@VERSION."""
    serving = [
        adapter.name
        async for adapter in client.adapters.list()
        if adapter.live_version or adapter.traffic_split
    ]
    if not patterns:
        if not serving:
            raise Failure("--popularity: the server has no adapter with a live version")
        return serving
    found: dict[str, None] = {}
    for pattern in patterns:
        if "@" in pattern:
            found[(await client.adapters.get_version(pattern)).selector] = None
            continue
        matching = list(_matching(serving, pattern))
        if not matching:
            shown = ", ".join(serving[:_NAMES_SHOWN]) + (", …" * (len(serving) > _NAMES_SHOWN))
            raise Failure(
                f"--adapters: no adapter with a live version matches {pattern!r};"
                f" there are: {shown or 'none'}"
            )
        found.update(dict.fromkeys(matching))
    return list(found)


def _matching(names: Sequence[str], pattern: str) -> Iterator[str]:
    return (name for name in names if fnmatch.fnmatchcase(name, pattern))


def _print(report: Report) -> None:
    cached = f" ({report.cached_prompt_tokens:,} cached)" if report.cached_prompt_tokens else ""
    errors = ", ".join(f"{count} {code}" for code, count in sorted(report.errors.items()))
    fairness = report.fairness
    rows: list[tuple[str, object]] = [
        ("requests", f"{report.num_requests:,} in {report.seconds:.1f} s"),
        ("completed", f"{report.num_completed:,}, {report.requests_per_s:.2f} a second"),
        ("errors", errors or "none"),
        ("prompts", f"{report.prompt_tokens:,} tokens{cached}"),
        ("output", f"{report.output_tokens:,} tokens, {report.output_tokens_per_s:.1f} a second"),
        ("both", f"{report.total_tokens_per_s:.1f} tokens a second"),
        ("adapters", f"{fairness.num_adapters:,}, fairness {fairness.jain_index:.3f} (Jain)"),
    ]
    for label, ttft in (("best", fairness.best_ttft), ("worst", fairness.worst_ttft)):
        if ttft is not None and fairness.num_adapters > 1:
            name = ttft.adapter or "base"
            rows.append((label, f"{name}, first token after {ttft.mean_ms:.1f} ms on average"))
    console.print_fields(rows)
    click.echo()
    console.print_table(
        ["milliseconds", "#mean", "#p50", "#p90", "#p99", "#max"],
        [
            _row("to first token", report.ttft_ms),
            _row("between tokens", report.inter_token_ms),
            _row("end to end", report.e2e_ms),
        ],
    )


def _row(name: str, found: Distribution | None) -> list[str]:
    if found is None:
        return [name, *["-"] * 5]
    values = (found.mean, found.p50, found.p90, found.p99, found.max)
    return [name, *(f"{value:.1f}" for value in values)]
