"""Between the rows of the database and the records of the queue."""

import json
from dataclasses import asdict
from typing import Any

from google.protobuf import json_format
from graftwork.v1 import training_service_pb2 as pb

from graftwork_trainer.jobs.records import (
    CanaryDraft,
    CanaryRecord,
    JobRecord,
    PolicyRecord,
    Progress,
)
from graftwork_trainer.jobs.states import JobState

Row = Any  # sqlalchemy's RowMapping: columns by name


def spec_to_json(spec: pb.TrainingJobSpec) -> str:
    return json_format.MessageToJson(spec, preserving_proto_field_name=True, indent=None)


def spec_from_json(text: str) -> pb.TrainingJobSpec:
    return json_format.Parse(text, pb.TrainingJobSpec())


def progress_to_json(progress: Progress) -> str:
    return json.dumps(asdict(progress))


def progress_from_json(text: str) -> Progress:
    return Progress(**json.loads(text))


def job_record(row: Row) -> JobRecord:
    return JobRecord(
        id=row["id"],
        spec=spec_from_json(row["spec"]),
        state=JobState(row["state"]),
        progress=progress_from_json(row["progress"]),
        message=row["message"],
        version=row["version"],
        snapshot=row["snapshot"],
        policy=row["policy"],
        attempt=row["attempt"],
        crashes=row["crashes"],
        run_time_s=row["run_time_s"],
        cancel_requested=bool(row["cancel_requested"]),
        create_time_ns=row["create_time_ns"],
        start_time_ns=row["start_time_ns"],
        end_time_ns=row["end_time_ns"],
    )


def policy_record(row: Row) -> PolicyRecord:
    return PolicyRecord(
        name=row["name"],
        spec=spec_from_json(row["spec"]),
        min_new_feedback=row["min_new_feedback"],
        schedule=row["schedule"],
        paused=bool(row["paused"]),
        create_time_ns=row["create_time_ns"],
        last_job=row["last_job"],
        last_start_time_ns=row["last_start_time_ns"],
    )


def canary_record(row: Row) -> CanaryRecord:
    return CanaryRecord(
        row["job_id"],
        CanaryDraft(
            adapter=row["adapter"],
            version=row["version"],
            incumbent=row["incumbent"],
            percent=row["percent"],
            feedback=row["feedback"],
            tolerance=row["tolerance"],
            start_time_ns=row["start_time_ns"],
        ),
    )
