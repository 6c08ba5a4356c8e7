"""A job while it runs: its worker, what that has told, and what makes it end early."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from graftwork_trainer.jobs.events import Event, Failed, Finished, Snapshot, Version
from graftwork_trainer.jobs.memory import private_bytes
from graftwork_trainer.jobs.outcome import Limits, StopReason, WorkerEnd
from graftwork_trainer.jobs.process import WorkerProcess
from graftwork_trainer.jobs.records import JobRecord, Progress

GRACE_S = 10.0  # for a worker to write its checkpoint and end

_WRITE_INTERVAL_S = 1.0
_MEMORY_INTERVAL_S = 2.0


class WorkerStarter(Protocol):
    def limits(self, job: JobRecord) -> Limits:
        """Raises WireError for a spec that is not accepted any more."""

    async def start(self, job: JobRecord) -> WorkerProcess:
        """Raises OSError."""


class JobRun:
    """`write` keeps what is known of the run; `tell` is called whenever that has changed."""

    def __init__(
        self,
        job: JobRecord,
        write: Callable[["JobRun"], Awaitable[None]],
        tell: Callable[["JobRun"], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.job = job
        self.progress = job.progress
        self.version = job.version
        self.snapshot = job.snapshot
        self.is_linked = False  # whether it is noted what the version was trained on
        self.result: Finished | Failed | None = None
        self.limits = Limits(0, 0, 0)
        self._write = write
        self._tell = tell
        self._clock = clock
        self._began = clock()
        self._earlier_s = job.run_time_s  # `job` is renewed by each attempt, with its time in it
        self._written = float("-inf")
        self._stop = asyncio.get_running_loop().create_future()

    @property
    def run_time_s(self) -> float:
        """Of all attempts."""
        return self._earlier_s + self._clock() - self._began

    def state_to_write(self) -> dict[str, Any]:
        """Arguments of `JobStore.record`."""
        return {
            "progress": self.progress,
            "run_time_s": self.run_time_s,
            "version": self.version,
            "snapshot": self.snapshot,
        }

    def stop(self, reason: StopReason) -> None:
        """Makes the run end. The first reason counts."""
        if not self._stop.done():
            self._stop.set_result(reason)

    async def pause(self, seconds: float) -> None:
        """Waits, unless the run is to end."""
        await asyncio.wait([self._stop], timeout=seconds)

    async def attempt(self, starter: WorkerStarter) -> WorkerEnd:
        """Runs one worker to its end, or until the run is to stop. Raises WireError."""
        self.limits = starter.limits(self.job)
        if self._stop.done():
            return WorkerEnd(self.result, self._stop.result(), "")
        try:
            process = await starter.start(self.job)
        except OSError as error:
            return WorkerEnd(None, None, f"it could not be started: {error}")
        tasks = [
            asyncio.create_task(self._listen(process)),
            asyncio.create_task(self._watch_time()),
            asyncio.create_task(self._watch_memory(process)),
        ]
        ended = asyncio.create_task(process.wait())
        try:
            await asyncio.wait([ended, self._stop, tasks[0]], return_when=asyncio.FIRST_COMPLETED)
            if tasks[0].done():  # it has closed its output, or what it tells is lost
                await asyncio.wait(
                    [ended, self._stop], timeout=GRACE_S, return_when=asyncio.FIRST_COMPLETED
                )
            if not ended.done():
                await process.stop(GRACE_S)
            how = await ended
            process.kill()  # what it may have started keeps its output open
            await tasks[0]
        finally:
            process.kill()
            for task in tasks:
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task
        return WorkerEnd(self.result, self._stop.result() if self._stop.done() else None, how)

    async def _listen(self, process: WorkerProcess) -> None:
        async for event in process.events():
            changed_phase = isinstance(event, Progress) and event.phase != self.progress.phase
            self._apply(event)
            self._tell(self)
            now = self._clock()
            is_due = now - self._written >= _WRITE_INTERVAL_S
            if is_due or changed_phase or not isinstance(event, Progress):
                self._written = now
                await self._write(self)

    def _apply(self, event: Event) -> None:
        match event:
            case Progress():
                self.progress = event
            case Snapshot(digest):
                self.snapshot = digest
            case Version(version):
                self.version = version
            case Finished() | Failed():
                self.result = event

    async def _watch_time(self) -> None:
        await asyncio.sleep(max(0.0, self.limits.max_duration_s - self.run_time_s))
        self.stop(StopReason.OUT_OF_TIME)

    async def _watch_memory(self, process: WorkerProcess) -> None:
        while self.limits.max_memory_bytes:
            taken = await asyncio.to_thread(private_bytes, process.pid)
            if taken > self.limits.max_memory_bytes:
                self.stop(StopReason.OUT_OF_MEMORY)
                return
            await asyncio.sleep(_MEMORY_INTERVAL_S)
