from dataclasses import replace

from graftwork_trainer.jobs.run import JobRun
from graftwork_trainer.jobs.store import JobStore
from graftwork_trainer.journal.database import Database

from tests.trainer.jobs.queue import ids, spec_of


async def test_the_time_of_an_attempt_counts_once(database: Database):
    now = 100.0

    async def write(run: JobRun) -> None: ...

    job = replace(JobStore(database, ids(), server="a").create(spec_of()), run_time_s=7.0)
    run = JobRun(job, write, lambda run: None, clock=lambda: now)
    now += 40
    assert run.run_time_s == 47
    run.job = replace(job, run_time_s=run.run_time_s)  # as the queue has it for the next attempt
    assert run.run_time_s == 47
    now += 3
    assert run.run_time_s == 50
