"""The supervisor with real child processes that do as they are told (fake_worker.py)."""

import asyncio
import contextlib
import itertools
import os
import sys
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import sqlalchemy as sa
from google.protobuf.duration_pb2 import Duration
from graftwork.errors import NotFound, ResourceExhausted, Unavailable
from graftwork.v1 import training_service_pb2 as pb
from graftwork_adapters.records import VersionRecord
from graftwork_trainer.jobs import run as run_module
from graftwork_trainer.jobs import supervisor as supervisor_module
from graftwork_trainer.jobs import tables
from graftwork_trainer.jobs.folders import JobFolders
from graftwork_trainer.jobs.launcher import WorkerLauncher, WorkerSettings
from graftwork_trainer.jobs.leftovers import Leftovers
from graftwork_trainer.jobs.records import CanaryRecord, JobRecord, Progress
from graftwork_trainer.jobs.states import JobState
from graftwork_trainer.jobs.store import JobStore
from graftwork_trainer.jobs.supervisor import Supervisor
from graftwork_trainer.journal.database import Database

from tests.trainer.jobs.queue import ids, spec_of

WORKER = Path(__file__).with_name("fake_worker.py")


@dataclass
class Observed:
    jobs: dict[str, int] = field(default_factory=dict)
    losses: list[float] = field(default_factory=list)
    verdicts: list[str] = field(default_factory=list)
    links: list[tuple[str, str]] = field(default_factory=list)
    canaries: list[CanaryRecord] = field(default_factory=list)
    redacted: list[str] = field(default_factory=list)
    canary_errors: list[Exception] = field(default_factory=list)  # what the next attempts meet

    async def begin(self, record: CanaryRecord) -> None:
        if self.canary_errors:
            raise self.canary_errors.pop(0)
        self.canaries.append(record)

    def record(self, version: str, digest: str) -> None:
        self.links.append((version, digest))

    def set_training_jobs(self, by_state: dict[str, int]) -> None:
        self.jobs = by_state

    def set_training_progress(self, progress: Progress) -> None:
        self.losses.append(progress.loss)

    def count_gate_verdict(self, verdict: str) -> None:
        self.verdicts.append(verdict)


@dataclass
class FakeAdapters:
    """The registry and the client's way to delete of it."""

    policies: dict[str, VersionRecord] = field(default_factory=dict)  # by the owner's id
    error: Exception | None = None

    def ephemeral_versions(self, name: str, owner: str) -> tuple[VersionRecord, ...]:
        found = self.policies.get(owner)
        return () if found is None else (found,)

    async def delete(self, selector: str) -> None:
        if self.error is not None:
            raise self.error
        self.policies = {o: v for o, v in self.policies.items() if v.selector != selector}


@dataclass
class Bench:
    store: JobStore
    folders: JobFolders
    observed: Observed
    executor: ThreadPoolExecutor
    adapters: FakeAdapters = field(default_factory=FakeAdapters)
    max_duration_s: float = 60.0

    def supervisor(self, store: JobStore | None = None) -> Supervisor:
        settings = WorkerSettings(1, 19, "idle", max_duration_s=self.max_duration_s)
        launcher = WorkerLauncher(
            self.folders,
            settings,
            server="unix:/nowhere",
            base=Path("/nowhere"),
            snapshots=Path("/nowhere"),
            template_hash="",
            methods=["LORA"],
            command=(sys.executable, str(WORKER)),
        )
        store = store or self.store

        async def off_loop(function, *args):
            return await asyncio.get_running_loop().run_in_executor(self.executor, function, *args)

        return Supervisor(
            store,
            Leftovers(
                store,
                self.folders,
                self.adapters,
                deletion=self.adapters,
                redact=self.observed.redacted.append,
                off_loop=off_loop,
            ),
            launcher,
            self.observed,
            self.observed,
            executor=self.executor,
            observer=self.observed,
            heartbeat_s=0.05,
        )

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Supervisor]:
        supervisor = self.supervisor()
        await supervisor.start()
        try:
            yield supervisor
        finally:
            await supervisor.stop()

    async def run(self, *do: str, **fields: object) -> JobRecord:
        """Runs one job to its end."""
        async with self.running() as supervisor:
            job = self.store.create(spec_of(do=do, **fields))
            supervisor.wake()
            return await ended(supervisor, job.id)


