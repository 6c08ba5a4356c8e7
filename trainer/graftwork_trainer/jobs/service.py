"""TrainingService: validates, keeps, tells the supervisor, answers.

Raises WireErrors; the server's interceptor turns them into statuses.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import grpc
from google.protobuf import empty_pb2
from graftwork.status import InvalidFieldError
from graftwork.v1 import training_service_pb2 as pb
from graftwork.v1 import training_service_pb2_grpc
from graftwork_adapters.messages import mutation_request
from graftwork_adapters.paging import check_page_size
from graftwork_adapters.selector import parse_name

from graftwork_trainer.jobs.creation import JobCreator
from graftwork_trainer.jobs.errors import NoReport
from graftwork_trainer.jobs.folders import JobFolders
from graftwork_trainer.jobs.messages import STATE_OF_MESSAGE, job_message, policy_message
from graftwork_trainer.jobs.policy_fields import check_starts, parse_policy, parse_update
from graftwork_trainer.jobs.policy_store import PolicyStore
from graftwork_trainer.jobs.states import JobState
from graftwork_trainer.jobs.store import JobStore
from graftwork_trainer.jobs.supervisor import Supervisor

_WATCH_INTERVAL_S = 0.1  # progress that comes faster is told together

Result = TypeVar("Result")
Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, slots=True)
class TrainingParts:
    """What the servicer works with."""

    store: JobStore
    policies: PolicyStore
    supervisor: Supervisor
    folders: JobFolders
    creator: JobCreator


class TrainingServicer(training_service_pb2_grpc.TrainingServiceServicer):
    """`executor` runs what waits for the disk; everything else stays on the event loop."""

    def __init__(self, parts: TrainingParts, executor: Executor) -> None:
        self._store = parts.store
        self._policies = parts.policies
        self._supervisor = parts.supervisor
        self._folders = parts.folders
        self._creator = parts.creator
        self._catalogue = parts.creator.catalogue
        self._executor = executor

    async def CreateTrainingJob(
        self, request: pb.CreateTrainingJobRequest, context: Context
    ) -> pb.TrainingJob:
        mutation = mutation_request(request.request_id, request)
        record = await self._creator.create(request.spec, request=mutation)
        return job_message(self._supervisor.latest(record))

    async def GetTrainingJob(
        self, request: pb.GetTrainingJobRequest, context: Context
    ) -> pb.TrainingJob:
        return job_message(await self._supervisor.get(request.id))

    async def ListTrainingJobs(
        self, request: pb.ListTrainingJobsRequest, context: Context
    ) -> pb.ListTrainingJobsResponse:
        if request.adapter:
            parse_name(request.adapter, field="adapter")
        page = await self._run(
            self._store.list,
            adapter=request.adapter,
            states=[_state(value) for value in request.states],
            page_size=check_page_size(request.page_size),
            page_token=request.page_token,
        )
        return pb.ListTrainingJobsResponse(
            jobs=[job_message(self._supervisor.latest(record)) for record in page.items],
            next_page_token=page.next_page_token,
        )

    async def CancelTrainingJob(
        self, request: pb.CancelTrainingJobRequest, context: Context
    ) -> pb.TrainingJob:
        return job_message(await self._supervisor.cancel(request.id))

    async def WatchTrainingJob(
        self, request: pb.WatchTrainingJobRequest, context: Context
    ) -> AsyncIterator[pb.WatchTrainingJobResponse]:
        with self._supervisor.feed.watching(request.id) as changed:
            while True:
                changed.clear()
                record = await self._supervisor.get(request.id)
                yield pb.WatchTrainingJobResponse(job=job_message(record))
                if record.state.is_final:
                    return
                await asyncio.sleep(_WATCH_INTERVAL_S)
                await changed.wait()

    async def GetTrainingReport(
        self, request: pb.GetTrainingReportRequest, context: Context
    ) -> pb.TrainingReport:
        record = await self._run(self._store.get, request.job_id)
        report = await self._run(self._folders.report, record.id)
        if report is None:
            raise NoReport(record.id, record.state)
        return pb.TrainingReport(
            markdown=report.markdown,
            json=report.json,
            plots=[pb.TrainingReport.Plot(filename=name, png=data) for name, data in report.plots],
        )

    async def CreateTrainingPolicy(
        self, request: pb.CreateTrainingPolicyRequest, context: Context
    ) -> pb.TrainingPolicy:
        mutation = mutation_request(request.request_id, request)
        policy = request.policy
        parse_policy(policy, self._catalogue)
        record = await self._run(
            self._policies.create,
            policy.name,
            policy.spec,
            min_new_feedback=policy.min_new_feedback,
            schedule=policy.schedule,
            paused=policy.paused,
            request=mutation,
        )
        return policy_message(record)

    async def GetTrainingPolicy(
        self, request: pb.GetTrainingPolicyRequest, context: Context
    ) -> pb.TrainingPolicy:
        return policy_message(await self._run(self._policies.get, request.name))

    async def ListTrainingPolicies(
        self, request: pb.ListTrainingPoliciesRequest, context: Context
    ) -> pb.ListTrainingPoliciesResponse:
        page = await self._run(
            self._policies.list,
            page_size=check_page_size(request.page_size),
            page_token=request.page_token,
        )
        return pb.ListTrainingPoliciesResponse(
            policies=[policy_message(record) for record in page.items],
            next_page_token=page.next_page_token,
        )

    async def UpdateTrainingPolicy(
        self, request: pb.UpdateTrainingPolicyRequest, context: Context
    ) -> pb.TrainingPolicy:
        change = parse_update(request.policy, request.update_mask, self._catalogue)
        name = request.policy.name
        before = await self._run(self._policies.get, name)
        check_starts(
            before.min_new_feedback if change.min_new_feedback is None else change.min_new_feedback,
            before.schedule if change.schedule is None else change.schedule,
        )
        record = await self._run(
            self._policies.update,
            name,
            spec=change.spec,
            min_new_feedback=change.min_new_feedback,
            schedule=change.schedule,
            paused=change.paused,
        )
        return policy_message(record)

    async def DeleteTrainingPolicy(
        self, request: pb.DeleteTrainingPolicyRequest, context: Context
    ) -> empty_pb2.Empty:
        await self._run(self._policies.delete, request.name)
        return empty_pb2.Empty()

    async def _run(self, function: Callable[..., Result], *args: Any, **kwargs: Any) -> Result:
        """To its end, though the caller may have hung up."""
        call = partial(function, *args, **kwargs)
        future = asyncio.get_running_loop().run_in_executor(self._executor, call)
        return await asyncio.shield(future)


def _state(value: int) -> JobState:
    state = STATE_OF_MESSAGE.get(value)
    if state is None:
        raise InvalidFieldError("states", f"{value} is no state of a job")
    return state
