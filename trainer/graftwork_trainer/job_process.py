"""Runs a job's phases in its worker, and tells the supervisor what comes of them."""

import logging
import sys
from pathlib import Path
from typing import TextIO

import grpc
from graftwork import Client
from graftwork.errors import GraftworkError
from graftwork.status import WireError
from graftwork_adapters.durable import is_disk_full

from graftwork_trainer.jobs.catalogue import RECIPE_FORMATS, Catalogue
from graftwork_trainer.jobs.events import Event, Failed, to_line
from graftwork_trainer.jobs.folders import JOB_FILE
from graftwork_trainer.jobs.launcher import JobOrder
from graftwork_trainer.jobs.validate import parse_spec
from graftwork_trainer.phases import JobPhases
from graftwork_trainer.stop import Stop

_CALL_TIMEOUT_S = 600.0
# What the same job would meet again.
_PERMANENT = frozenset(
    {
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.NOT_FOUND,
        grpc.StatusCode.FAILED_PRECONDITION,
        grpc.StatusCode.PERMISSION_DENIED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.DATA_LOSS,
    }
)


def run_job(folder: Path, output: TextIO) -> None:
    """Tells events to `output`. Raises what another attempt may not meet again."""

    def tell(event: Event) -> None:
        output.write(to_line(event))
        output.flush()

    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    stop = Stop()
    stop.listen()
    order = JobOrder.read(folder / JOB_FILE)
    try:
        spec = parse_spec(order.spec, Catalogue(RECIPE_FORMATS, frozenset(order.methods)))
        with Client(order.server, timeout=_CALL_TIMEOUT_S) as client:
            tell(JobPhases(order, spec, folder, client=client, tell=tell, stop=stop).run())
    except (GraftworkError, WireError) as error:
        if error.code not in _PERMANENT or error.retry_after_s is not None:
            raise
        tell(Failed(error.message))
    except ModuleNotFoundError as error:
        tell(Failed(f"training needs {error.name}: pip install 'graftwork[train]'"))
    except OSError as error:
        if not is_disk_full(error):
            raise
        tell(Failed("no room is left on the disk of the training jobs: free some"))