@pytest.fixture
def bench(database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(supervisor_module, "_PAUSE_AFTER_CRASH_S", 0.01)
    with ThreadPoolExecutor(1) as executor:
        yield Bench(
            JobStore(database, ids(), server="a"),
            JobFolders(tmp_path / "jobs"),
            Observed(),
            executor,
        )


async def ended(supervisor: Supervisor, job_id: str) -> JobRecord:
    return await reached(supervisor, job_id, lambda job: job.state.is_final)


async def reached(
    supervisor: Supervisor, job_id: str, condition: Callable[[JobRecord], object]
) -> JobRecord:
    end = time.monotonic() + 20
    while True:
        record = await supervisor.get(job_id)
        if condition(record):
            return record
        assert time.monotonic() < end, record
        await asyncio.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether the process runs; a zombie does not."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rsplit(") ", 1)[1][0] != "Z"
    return False


async def test_a_job_runs_to_its_end(bench: Bench):
    job = await bench.run("progress", "snapshot", "version", "report", "noise", "succeed")
    assert (job.state, job.attempt, job.version) == (JobState.SUCCEEDED, 1, "poet@1")
    assert job.snapshot == "sha256:" + "5" * 64
    assert bench.observed.links == [("poet@1", job.snapshot)]
    assert bench.observed.redacted == [job.snapshot]
    assert job.progress.loss == 2.5
    assert 0 < job.start_time_ns < job.end_time_ns
    assert job.run_time_s > 0
    assert bench.observed.verdicts == ["passed"]
    assert bench.observed.jobs["succeeded"] == 1
    report = bench.folders.report(job.id)
    assert report.markdown == "# Passed"
    assert report.plots == (("roc.png", b"\x89PNG"),)
    folder = bench.folders.of(job.id)
    assert not (folder / "work").exists()
    assert sum(path.stat().st_size for path in folder.glob("worker.log*")) < 3 << 20


@pytest.mark.parametrize(
    ("do", "state", "message"),
    [
        (["refuse"], JobState.REFUSED, "accuracy 0.4 is below 0.9"),
        (["fail"], JobState.FAILED, "dataset too small"),
        (["crash"], JobState.FAILED, "1 attempt: exit code 1: RuntimeError: the disk caught fire"),
        (["kill"], JobState.FAILED, "1 attempt: killed by signal 9 (SIGKILL)"),
        (["exit"], JobState.FAILED, "ended without a result"),
        (["rubbish", "succeed"], JobState.SUCCEEDED, ""),
        (["succeed", "crash"], JobState.SUCCEEDED, ""),
    ],
)
async def test_how_jobs_end(bench: Bench, do: list[str], state: JobState, message: str):
    job = await bench.run(*do, limits=pb.JobLimits(max_retries=0))
    assert job.state is state
    assert message in job.message


async def test_a_crashed_worker_is_started_again_as_often_as_the_job_says(bench: Bench):
    job = await bench.run("once:kill", "succeed")
    assert (job.state, job.attempt, job.crashes) == (JobState.SUCCEEDED, 2, 1)
    job = await bench.run("crash", limits=pb.JobLimits(max_retries=2))
    assert (job.state, job.attempt) == (JobState.FAILED, 3)
    assert "in 3 attempts" in job.message


async def test_a_worker_that_cannot_be_started_fails_the_job(bench: Bench):
    supervisor = bench.supervisor()
    supervisor._starter._command = ("/nowhere/python",)
    await supervisor.start()
    job = bench.store.create(spec_of())
    supervisor.wake()
    job = await ended(supervisor, job.id)
    await supervisor.stop()
    assert "could not be started" in job.message


