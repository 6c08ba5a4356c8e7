"""Training policies and the canaries that wait for feedback, in the journal's database.

Thread-safe; every method waits for the disk and belongs off the event loop.
"""

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from graftwork.v1 import training_service_pb2 as pb
from graftwork_adapters.errors import RequestIdReused
from graftwork_adapters.mutation import MutationRequest
from graftwork_adapters.paging import Page, decode_token, encode_token
from sqlalchemy import Connection, delete, insert, select, update

from graftwork_trainer.jobs import rows, tables
from graftwork_trainer.jobs.errors import PolicyExists, UnknownPolicy
from graftwork_trainer.jobs.records import CanaryRecord, PolicyRecord
from graftwork_trainer.journal.database import Database

_POLICIES = tables.policies
_CANARIES = tables.canaries
_LIST = "policies"


class PolicyStore:
    """Policies by name."""

    def __init__(self, database: Database, *, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._database = database
        self._clock_ns = clock_ns

    def create(
        self,
        name: str,
        spec: pb.TrainingJobSpec,
        *,
        min_new_feedback: int,
        schedule: str,
        paused: bool,
        request: MutationRequest | None = None,
    ) -> PolicyRecord:
        """Raises PolicyExists; RequestIdReused. An equal request gets the policy as it is now."""
        values = {
            "name": name,
            "spec": rows.spec_to_json(spec),
            "min_new_feedback": min_new_feedback,
            "schedule": schedule,
            "paused": paused,
            "create_time_ns": self._clock_ns(),
            "last_job": "",
            "last_start_time_ns": 0,
            "request_id": request.request_id if request else None,
            "fingerprint": request.fingerprint if request else None,
        }
        with self._database.write() as connection:
            if (repeated := _recall(connection, request)) is not None:
                return repeated
            if _find(connection, name) is not None:
                raise PolicyExists(name)
            connection.execute(insert(_POLICIES).values(values))
            return _get(connection, name)

    def get(self, name: str) -> PolicyRecord:
        """Raises UnknownPolicy."""
        with self._database.read() as connection:
            return _get(connection, name)

    def list(self, *, page_size: int, page_token: str = "") -> Page[PolicyRecord]:
        """By name."""
        after, _ = decode_token(_LIST, page_token)
        query = select(_POLICIES).where(_POLICIES.c.name > after).order_by(_POLICIES.c.name)
        with self._database.read() as connection:
            found = connection.execute(query.limit(page_size + 1)).mappings().all()
        records = tuple(rows.policy_record(row) for row in found[:page_size])
        is_last = len(found) <= page_size
        return Page(records, "" if is_last else encode_token(_LIST, records[-1].name, 0))

    def active(self) -> tuple[PolicyRecord, ...]:
        """All that are not paused."""
        query = select(_POLICIES).where(~_POLICIES.c.paused).order_by(_POLICIES.c.name)
        with self._database.read() as connection:
            return tuple(map(rows.policy_record, connection.execute(query).mappings()))

    def update(
        self,
        name: str,
        *,
        spec: pb.TrainingJobSpec | None = None,
        min_new_feedback: int | None = None,
        schedule: str | None = None,
        paused: bool | None = None,
    ) -> PolicyRecord:
        """Changes what is not None. Raises UnknownPolicy."""
        return self._update(
            name,
            {
                "spec": None if spec is None else rows.spec_to_json(spec),
                "min_new_feedback": min_new_feedback,
                "schedule": schedule,
                "paused": paused,
            },
        )

    def started(self, name: str, job_id: str, spec: pb.TrainingJobSpec) -> PolicyRecord:
        """A policy started a job; `spec` is what it starts the next time. Raises UnknownPolicy."""
        changes = {
            "last_job": job_id,
            "last_start_time_ns": self._clock_ns(),
            "spec": rows.spec_to_json(spec),
        }
        return self._update(name, changes)

    def delete(self, name: str) -> None:
        """Raises UnknownPolicy."""
        with self._database.write() as connection:
            gone = connection.execute(delete(_POLICIES).where(_POLICIES.c.name == name))
            if not gone.rowcount:
                raise UnknownPolicy(name)

    def _update(self, name: str, changes: dict[str, Any]) -> PolicyRecord:
        changes = {key: value for key, value in changes.items() if value is not None}
        with self._database.write() as connection:
            if changes:
                connection.execute(
                    update(_POLICIES).where(_POLICIES.c.name == name).values(changes)
                )
            return _get(connection, name)


class CanaryStore:
    """Canaries of this server's adapters that wait for feedback."""

    def __init__(self, database: Database, *, server: str) -> None:
        """`server` names this server among those on the database."""
        self._database = database
        self._server = server
        # Canaries of a release that knew one server only name none.
        self._mine = _CANARIES.c.server.in_([server, ""])

    def begin(self, record: CanaryRecord) -> None:
        """Watches a canary; one of the same adapter that still waited is not judged any more. The
        same again changes nothing."""
        with self._database.write() as connection:
            connection.execute(
                delete(_CANARIES).where(self._mine, _CANARIES.c.adapter == record.draft.adapter)
            )
            values = {"server": self._server, "job_id": record.job_id, **asdict(record.draft)}
            connection.execute(insert(_CANARIES).values(values))

    def waiting(self) -> list[CanaryRecord]:
        query = select(_CANARIES).where(self._mine).order_by(_CANARIES.c.adapter)
        with self._database.read() as connection:
            return [rows.canary_record(row) for row in connection.execute(query).mappings()]

    def end(self, record: CanaryRecord) -> None:
        """The canary was judged, or someone moved its traffic; one that followed it stays."""
        with self._database.write() as connection:
            connection.execute(
                delete(_CANARIES).where(
                    self._mine,
                    _CANARIES.c.adapter == record.draft.adapter,
                    _CANARIES.c.job_id == record.job_id,
                )
            )


def _find(connection: Connection, name: str) -> PolicyRecord | None:
    query = select(_POLICIES).where(_POLICIES.c.name == name)
    row = connection.execute(query).mappings().first()
    return None if row is None else rows.policy_record(row)


def _get(connection: Connection, name: str) -> PolicyRecord:
    record = _find(connection, name)
    if record is None:
        raise UnknownPolicy(name)
    return record


def _recall(connection: Connection, request: MutationRequest | None) -> PolicyRecord | None:
    if request is None:
        return None
    query = select(_POLICIES).where(_POLICIES.c.request_id == request.request_id)
    row = connection.execute(query).mappings().first()
    if row is None:
        return None
    if row["fingerprint"] != request.fingerprint:
        raise RequestIdReused(request.request_id)
    return rows.policy_record(row)
