"""`graftwork backup` and `graftwork restore`."""

from collections.abc import Callable
from pathlib import Path

import click
from graftwork.cli import console

from graftwork_server.backup import Progress, back_up
from graftwork_server.backup import restore as restore_backup
from graftwork_server.config import config_options
from graftwork_server.errors import StartupError
from graftwork_server.settings import Settings


@click.command()
@click.argument("file", type=click.Path(dir_okay=False, path_type=Path))
@config_options
def backup(file: Path, settings: Settings) -> None:
    """Write registry, adapters, journal and training data to a new FILE.

    Takes the settings of the server, which may go on serving.
    """
    _run(f"writing {file}", lambda progress: back_up(settings, file, progress))
    click.echo(f"{settings.data_dir} -> {file} ({console.size(file.stat().st_size)})")


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@config_options
def restore(file: Path, settings: Settings) -> None:
    """Put what `backup` wrote to FILE into an empty data folder.

    Takes the settings that the server will have; a PostgreSQL database must be empty, too.
    """
    _run(f"reading {file}", lambda progress: restore_backup(settings, file, progress))
    click.echo(f"{file} -> {settings.data_dir}")


def _run(text: str, work: Callable[[Progress], None]) -> None:
    try:
        with console.progress_bar(text) as progress:
            work(progress)
    except StartupError as error:
        raise click.ClickException(str(error)) from error
