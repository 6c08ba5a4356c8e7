"""Runs the queue: one job at a time, each in a worker of its own, whose end decides what follows.

Lives on the event loop and never blocks it: the database is reached through an executor.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import replace
from typing import Any, Protocol, TypeVar

from graftwork.errors import GraftworkError
from graftwork.status import WireError

from graftwork_trainer.jobs.errors import WrongTransition
from graftwork_trainer.jobs.feed import JobFeed
from graftwork_trainer.jobs.leftovers import Leftovers
from graftwork_trainer.jobs.outcome import End, Requeue, Retry, StopReason, what_follows
from graftwork_trainer.jobs.records import CanaryRecord, JobRecord, Progress
from graftwork_trainer.jobs.run import JobRun, WorkerStarter
from graftwork_trainer.jobs.states import JobState
from graftwork_trainer.jobs.store import LEASE_S, JobStore

logger = logging.getLogger(__name__)

Result = TypeVar("Result")

_RETRY_DATABASE_S = 2.0
_PAUSE_AFTER_CRASH_S = 1.0


class JobObserver(Protocol):
    """Gets what the metrics show, on the event loop."""

    def set_training_jobs(self, by_state: dict[str, int]) -> None: ...

    def set_training_progress(self, progress: Progress) -> None: ...

    def count_gate_verdict(self, verdict: str) -> None: ...


class Links(Protocol):
    def record(self, version: str, digest: str) -> None:
        """Notes that "name@version" was trained on a snapshot. Waits for the disk, may be called
        again. Raises WireError."""


class Canaries(Protocol):
    async def begin(self, record: CanaryRecord) -> None:
        """Watches a canary, and gives it its share of the traffic. May be called again. Raises
        WireError, GraftworkError."""


class Supervisor:
    """`start` it once the server answers, `stop` it before the server no longer does."""

    def __init__(
        self,
        store: JobStore,
        leftovers: Leftovers,
        starter: WorkerStarter,
        links: Links,
        canaries: Canaries,
        *,
        executor: Executor,
        observer: JobObserver,
        heartbeat_s: float = LEASE_S / 4,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.feed = JobFeed()
        self._store = store
        self._leftovers = leftovers
        self._starter = starter
        self._links = links
        self._canaries = canaries
        self._executor = executor
        self._observer = observer
        self._heartbeat_s = heartbeat_s
        self._clock = clock
        self._wake = asyncio.Event()
        self._run: JobRun | None = None
        self._loop_task: asyncio.Task[None] | None = None
        self._lease_task: asyncio.Task[None] | None = None
        self._stopping = False
        # Cancelled between being taken from the queue and being run.
        self._to_cancel: set[str] = set()

    async def start(self) -> None:
        """Puts back what an earlier server was running, and begins to work."""
        put_back = await self._off_loop(self._store.recover)
        if put_back:
            logger.info("%d training jobs go on after a restart", put_back)
        await self._leftovers.sweep()
        self._loop_task = asyncio.create_task(self._work(), name="training jobs")
        self._lease_task = asyncio.create_task(self._keep_lease(), name="training lease")

    async def stop(self) -> None:
        """Ends the worker, which writes its checkpoint; its job goes back to the queue."""
        self._stopping = True
        self._wake.set()
        if self._run is not None:
            self._run.stop(StopReason.SHUTDOWN)
        if self._loop_task is not None:
            try:
                await self._loop_task
            except (WireError, GraftworkError) as error:
                logger.warning("training jobs stop without their last words: %s", error)
        if self._lease_task is not None:
            self._lease_task.cancel()
            await asyncio.gather(self._lease_task, return_exceptions=True)

    def wake(self) -> None:
        """A job was queued."""
        self._wake.set()

    async def cancel(self, job_id: str) -> JobRecord:
        """Ends a waiting job at once, a running one soon. Raises UnknownJob."""
        record = await self._off_loop(self._store.cancel, job_id)
        if self._run is not None and self._run.job.id == job_id:
            self._run.stop(StopReason.CANCELLED)
        elif record.state is JobState.RUNNING:
            self._to_cancel.add(job_id)
        else:  # it may have run before it went back to the queue
            await self._leftovers.clear(record)
        self.feed.changed(job_id)
        await self._report()
        return self.latest(record)

    async def get(self, job_id: str) -> JobRecord:
        """The job with its latest progress. Raises UnknownJob."""
        return self.latest(await self._off_loop(self._store.get, job_id))

    def latest(self, record: JobRecord) -> JobRecord:
        """A record of the database with what is known since it was written."""
        run = self._run
        if run is None or run.job.id != record.id or record.state is not JobState.RUNNING:
            return record
        return replace(record, progress=run.progress, version=run.version, snapshot=run.snapshot)

    async def _keep_lease(self) -> None:
        while True:
            await asyncio.sleep(self._heartbeat_s)
            try:
                await self._beat()
            except WireError as error:
                logger.warning("the lease of training jobs is not renewed: %s", error)

    async def _beat(self) -> None:
        """Says that this server lives, and looks for what other servers of the database asked of
        it or left behind."""
        if (run := self._run) is not None:
            job = await self._off_loop(self._store.renew, run.job.id)
            if job is None:
                run.stop(StopReason.LEASE_LOST)
            elif job.cancel_requested:
                run.stop(StopReason.CANCELLED)
        if abandoned := await self._off_loop(self._store.recover_abandoned):
            logger.warning("%d training jobs go on whose server is gone", abandoned)
        self._wake.set()

    async def _work(self) -> None:
        while not self._stopping:
            self._wake.clear()
            job = await self._persist(self._store.claim)
            await self._report()
            if job is None:
                await self._wake.wait()
                continue
            self.feed.changed(job.id)
            try:
                await self._run_job(job)
            except Exception:
                if self._stopping:  # the next server finds the job as it was
                    raise
                logger.exception("training job %s ends by a defect of the server", job.id)
                await self._give_up(job)
            await self._report()

    async def _give_up(self, job: JobRecord) -> None:
        message = "the server failed to run it; its log says how"
        with contextlib.suppress(WrongTransition):  # it had ended already
            await self._persist(self._store.finish, job.id, JobState.FAILED, message)
        self.feed.changed(job.id)

    async def _run_job(self, job: JobRecord) -> None:
        """Runs a job to its end, or until the server stops."""
        run = self._run = JobRun(job, self._write, self._tell, self._clock)
        try:
            if job.cancel_requested or job.id in self._to_cancel:
                run.stop(StopReason.CANCELLED)
            while True:
                if self._stopping:
                    run.stop(StopReason.SHUTDOWN)
                try:
                    end = await run.attempt(self._starter)
                    if end.stopped is StopReason.LEASE_LOST:
                        logger.warning("training job %s is run by another server", job.id)
                        await self._leftovers.clear(job)
                        return
                    next_step = what_follows(end, run.limits, crashes=run.job.crashes)
                except WireError as error:  # a spec that this server does not take any more
                    next_step = End(JobState.FAILED, error.message)
                if not isinstance(next_step, Retry):
                    break
                logger.warning("training job %s: %s", job.id, next_step.message)
                run.job = await self._persist(self._store.start_again, job.id, next_step.message)
                self.feed.changed(job.id)
                await run.pause(_PAUSE_AFTER_CRASH_S)
            await self._end(run, next_step)
        finally:
            self._run = None
            self._to_cancel.discard(job.id)
            self.feed.changed(job.id)

    async def _end(self, run: JobRun, step: End | Requeue) -> None:
        job_id = run.job.id
        await self._persist(self._store.record, job_id, **run.state_to_write())
        if isinstance(step, Requeue):
            await self._persist(self._store.requeue, job_id, step.message)
            return
        if step.canary is not None:
            step = await self._begin_canary(CanaryRecord(job_id, step.canary), step)
        await self._persist(self._store.finish, job_id, step.state, step.message)
        if run.version and not run.is_linked:  # what is live is so, whatever becomes of the note
            try:
                await self._persist(self._links.record, run.version, run.snapshot)
            except (WireError, OSError):
                logger.exception("what %s was trained on is not noted", run.version)
        if step.state in (JobState.SUCCEEDED, JobState.REFUSED):
            self._observer.count_gate_verdict(
                "passed" if step.state is JobState.SUCCEEDED else "refused"
            )
        logger.info("training job %s %s %s", job_id, step.state.value, step.message)
        await self._leftovers.clear(run.job)

    async def _begin_canary(self, canary: CanaryRecord, end: End) -> End:
        try:
            await self._retried(lambda: self._canaries.begin(canary))
        except (WireError, GraftworkError) as error:
            if self._stopping:  # the next server goes on with it
                raise
            return End(JobState.FAILED, f"its canary got no traffic: {error.message}")
        return end

    async def _write(self, run: JobRun) -> None:
        """Keeps what a worker told. A database that fails costs progress, not the job."""
        try:
            await self._off_loop(self._store.record, run.job.id, **run.state_to_write())
            if run.version and not run.is_linked:
                await self._off_loop(self._links.record, run.version, run.snapshot)
                run.is_linked = True
        except (WireError, OSError) as error:
            logger.warning("progress of training job %s is not kept: %s", run.job.id, error)

    def _tell(self, run: JobRun) -> None:
        self._observer.set_training_progress(run.progress)
        self.feed.changed(run.job.id)

    async def _report(self) -> None:
        with contextlib.suppress(WireError):
            counts = await self._off_loop(self._store.counts)
            self._observer.set_training_jobs({s.value: n for s, n in counts.items()})

    async def _persist(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        return await self._retried(lambda: self._off_loop(function, *args, **kwargs))

    async def _retried(self, attempt: Callable[[], Awaitable[Result]]) -> Result:
        """Tries until the database takes it: a full disk may be emptied."""
        while True:
            try:
                return await attempt()
            except (WireError, GraftworkError) as error:
                if error.retry_after_s is None:
                    raise
                logger.warning("the queue of training jobs waits: %s", error)
                if self._stopping:
                    raise
                await asyncio.sleep(_RETRY_DATABASE_S)

    async def _off_loop(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        def call() -> Result:
            return function(*args, **kwargs)

        return await asyncio.get_running_loop().run_in_executor(self._executor, call)
