"""The training jobs of a server: `client.training`."""

from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Unpack

from graftwork import training_messages as messages
from graftwork.calls import Calls
from graftwork.training_types import (
    JobState,
    TrainingJob,
    TrainingOptions,
    TrainingPolicy,
    TrainingReport,
)
from graftwork.v1 import training_service_pb2 as pb
from graftwork.v1.training_service_pb2_grpc import TrainingServiceStub

WATCH_TIMEOUT_S = 30 * 24 * 3600.0  # longer than jobs run


class Training:
    """Starts, watches and ends training jobs.

        job = client.training.start("spam", dataset={"selection": {"tasks": ["sms-spam"]}})
        for job in client.training.watch(job.id):
            print(job.progress.phase, job.progress.loss)

    A `start` repeated with the same `request_id`, a UUID that is drawn where none is given, returns
    the first one's job. `timeout` is in seconds and defaults to the client's; that of a watch to
    a month. Errors are those of `graftwork.errors`.
    """

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = TrainingServiceStub(calls.channel)  # type: ignore[no-untyped-call]
        self.policies = TrainingPolicies(calls)

    def start(
        self,
        adapter: str,
        *,
        request_id: str | None = None,
        timeout: float | None = None,
        **options: Unpack[TrainingOptions],
    ) -> TrainingJob:
        """Queues a job that gives `adapter` its next version."""
        request = messages.create_request(adapter, options, request_id)
        return messages.job(self._calls.unary(self._stub.CreateTrainingJob, request, timeout))

    def get(self, job_id: str, *, timeout: float | None = None) -> TrainingJob:
        request = pb.GetTrainingJobRequest(id=job_id)
        return messages.job(self._calls.unary(self._stub.GetTrainingJob, request, timeout))

    def list(
        self,
        adapter: str = "",
        *states: JobState,
        page_size: int = 0,
        timeout: float | None = None,
    ) -> Iterator[TrainingJob]:
        """Jobs of one adapter, or of all, newest first, page by page as the iterator is drawn."""
        request = messages.list_request(adapter, states, page_size)
        while True:
            page = self._calls.unary(self._stub.ListTrainingJobs, request, timeout)
            yield from map(messages.job, page.jobs)
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    def cancel(self, job_id: str, *, timeout: float | None = None) -> TrainingJob:
        """Ends a job: one that waits at once, one that runs soon, one that has ended not again."""
        request = pb.CancelTrainingJobRequest(id=job_id)
        return messages.job(self._calls.unary(self._stub.CancelTrainingJob, request, timeout))

    def watch(
        self, job_id: str, *, timeout: float = WATCH_TIMEOUT_S
    ) -> Generator[TrainingJob, None, None]:
        """The job now and whenever it has changed, until it has ended."""
        request = pb.WatchTrainingJobRequest(id=job_id)
        with closing(self._calls.stream(self._stub.WatchTrainingJob, request, timeout)) as call:
            for message in call:
                yield messages.job(message.job)

    def wait(self, job_id: str, *, timeout: float = WATCH_TIMEOUT_S) -> TrainingJob:
        """The job once it has ended."""
        with closing(self.watch(job_id, timeout=timeout)) as jobs:
            for job in jobs:
                if job.state.is_final:
                    return job
        return self.get(job_id)

    def report(self, job_id: str, *, timeout: float | None = None) -> TrainingReport:
        """The evaluation that decided about a job's candidate."""
        request = pb.GetTrainingReportRequest(job_id=job_id)
        return messages.report(self._calls.unary(self._stub.GetTrainingReport, request, timeout))


class TrainingPolicies:
    """What starts jobs by itself: `client.training.policies`."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = TrainingServiceStub(calls.channel)  # type: ignore[no-untyped-call]

    def create(
        self,
        name: str,
        adapter: str,
        *,
        min_new_feedback: int = 0,
        schedule: str = "",
        paused: bool = False,
        request_id: str | None = None,
        timeout: float | None = None,
        **options: Unpack[TrainingOptions],
    ) -> TrainingPolicy:
        """Starts a job after so many new items of feedback that its selection takes, or by a cron
        expression of five fields in UTC, or whichever comes first."""
        request = messages.create_policy_request(
            name,
            adapter,
            min_new_feedback=min_new_feedback,
            schedule=schedule,
            paused=paused,
            request_id=request_id,
            options=options,
        )
        answer = self._calls.unary(self._stub.CreateTrainingPolicy, request, timeout)
        return messages.policy(answer)

    def get(self, name: str, *, timeout: float | None = None) -> TrainingPolicy:
        request = pb.GetTrainingPolicyRequest(name=name)
        return messages.policy(self._calls.unary(self._stub.GetTrainingPolicy, request, timeout))

    def list(self, *, page_size: int = 0, timeout: float | None = None) -> Iterator[TrainingPolicy]:
        """All policies by name, page by page as the iterator is drawn."""
        request = pb.ListTrainingPoliciesRequest(page_size=page_size)
        while True:
            page = self._calls.unary(self._stub.ListTrainingPolicies, request, timeout)
            yield from map(messages.policy, page.policies)
            request.page_token = page.next_page_token
            if not request.page_token:
                return

    def update(
        self,
        name: str,
        adapter: str | None = None,
        *,
        min_new_feedback: int | None = None,
        schedule: str | None = None,
        paused: bool | None = None,
        timeout: float | None = None,
        **options: Unpack[TrainingOptions],
    ) -> TrainingPolicy:
        """Changes what is not None; with an adapter, `options` are the whole new spec."""
        request = messages.update_policy_request(
            name,
            min_new_feedback=min_new_feedback,
            schedule=schedule,
            paused=paused,
            changed=messages.changed_spec(adapter, options),
        )
        answer = self._calls.unary(self._stub.UpdateTrainingPolicy, request, timeout)
        return messages.policy(answer)

    def delete(self, name: str, *, timeout: float | None = None) -> None:
        """Its jobs stay."""
        request = pb.DeleteTrainingPolicyRequest(name=name)
        self._calls.unary(self._stub.DeleteTrainingPolicy, request, timeout)
