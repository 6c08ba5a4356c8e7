"""`graftwork adapters convert`: no server is asked."""

from pathlib import Path

import click
from graftwork.cli.failures import Command, Failure
from graftwork.status import WireError

from graftwork_adapters.adapterhub import convert_folder
from graftwork_adapters.limits import AdapterLimits


@click.command(cls=Command)
@click.argument("source", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.argument("target", type=click.Path(path_type=Path))
def convert(source: Path, target: Path) -> None:
    """Convert a folder that AdapterHub's `adapters` has saved into one that can be registered.

    SOURCE holds adapter_config.json with adapter.safetensors, or with pytorch_adapter.bin, of which
    nothing but tensors is read. TARGET is written.
    """
    try:
        convert_folder(source, target, AdapterLimits())
    except WireError as error:
        raise Failure(str(error)) from error
    click.echo(f"wrote {target}")
