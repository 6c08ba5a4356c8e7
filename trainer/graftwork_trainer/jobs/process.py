"""One worker: a child process that is spawned, listened to, limited, and ended."""

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Self, cast

from graftwork_trainer.jobs.events import Event, NotAnEvent, parse_line

COMMAND = (sys.executable, "-P", "-m", "graftwork_trainer.worker")
LOG_FILE = "worker.log"

_MAX_LINE_BYTES = 1 << 20
_READ_BYTES = 1 << 16
_TAIL_BYTES = 4096
_LAST_LINE_CHARS = 400


class WorkerProcess:
    """A running worker. Lives on the event loop's thread, whose end is the worker's end."""

    def __init__(self, process: asyncio.subprocess.Process, log: Path, max_log_bytes: int) -> None:
        self._process = process
        self._tail = b""  # of what it said
        self._logging = asyncio.create_task(self._keep_log(log, max_log_bytes))

    @classmethod
    async def start(
        cls,
        arguments: Sequence[str],
        log: Path,
        *,
        command: Sequence[str] = COMMAND,
        environment: Mapping[str, str],
        max_log_bytes: int,
    ) -> Self:
        """Spawns, never forks: nothing of the server's memory is in the child.

        `environment` is added to the server's own. Raises OSError where it cannot be started.
        """
        process = await asyncio.create_subprocess_exec(
            *command,
            *arguments,
            stdin=asyncio.subprocess.PIPE,  # the lease: held open, never written to
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, **environment},
            limit=_MAX_LINE_BYTES,
            # A group of its own: a key pressed at the server's terminal is not for it. A session of
            # its own would also free it from stepping back behind the server: Linux shares the
            # processor evenly between sessions (autogroup, sched(7)), whatever runs in them.
            process_group=0,
        )
        return cls(process, log, max_log_bytes)

    @property
    def pid(self) -> int:
        return self._process.pid

    async def events(self) -> AsyncIterator[Event]:
        """What the worker tells, until it closes its output. Lines that are no events are kept
        with its log's."""
        stdout = cast("asyncio.StreamReader", self._process.stdout)
        while True:
            try:
                line = await stdout.readline()
            except ValueError:  # longer than any event; what was read of it is gone
                continue
            if not line:
                return
            try:
                yield parse_line(line)
            except NotAnEvent:
                self._remember(line)

    def terminate(self) -> None:
        """Asks the worker to write its checkpoint and end."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Ends the worker and what it may have started."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    async def wait(self) -> str:
        """Waits for the end; says how it came, with the last lines of the log where it failed."""
        code = await self._process.wait()
        self.kill()  # what it may have started keeps its output open
        await self._logging
        if code == 0:
            return "ended without a result"
        if code == -signal.SIGKILL:  # which lets nobody have a last word
            return f"{_signal_name(-code)}, as the system does where memory runs out"
        how = _signal_name(-code) if code < 0 else f"exit code {code}"
        last = self.last_words
        return f"{how}: {last}" if last else how

    async def stop(self, grace_s: float) -> None:
        """Asks it to end, and kills it where it has not after the grace time."""
        self.terminate()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._process.wait(), grace_s)
        self.kill()
        await self._process.wait()

    @property
    def last_words(self) -> str:
        """The last line of its log that says something: of a traceback, the error."""
        lines = self._tail.decode(errors="replace").split("\n")
        said = [line.strip() for line in lines if line.strip()]
        return said[-1][:_LAST_LINE_CHARS] if said else ""

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(number)

    def _remember(self, said: bytes) -> None:
        self._tail = (self._tail + said)[-_TAIL_BYTES:]

    async def _keep_log(self, path: Path, max_bytes: int) -> None:
        """Copies standard error to `path`, and what came before the last `max_bytes` to
        `path`.1."""
        stderr = cast("asyncio.StreamReader", self._process.stderr)
        while data := await stderr.read(_READ_BYTES):
            self._remember(data)
            # A disk that is full costs the log, not the job.
            with contextlib.suppress(OSError):
                await asyncio.to_thread(_append, path, data, max_bytes)


def _append(path: Path, data: bytes, max_bytes: int) -> None:
    with path.open("ab") as file:
        file.write(data)
        size = file.tell()
    if size > max_bytes:
        path.replace(path.with_name(path.name + ".1"))


def _signal_name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return f"killed by signal {number} ({signal.Signals(number).name})"
    return f"killed by signal {number}"
