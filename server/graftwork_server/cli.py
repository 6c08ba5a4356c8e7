"""`graftwork serve`."""

import asyncio
import gc
import logging
import os

import click
from rich.console import Console

from graftwork_server.config import config_options
from graftwork_server.default_model import ensure_default_model
from graftwork_server.errors import StartupError
from graftwork_server.logging_setup import configure_logging
from graftwork_server.settings import Settings

FIRST_REQUEST = """\
Ready: gRPC on {host}:{port}, metrics on http://{metrics_host}:{metrics_port}/metrics

Try it from another terminal:

  {command} --target {host}:{port} generate --chat "Why is the sky blue?"
"""


@click.command()
@config_options
def serve(settings: Settings) -> None:
    """Serve the base model and its adapters over gRPC."""
    configure_logging(settings.log)
    # Nothing asks a hub for anything unless the operator names a hub id.
    if settings.model.path is None or os.path.isdir(settings.model.path):  # noqa: PTH112
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # OpenMP's threads, which torch uses once a step, would wait for milliseconds in a busy loop on
    # the core that the kernels' own thread needs. Read when torch is loaded.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # What start-up makes stays: looking through it for garbage takes a good part of the imports'
    # time. The collector runs from when the server is up.
    gc.disable()
    try:
        _serve(settings)
    except StartupError as error:
        raise click.ClickException(str(error)) from error
    finally:
        gc.enable()


def _serve(settings: Settings) -> None:
    console = Console(stderr=True)
    with console.status("Loading torch and transformers"):
        # On import it advises a kernel that is of no use here.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        from graftwork_server import serve as wiring  # noqa: PLC0415 - seconds, after --help

        _quiet_transformers()
    if settings.model.path is None:
        ensure_default_model()  # draws a bar of its own while it downloads
    with console.status("Loading the base model"):
        base = wiring.load_base(settings)
    console.print(
        f"{base.name}: {base.num_parameters / 1e6:.0f} million parameters, {base.quantization}, "
        f"{base.weight_bytes / 2**20:.0f} MiB on {base.device.type}"
    )

    def on_ready(server: wiring.RunningServer) -> None:
        console.print(
            FIRST_REQUEST.format(
                host=settings.grpc.host,
                port=server.port,
                metrics_host=settings.metrics.host,
                metrics_port=server.metrics_port,
                command=os.environ.get("GRAFTWORK_COMMAND", "graftwork"),
            ),
            highlight=False,
            soft_wrap=True,
        )

    asyncio.run(wiring.serve(settings, base, on_ready))


def _quiet_transformers() -> None:
    """Its progress bars and advice are not for who runs a server."""
    from transformers.utils import logging as transformers_logging  # noqa: PLC0415

    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
