"""Starting a peer's worker, and asking it for runs."""

import contextlib
import dataclasses
import json
import os
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO

from benchmarks.peers.runs import Batch, Run
from benchmarks.peers.worker import parse_run

_REPOSITORY = Path(__file__).resolve().parents[2]


class PeerError(RuntimeError):
    """A peer cannot be measured; the message says why, and what to do."""


@dataclasses.dataclass(frozen=True, slots=True)
class WorkerProcess:
    name: str
    process: subprocess.Popen[str]
    log: Path

    @property
    def pid(self) -> int:
        return self.process.pid

    def generate(self, batch: Batch) -> Run:
        """Raises PeerError where the worker has died."""
        with contextlib.suppress(BrokenPipeError):
            print(json.dumps(dataclasses.asdict(batch)), file=_open(self.process.stdin), flush=True)
        return parse_run(self.next_line())

    def next_line(self) -> str:
        line = _open(self.process.stdout).readline()
        if not line:
            raise PeerError(f"{self.name} ended:\n{self.log.read_text()[-3000:]}")
        return line


@contextlib.contextmanager
def running_worker(
    name: str,
    python: Path,
    module: str,
    arguments: list[str],
    *,
    log: Path,
    environment: Mapping[str, str] | None = None,
) -> Iterator[WorkerProcess]:
    """`python -m module` with this repository's `benchmarks` in reach; returns when it is ready.

    Its log goes to `log`. Raises PeerError where it does not get ready.
    """
    variables = {**os.environ, **(environment or {})}
    # After what is there already: a package of the environment wins over a folder of ours.
    path = [variables.get("PYTHONPATH", ""), str(_REPOSITORY)]
    variables["PYTHONPATH"] = os.pathsep.join(filter(None, path))
    with log.open("w") as errors:
        process = subprocess.Popen(
            [str(python), "-P", "-m", module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=variables,
        )
    worker = WorkerProcess(name, process, log)
    try:
        worker.next_line()
        yield worker
    finally:
        _open(process.stdin).close()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _open(process.stdout).close()


def _open(stream: IO[str] | None) -> IO[str]:
    assert stream is not None, "both are pipes"
    return stream
