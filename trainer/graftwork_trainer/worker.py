"""The process of one training job: `python -m graftwork_trainer.worker JOB_FOLDER`.

It steps back, ties its life to the server's, and only then imports what is large. Standard output
is for events (`jobs/events.py`), standard error for everything else. On SIGTERM it ends where it
can go on: after a training step with a checkpoint, elsewhere at once, since every phase may be
repeated.
"""

import errno
import logging
import os
import signal
import sys
from collections.abc import Iterable
from pathlib import Path
from types import FrameType
from typing import TextIO

import grpc
from graftwork.errors import GraftworkError
from graftwork.status import WireError

from graftwork_trainer.jobs.catalogue import RECIPE_FORMATS, Catalogue
from graftwork_trainer.jobs.events import Event, Failed, to_line
from graftwork_trainer.jobs.folders import JOB_FILE
from graftwork_trainer.jobs.launcher import JobOrder
from graftwork_trainer.jobs.priority import die_with, step_back
from graftwork_trainer.jobs.validate import parse_spec

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
EXIT_STOPPED = 75  # EX_TEMPFAIL: the same job goes on in another process


class Stop:
    """Whether the supervisor wants this process to end."""

    def __init__(self) -> None:
        self._asked = False
        self._may_wait = False

    def listen(self) -> None:
        signal.signal(signal.SIGTERM, self._on_signal)

    def is_asked(self) -> bool:
        return self._asked

    def wait_for_checkpoint(self, may_wait: bool) -> None:
        """Whether what runs now looks at `is_asked` by itself."""
        self._may_wait = may_wait
        if self._asked and not may_wait:
            raise SystemExit(EXIT_STOPPED)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self._asked = True
        if not self._may_wait:
            raise SystemExit(EXIT_STOPPED)


class Reporter:
    """Tells events to the supervisor."""

    def __init__(self, output: TextIO) -> None:
        self._output = output

    def tell(self, event: Event) -> None:
        self._output.write(to_line(event))
        self._output.flush()


def main(arguments: Iterable[str]) -> int:
    (folder,) = map(Path, arguments)
    order = JobOrder.read(folder / JOB_FILE)
    die_with(order.server_pid)
    step_back(order.scheduling, order.niceness)
    stop = Stop()
    stop.listen()
    reporter = Reporter(_take_stdout())
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    return _run(order, folder, reporter, stop)


def _run(order: JobOrder, folder: Path, reporter: Reporter, stop: Stop) -> int:
    # Seconds of imports, at the lowest priority.
    from graftwork import Client  # noqa: PLC0415

    from graftwork_trainer.phases import JobPhases  # noqa: PLC0415
    from graftwork_trainer.recipes.run import TrainingStopped  # noqa: PLC0415

    spec = parse_spec(order.spec, Catalogue(RECIPE_FORMATS, frozenset(order.methods)))
    try:
        with Client(order.server, timeout=_CALL_TIMEOUT_S) as client:
            phases = JobPhases(order, spec, folder, client=client, tell=reporter.tell, stop=stop)
            reporter.tell(phases.run())
    except TrainingStopped:
        return EXIT_STOPPED
    except (GraftworkError, WireError) as error:
        if error.code not in _PERMANENT:
            raise
        reporter.tell(Failed(error.message))
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        reporter.tell(Failed("no room is left on the disk of the training jobs: free some"))
    return 0


def _take_stdout() -> TextIO:
    """Standard output for ourselves: what libraries print goes to standard error."""
    ours = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.stdout = sys.stderr
    return ours


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
