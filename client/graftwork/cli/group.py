"""The command's root: global options, the commands, and those that other packages add."""

from pathlib import Path

import click

from graftwork.channel import DEFAULT_TARGET, DEFAULT_TIMEOUT_S
from graftwork.cli import plugins
from graftwork.cli.adapters import adapters
from graftwork.cli.bench import bench
from graftwork.cli.chat import chat
from graftwork.cli.feedback import feedback
from graftwork.cli.generation import generate, model, score, tokenize
from graftwork.cli.session import Session
from graftwork.cli.train import train

_PEM_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.group(cls=plugins.PluginGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--target",
    envvar="GRAFTWORK_TARGET",
    default=DEFAULT_TARGET,
    show_default=True,
    show_envvar=True,
    metavar="HOST:PORT",
    help="The server's address.",
)
@click.option("--tls", is_flag=True, help="Use TLS, trusting the system's authorities.")
@click.option(
    "--ca",
    envvar="GRAFTWORK_CA",
    show_envvar=True,
    type=_PEM_FILE,
    help="Use TLS, trusting the authorities in this PEM file.",
)
@click.option(
    "--cert",
    envvar="GRAFTWORK_CERT",
    show_envvar=True,
    type=_PEM_FILE,
    help="The certificate to show in mutual TLS; with --key.",
)
@click.option(
    "--key",
    envvar="GRAFTWORK_KEY",
    show_envvar=True,
    type=_PEM_FILE,
    help="The private key of --cert.",
)
@click.option(
    "--timeout",
    type=click.FloatRange(min=0, min_open=True),
    default=DEFAULT_TIMEOUT_S,
    show_default=True,
    metavar="SECONDS",
    help="Deadline of each call.",
)
@click.version_option(package_name="graftwork", message="graftwork %(version)s")
@click.pass_context
def main(
    ctx: click.Context,
    /,
    *,
    target: str,
    tls: bool,
    ca: Path | None,
    cert: Path | None,
    key: Path | None,
    timeout: float,
) -> None:
    """Talk to a Graftwork server: one base model, many adapters."""
    if (cert is None) != (key is None):
        raise click.UsageError("--cert and --key go together")
    session = Session(target, tls, ca, cert, key, timeout)
    ctx.obj = session
    ctx.call_on_close(session.close)


for command in (generate, chat, score, tokenize, model, adapters, feedback, train, bench):
    main.add_command(command)
