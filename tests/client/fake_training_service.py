"""The fake server's training jobs, which go through their phases as they are watched."""

from google.protobuf import duration_pb2, empty_pb2
from graftwork.v1 import training_service_pb2 as pb
from graftwork.v1 import training_service_pb2_grpc

REPORT = pb.TrainingReport(
    markdown="# Passed",
    json='{"passed": true}',
    plots=[pb.TrainingReport.Plot(filename="loss.png", png=b"PNG")],
)


class TrainingService(training_service_pb2_grpc.TrainingServiceServicer):
    def __init__(self, server) -> None:
        self.server = server
        self.jobs: dict[str, pb.TrainingJob] = {}
        self.policies: dict[str, pb.TrainingPolicy] = {}
        self.end_state = pb.JOB_STATE_SUCCEEDED

    def CreateTrainingJob(self, request, context):
        self.server.enter("CreateTrainingJob", request, context)
        job = pb.TrainingJob(
            id=f"job-{len(self.jobs) + 1}",
            spec=request.spec,
            state=pb.JOB_STATE_QUEUED,
            create_time=self.server.create_time,
        )
        self.jobs[job.id] = job
        return job

    def GetTrainingJob(self, request, context):
        self.server.enter("GetTrainingJob", request, context)
        return self.jobs[request.id]

    def ListTrainingJobs(self, request, context):
        self.server.enter("ListTrainingJobs", request, context)
        start = int(request.page_token or 0)
        found = [
            job
            for job in reversed(self.jobs.values())
            if request.adapter in ("", job.spec.adapter)
            and (not request.states or job.state in request.states)
        ]
        more = start + 1 < len(found)
        return pb.ListTrainingJobsResponse(
            jobs=found[start : start + 1], next_page_token=str(start + 1) if more else ""
        )

    def CancelTrainingJob(self, request, context):
        self.server.enter("CancelTrainingJob", request, context)
        self.jobs[request.id].state = pb.JOB_STATE_CANCELLED
        return self.jobs[request.id]

    def WatchTrainingJob(self, request, context):
        self.server.enter("WatchTrainingJob", request, context)
        job = self.jobs[request.id]
        yield pb.WatchTrainingJobResponse(job=job)
        if job.state == self.end_state:
            return
        job.state = pb.JOB_STATE_RUNNING
        job.start_time.CopyFrom(self.server.create_time)
        job.progress.CopyFrom(
            pb.JobProgress(
                phase="training",
                step=3,
                total_steps=10,
                loss=1.25,
                tokens_per_second=190,
                remaining=duration_pb2.Duration(seconds=65),
                metrics={"kl": 0.5},
            )
        )
        yield pb.WatchTrainingJobResponse(job=job)
        job.state, job.version, job.message = self.end_state, "poet@1", "as it was told"
        yield pb.WatchTrainingJobResponse(job=job)

    def GetTrainingReport(self, request, context):
        self.server.enter("GetTrainingReport", request, context)
        return REPORT

    def CreateTrainingPolicy(self, request, context):
        self.server.enter("CreateTrainingPolicy", request, context)
        self.policies[request.policy.name] = request.policy
        request.policy.create_time.CopyFrom(self.server.create_time)
        return request.policy

    def GetTrainingPolicy(self, request, context):
        self.server.enter("GetTrainingPolicy", request, context)
        return self.policies[request.name]

    def ListTrainingPolicies(self, request, context):
        self.server.enter("ListTrainingPolicies", request, context)
        return pb.ListTrainingPoliciesResponse(policies=self.policies.values())

    def UpdateTrainingPolicy(self, request, context):
        self.server.enter("UpdateTrainingPolicy", request, context)
        policy = self.policies[request.policy.name]
        request.update_mask.MergeMessage(request.policy, policy)
        return policy

    def DeleteTrainingPolicy(self, request, context):
        self.server.enter("DeleteTrainingPolicy", request, context)
        del self.policies[request.name]
        return empty_pb2.Empty()
