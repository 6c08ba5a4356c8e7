"""The durable queue of training jobs, in the journal's database.

A change of state names the state that it expects, so that it holds whatever else writes. Servers
may share the database: a job is run by the one that claimed it, as long as that renews its lease.
Their clocks may differ by much less than a lease.

Thread-safe; every method waits for the disk and belongs off the event loop. All raise JournalFull
and JournalUnavailable where the database fails.
"""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from graftwork.v1 import training_service_pb2 as pb
from graftwork_adapters.errors import RequestIdReused
from graftwork_adapters.mutation import MutationRequest
from graftwork_adapters.paging import Page, decode_token, encode_token
from sqlalchemy import ColumnElement, Connection, and_, false, func, insert, or_, select, update

from graftwork_trainer.jobs import rows, tables
from graftwork_trainer.jobs.errors import UnknownJob, WrongTransition
from graftwork_trainer.jobs.records import JobRecord, Progress
from graftwork_trainer.jobs.states import JobState
from graftwork_trainer.journal.database import Database

LEASE_S = 60.0

_JOBS = tables.jobs


class JobStore:
    """`new_id` gives ids that sort by time, such as UUIDv7."""

    def __init__(
        self,
        database: Database,
        new_id: Callable[[], str],
        *,
        server: str,
        lease_s: float = LEASE_S,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`server` names this server among those on the database, and is the same after a
        restart. A job that it does not `renew` for `lease_s` may be taken by another."""
        self._server = server
        self._lease_ns = int(lease_s * 1e9)
        self._database = database
        self._new_id = new_id
        self._clock_ns = clock_ns

    def create(
        self,
        spec: pb.TrainingJobSpec,
        *,
        policy: str = "",
        request: MutationRequest | None = None,
    ) -> JobRecord:
        """Queues a job; the job of an earlier, equal request where there was one.

        Raises RequestIdReused.
        """
        job_id = self._new_id()
        values: dict[str, Any] = {
            "id": job_id,
            "adapter": spec.adapter,
            "spec": rows.spec_to_json(spec),
            "state": JobState.QUEUED.value,
            "progress": rows.progress_to_json(Progress()),
            "message": "",
            "version": "",
            "snapshot": "",
            "policy": policy,
            "attempt": 0,
            "crashes": 0,
            "run_time_s": 0.0,
            "cancel_requested": False,
            "create_time_ns": self._clock_ns(),
            "start_time_ns": 0,
            "end_time_ns": 0,
            "request_id": request.request_id if request else None,
            "fingerprint": request.fingerprint if request else None,
            "server": "",
            "lease_end_ns": 0,
        }
        with self._database.write() as connection:
            if (repeated := _recall(connection, request)) is not None:
                return repeated
            connection.execute(insert(_JOBS).values(values))
            return _get(connection, job_id)

    def recall(self, request: MutationRequest | None) -> JobRecord | None:
        """The job of an earlier, equal request; raises RequestIdReused."""
        with self._database.read() as connection:
            return _recall(connection, request)

    def get(self, job_id: str) -> JobRecord:
        """Raises UnknownJob."""
        with self._database.read() as connection:
            return _get(connection, job_id)

    def list(
        self,
        *,
        adapter: str = "",
        states: Collection[JobState] = (),
        page_size: int,
        page_token: str = "",
    ) -> Page[JobRecord]:
        """Newest first; those of one adapter, or all; those in `states`, or in any."""
        list_name = f"jobs/{adapter}"
        before_id, before_time = decode_token(list_name, page_token)
        query = select(_JOBS).order_by(_JOBS.c.create_time_ns.desc(), _JOBS.c.id.desc())
        if adapter:
            query = query.where(_JOBS.c.adapter == adapter)
        if states:
            query = query.where(_JOBS.c.state.in_([state.value for state in states]))
        if page_token:
            query = query.where(
                or_(
                    _JOBS.c.create_time_ns < before_time,
                    and_(_JOBS.c.create_time_ns == before_time, _JOBS.c.id < before_id),
                )
            )
        with self._database.read() as connection:
            found = connection.execute(query.limit(page_size + 1)).mappings().all()
        records = tuple(rows.job_record(row) for row in found[:page_size])
        is_last = len(found) <= page_size
        token = (
            "" if is_last else encode_token(list_name, records[-1].id, records[-1].create_time_ns)
        )
        return Page(records, token)

    def counts(self) -> dict[JobState, int]:
        """How many jobs are in each state."""
        query = select(_JOBS.c.state, func.count()).group_by(_JOBS.c.state)
        with self._database.read() as connection:
            found = {JobState(state): int(count) for state, count in connection.execute(query)}
        return {state: found.get(state, 0) for state in JobState}

    def active_jobs_of(self, policy: str) -> int:
        """How many jobs that a policy started wait or run."""
        active = [JobState.QUEUED.value, JobState.RUNNING.value]
        query = select(func.count()).where(_JOBS.c.policy == policy, _JOBS.c.state.in_(active))
        with self._database.read() as connection:
            return int(connection.execute(query).scalar_one())

    def claim(self) -> JobRecord | None:
        """Takes the oldest job of the queue to run it; None where none waits."""
        oldest = (
            select(_JOBS.c.id, _JOBS.c.start_time_ns)
            .where(_JOBS.c.state == JobState.QUEUED.value)
            .order_by(_JOBS.c.create_time_ns, _JOBS.c.id)
            .limit(1)
            .with_for_update(skip_locked=True)  # of servers that look at once, each takes another
        )
        with self._database.write() as connection:
            row = connection.execute(oldest).mappings().first()
            if row is None:
                return None
            changes = {
                "state": JobState.RUNNING.value,
                "start_time_ns": row["start_time_ns"] or self._clock_ns(),
                "attempt": _JOBS.c.attempt + 1,
                "message": "",
                "server": self._server,
                "lease_end_ns": self._clock_ns() + self._lease_ns,
            }
            _change(connection, row["id"], JobState.QUEUED, changes)
            return _get(connection, row["id"])

    def renew(self, job_id: str) -> JobRecord | None:
        """Keeps a job that this server runs for another lease; None where it is not this server's
        any more."""
        changes = {"lease_end_ns": self._clock_ns() + self._lease_ns}
        with self._database.write() as connection:
            if not self._change_running(connection, job_id, changes):
                return None
            return _get(connection, job_id)

    def start_again(self, job_id: str, message: str) -> JobRecord:
        """Counts a crash of a running job's worker, and the next attempt."""
        changes = {
            "crashes": _JOBS.c.crashes + 1,
            "attempt": _JOBS.c.attempt + 1,
            "message": message,
        }
        return self._update_running(job_id, changes)

    def record(
        self,
        job_id: str,
        *,
        progress: Progress | None = None,
        run_time_s: float | None = None,
        snapshot: str | None = None,
        version: str | None = None,
    ) -> None:
        """Writes what is not None of a job that this server runs; of any other, nothing."""
        changes: dict[str, Any] = {
            "progress": None if progress is None else rows.progress_to_json(progress),
            "run_time_s": run_time_s,
            "snapshot": snapshot,
            "version": version,
        }
        changes = {name: value for name, value in changes.items() if value is not None}
        with self._database.write() as connection:
            self._change_running(connection, job_id, changes)

    def finish(self, job_id: str, state: JobState, message: str = "") -> JobRecord:
        """Ends a running job. Raises UnknownJob, WrongTransition."""
        if not state.is_final:
            raise WrongTransition(job_id, JobState.RUNNING, state)
        ended: dict[str, Any] = {
            "state": state.value,
            "message": message,
            "end_time_ns": self._clock_ns(),
        }
        return self._update_running(job_id, ended)

    def note(self, job_id: str, message: str) -> None:
        """Says what became of an ended job's candidate."""
        with self._database.write() as connection:
            connection.execute(update(_JOBS).where(_JOBS.c.id == job_id).values(message=message))

    def requeue(self, job_id: str, message: str) -> JobRecord:
        """Puts a running job back: it goes on before those that came after it."""
        return self._update_running(job_id, {"state": JobState.QUEUED.value, "message": message})

    def cancel(self, job_id: str) -> JobRecord:
        """Ends a waiting job; asks a running one to end; leaves an ended one. Raises UnknownJob."""
        ended = {
            "state": JobState.CANCELLED.value,
            "message": "cancelled before it ran",
            "end_time_ns": self._clock_ns(),
        }
        with self._database.write() as connection:
            if not _change(connection, job_id, JobState.QUEUED, ended):
                _change(connection, job_id, JobState.RUNNING, {"cancel_requested": True})
            return _get(connection, job_id)

    def recover(self) -> int:
        """Puts back what this server was running before it ended, and what `recover_abandoned`
        does; returns how many. Call it at start."""
        return self._put_back(_JOBS.c.server == self._server)

    def recover_abandoned(self) -> int:
        """Puts back what servers were running that have not renewed their leases; returns how
        many."""
        return self._put_back(false())

    def _put_back(self, whose: ColumnElement[bool]) -> int:
        now = self._clock_ns()
        running = and_(
            _JOBS.c.state == JobState.RUNNING.value, or_(_JOBS.c.lease_end_ns < now, whose)
        )
        with self._database.write() as connection:
            connection.execute(
                update(_JOBS)
                .where(running, _JOBS.c.cancel_requested)
                .values(state=JobState.CANCELLED.value, message="cancelled", end_time_ns=now)
            )
            put_back = connection.execute(
                update(_JOBS)
                .where(running)
                .values(state=JobState.QUEUED.value, message="goes on after a restart")
            )
            return int(put_back.rowcount)

    def _update_running(self, job_id: str, changes: dict[str, Any]) -> JobRecord:
        with self._database.write() as connection:
            changed = self._change_running(connection, job_id, changes)
            record = _get(connection, job_id)
            if not changed:
                wanted = JobState(changes.get("state", JobState.RUNNING.value))
                raise WrongTransition(job_id, record.state, wanted)
            return record

    def _change_running(
        self, connection: Connection, job_id: str, changes: Mapping[str, Any]
    ) -> bool:
        """Whether this server runs the job, and it was changed."""
        mine = _JOBS.c.server == self._server
        return _change(connection, job_id, JobState.RUNNING, changes, mine)


def _change(
    connection: Connection,
    job_id: str,
    state: JobState,
    changes: Mapping[str, Any],
    *conditions: ColumnElement[bool],
) -> bool:
    """Whether the job was in `state`, met the conditions, and was changed."""
    wanted = JobState(changes.get("state", state.value))
    if wanted is not state and not state.may_become(wanted):
        raise WrongTransition(job_id, state, wanted)
    statement = update(_JOBS).where(_JOBS.c.id == job_id, _JOBS.c.state == state.value, *conditions)
    return connection.execute(statement.values(changes)).rowcount == 1


def _recall(connection: Connection, request: MutationRequest | None) -> JobRecord | None:
    if request is None:
        return None
    query = select(_JOBS).where(_JOBS.c.request_id == request.request_id)
    row = connection.execute(query).mappings().first()
    if row is None:
        return None
    if row["fingerprint"] != request.fingerprint:
        raise RequestIdReused(request.request_id)
    return rows.job_record(row)


def _get(connection: Connection, job_id: str) -> JobRecord:
    row = connection.execute(select(_JOBS).where(_JOBS.c.id == job_id)).mappings().first()
    if row is None:
        raise UnknownJob(job_id)
    return rows.job_record(row)
