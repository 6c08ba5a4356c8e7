"""A judge behind a real gRPC server."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from graftwork.v1 import judge_service_pb2 as pb
from graftwork.v1 import judge_service_pb2_grpc

from tests.support.grpc_server import serving_alone


class Judge(judge_service_pb2_grpc.JudgeServiceServicer):
    """`worth` says what an answer is worth, None that it cannot be said; what it raises fails the
    call. Keeps the requests."""

    def __init__(self, worth: Callable[[str], float | None]) -> None:
        self.worth = worth
        self.requests: list[pb.JudgeRequest] = []

    async def Score(self, request, context):
        self.requests.append(request)
        response = pb.JudgeResponse()
        for text in request.completions:
            reward, value = response.rewards.add(), self.worth(text)
            if value is not None:
                reward.value = value
        return response


def judging(judge: Judge) -> AbstractAsyncContextManager[str]:
    """Its address."""
    return serving_alone(judge_service_pb2_grpc.add_JudgeServiceServicer_to_server, judge)