@pytest.mark.parametrize("last", ["hang", "stubborn"])
async def test_cancelling_a_running_job_ends_its_worker(
    bench: Bench, last: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(run_module, "GRACE_S", 0.2)
    async with bench.running() as supervisor:
        job = bench.store.create(spec_of(do=["progress", last]))
        supervisor.wake()
        await reached(supervisor, job.id, lambda job: job.progress.step)
        pid = int((bench.folders.of(job.id) / "pid").read_text())
        await supervisor.cancel(job.id)
        job = await ended(supervisor, job.id)
    assert job.state is JobState.CANCELLED
    assert not is_alive(pid)


async def test_cancelling_a_waiting_job_ends_it_at_once(bench: Bench):
    supervisor = bench.supervisor()
    job = bench.store.create(spec_of(do=["succeed"]))
    assert (await supervisor.cancel(job.id)).state is JobState.CANCELLED
    assert (await supervisor.cancel(job.id)).state is JobState.CANCELLED


async def test_cancelling_a_job_that_went_back_to_the_queue_frees_its_work(bench: Bench):
    supervisor = bench.supervisor()
    job = bench.store.create(spec_of())
    work = bench.folders.of(job.id) / "work"
    work.mkdir(parents=True)
    await supervisor.cancel(job.id)
    assert not work.exists()


async def test_what_jobs_left_that_ended_without_a_server_is_freed_at_start(bench: Bench):
    jobs = {name: bench.store.create(spec_of(do=["hang"])) for name in ("asked", "waiting")}
    bench.store.claim()
    bench.store.cancel(jobs["asked"].id)  # and the server is killed
    folders = {name: bench.folders.of(job.id) / "work" for name, job in jobs.items()}
    folders["stranger"] = bench.folders.root / "0197" / "work"
    for folder in folders.values():
        folder.mkdir(parents=True)
    async with bench.running():
        assert {name for name, folder in folders.items() if folder.exists()} == {
            "waiting",
            "stranger",
        }


@pytest.mark.parametrize("error", [None, NotFound("it is gone"), Unavailable("draining")])
async def test_the_policy_of_a_job_that_failed_is_freed(bench: Bench, error: Exception | None):
    bench.adapters.error = error
    job = bench.store.create(spec_of(do=["kill"], limits=pb.JobLimits(max_retries=0)))
    bench.adapters.policies[job.id] = VersionRecord(
        "poet", 3, "", "LORA", 4, 0, 0, 0, "", True, "", 0, ephemeral_owner=job.id
    )
    async with bench.running() as supervisor:
        assert (await ended(supervisor, job.id)).state is JobState.FAILED
    assert bool(bench.adapters.policies) == (error is not None)
    assert not (bench.folders.of(job.id) / "work").exists()


async def test_jobs_run_one_at_a_time_in_order(bench: Bench):
    async with bench.running() as supervisor:
        jobs = [bench.store.create(spec_of(do=["progress", "succeed"])) for _ in range(3)]
        supervisor.wake()
        found = [await ended(supervisor, job.id) for job in jobs]
    assert all(a.end_time_ns <= b.start_time_ns for a, b in itertools.pairwise(found))


async def test_a_job_that_takes_too_long_fails(bench: Bench):
    job = await bench.run("hang", limits=pb.JobLimits(max_duration=Duration(seconds=1)))
    assert job.state is JobState.FAILED
    assert "longer than the 1 s" in job.message


async def test_the_server_limits_the_time_of_any_job(bench: Bench):
    bench.max_duration_s = 0.5
    job = await bench.run("hang")
    assert "longer than the 0.5 s" in job.message


async def test_a_job_that_takes_too_much_memory_fails(bench: Bench):
    job = await bench.run("grow", limits=pb.JobLimits(max_memory_bytes=100 << 20))
    assert job.state is JobState.FAILED
    assert "limits.max_memory_bytes" in job.message


async def test_a_stopped_server_puts_its_job_back_and_the_next_goes_on(bench: Bench):
    async with bench.running() as supervisor:
        job = bench.store.create(spec_of(do=["progress", "once:hang", "succeed"]))
        supervisor.wake()
        await reached(supervisor, job.id, lambda job: job.progress.step)
    waiting = bench.store.get(job.id)
    assert (waiting.state, waiting.progress.step) == (JobState.QUEUED, 1)
    async with bench.running() as supervisor:
        job = await ended(supervisor, job.id)
    assert (job.state, job.attempt, job.crashes) == (JobState.SUCCEEDED, 2, 0)


async def test_a_killed_server_leaves_a_job_that_the_next_goes_on_with(bench: Bench):
    job = bench.store.create(spec_of(do=["succeed"]))
    assert bench.store.claim().id == job.id  # and nothing more happens to it
    async with bench.running() as supervisor:
        assert (await ended(supervisor, job.id)).state is JobState.SUCCEEDED


async def test_a_job_is_cancelled_through_another_server(bench: Bench, database: Database):
    other = bench.supervisor(JobStore(database, ids(), server="b"))
    async with bench.running() as supervisor:
        job = bench.store.create(spec_of(do=["progress", "hang"]))
        supervisor.wake()
        await reached(supervisor, job.id, lambda job: job.progress.step)
        await other.start()
        assert (await other.cancel(job.id)).state is JobState.RUNNING
        assert (await ended(supervisor, job.id)).state is JobState.CANCELLED
        await other.stop()
    assert bench.store.get(job.id).attempt == 1


async def test_a_worker_ends_whose_job_another_server_took(bench: Bench, database: Database):
    async with bench.running() as supervisor:
        job = bench.store.create(spec_of(do=["progress", "once:hang", "succeed"]))
        supervisor.wake()
        await reached(supervisor, job.id, lambda job: job.progress.step)
        pid = int((bench.folders.of(job.id) / "pid").read_text())
        with database.write() as connection:
            connection.execute(sa.update(tables.jobs).values(server="b"))
        end = time.monotonic() + 20
        while is_alive(pid):
            assert time.monotonic() < end
            await asyncio.sleep(0.01)
    left = bench.store.get(job.id)
    assert (left.state, left.attempt) == (JobState.RUNNING, 1)


async def test_a_canary_begins_before_its_job_ends(bench: Bench, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(supervisor_module, "_RETRY_DATABASE_S", 0.01)
    bench.observed.canary_errors.append(ResourceExhausted("a full disk", retry_after_s=1))
    job = await bench.run("canary")
    assert job.state is JobState.SUCCEEDED
    [canary] = bench.observed.canaries
    assert (canary.job_id, canary.draft.version, canary.draft.percent) == (job.id, 2, 10)


async def test_a_job_whose_canary_gets_no_traffic_fails(bench: Bench):
    bench.observed.canary_errors.append(NotFound("there is no version 2"))
    job = await bench.run("canary")
    assert job.state is JobState.FAILED
    assert "there is no version 2" in job.message


async def test_watchers_are_told_of_every_change(bench: Bench):
    async with bench.running() as supervisor:
        job = bench.store.create(spec_of(do=["progress", "succeed"]))
        with supervisor.feed.watching(job.id) as changed:
            supervisor.wake()
            states = []
            while not (states and states[-1].is_final):
                await asyncio.wait_for(changed.wait(), 20)
                changed.clear()
                states.append((await supervisor.get(job.id)).state)
    assert JobState.RUNNING in states


@pytest.mark.skipif(sys.platform != "linux", reason="scheduling classes are Linux's")
async def test_workers_stand_back(bench: Bench):
    async with bench.running() as supervisor:
        job = bench.store.create(spec_of(do=["progress", "hang"]))
        supervisor.wake()
        await reached(supervisor, job.id, lambda job: job.progress.step)
        pid = int((bench.folders.of(job.id) / "pid").read_text())
        assert os.sched_getscheduler(pid) == os.SCHED_IDLE
        assert os.getpriority(os.PRIO_PROCESS, pid) == 19


async def test_a_worker_ends_with_the_process_that_started_it(tmp_path: Path):
    """The parent is killed; its worker must not outlive it."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import os, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time, sys\\n"
        "from graftwork_trainer.jobs.priority import die_with\\n"
        "die_with(int(sys.argv[1]))\\nprint(1, flush=True)\\ntime.sleep(60)', str(os.getpid())],\n"
        " stdin=subprocess.PIPE, stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, str(script), stdout=asyncio.subprocess.PIPE
    )
    pid = int(await parent.stdout.readline())
    assert is_alive(pid)
    parent.kill()
    await parent.wait()
    end = time.monotonic() + 10
    while is_alive(pid):
        assert time.monotonic() < end
        await asyncio.sleep(0.01)
