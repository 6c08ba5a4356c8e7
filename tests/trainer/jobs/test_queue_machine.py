"""The queue against a model of it: order, legal transitions, nothing lost over restarts."""

import shutil
import tempfile
from pathlib import Path

import pytest
from graftwork_trainer.jobs.errors import WrongTransition
from graftwork_trainer.jobs.records import Progress
from graftwork_trainer.jobs.states import JobState
from graftwork_trainer.jobs.store import JobStore
from graftwork_trainer.journal.database import Database
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from tests.support.postgresql import PostgresServer
from tests.trainer.jobs.queue import clock, ids, spec_of

FINAL = st.sampled_from([state for state in JobState if state.is_final])
INDEX = st.integers(0, 20)


class QueueMachine(RuleBasedStateMachine):
    server: PostgresServer | None = None  # None: SQLite

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp())
        self.url = f"sqlite:///{self.folder / 'journal.sqlite3'}"
        if self.server is not None:
            self.url = self.server.emptied()
        self.new_id, self.clock = ids(), clock()
        self.open()
        self.states: dict[str, JobState] = {}  # in the order of creation
        self.asked: set[str] = set()  # running jobs that are to be cancelled
        self.attempts: dict[str, int] = {}

    def open(self) -> None:
        self.database = Database.open(self.url)
        self.store = JobStore(self.database, self.new_id, server="a", clock_ns=self.clock)

    def teardown(self) -> None:
        self.database.close()
        shutil.rmtree(self.folder)

    def any(self, index: int) -> str:
        return list(self.states)[index % len(self.states)]

    def end(self, job_id: str, state: JobState) -> None:
        self.states[job_id] = state
        self.asked.discard(job_id)

    @rule(adapter=st.sampled_from(["a", "b"]))
    def create(self, adapter: str) -> None:
        job = self.store.create(spec_of(adapter))
        self.states[job.id] = job.state
        self.attempts[job.id] = 0

    @rule()
    def claim(self) -> None:
        job = self.store.claim()
        waiting = [j for j, state in self.states.items() if state is JobState.QUEUED]
        assert (job.id if job else None) == (waiting[0] if waiting else None)
        if job:
            self.states[job.id] = JobState.RUNNING
            self.attempts[job.id] += 1

    @precondition(lambda self: self.states)
    @rule(index=INDEX, state=FINAL)
    def finish(self, index: int, state: JobState) -> None:
        job_id = self.any(index)
        if self.states[job_id] is JobState.RUNNING:
            self.store.finish(job_id, state, "over")
            self.end(job_id, state)
        else:
            with pytest.raises(WrongTransition):
                self.store.finish(job_id, state)

    @precondition(lambda self: self.states)
    @rule(index=INDEX)
    def crash(self, index: int) -> None:
        job_id = self.any(index)
        if self.states[job_id] is JobState.RUNNING:
            self.store.start_again(job_id, "again")
            self.attempts[job_id] += 1
        else:
            with pytest.raises(WrongTransition):
                self.store.start_again(job_id, "again")

    @precondition(lambda self: self.states)
    @rule(index=INDEX)
    def requeue(self, index: int) -> None:
        job_id = self.any(index)
        if self.states[job_id] is JobState.RUNNING:
            self.store.requeue(job_id, "later")
            self.states[job_id] = JobState.QUEUED

    @precondition(lambda self: self.states)
    @rule(index=INDEX)
    def cancel(self, index: int) -> None:
        job_id = self.any(index)
        job = self.store.cancel(job_id)
        if self.states[job_id] is JobState.QUEUED:
            self.end(job_id, JobState.CANCELLED)
        elif self.states[job_id] is JobState.RUNNING:
            self.asked.add(job_id)
        assert job.state is self.states[job_id]

    @precondition(lambda self: self.states)
    @rule(index=INDEX, step=st.integers(0, 9))
    def progress(self, index: int, step: int) -> None:
        job_id = self.any(index)
        self.store.record(job_id, progress=Progress("training", step=step))
        if self.states[job_id] is JobState.RUNNING:
            assert self.store.get(job_id).progress.step == step

    @rule()
    def restart(self) -> None:
        self.database.close()
        self.open()
        running = {j for j, state in self.states.items() if state is JobState.RUNNING}
        assert self.store.recover() == len(running - self.asked)
        for job_id in running:
            to_end = job_id in self.asked
            self.states[job_id] = JobState.CANCELLED if to_end else JobState.QUEUED
        self.asked -= running

    @invariant()
    def what_is_kept_is_what_happened(self) -> None:
        found = {job.id: job for job in self.store.list(page_size=1000).items}
        assert list(found) == list(reversed(self.states))
        for job_id, job in found.items():
            assert job.state is self.states[job_id]
            assert job.attempt == self.attempts[job_id]
            assert job.state.is_final == bool(job.end_time_ns)
            assert job.cancel_requested >= (job_id in self.asked)
        assert sum(self.store.counts().values()) == len(self.states)


def test_sqlite() -> None:
    run_state_machine_as_test(
        QueueMachine, settings=settings(max_examples=25, stateful_step_count=25)
    )


def test_postgresql(postgresql: PostgresServer) -> None:
    class OnPostgresql(QueueMachine):
        server = postgresql

    run_state_machine_as_test(
        OnPostgresql, settings=settings(max_examples=8, stateful_step_count=25)
    )
