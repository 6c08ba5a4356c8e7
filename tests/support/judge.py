"""A judge behind a real gRPC server."""

import contextlib
from collections.abc import AsyncIterator, Callable

import grpc
from graftwork.v1 import judge_service_pb2 as pb
from graftwork.v1 import judge_service_pb2_grpc


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


@contextlib.asynccontextmanager
async def judging(judge: Judge) -> AsyncIterator[str]:
    """Its address."""
    server = grpc.aio.server()
    judge_service_pb2_grpc.add_JudgeServiceServicer_to_server(judge, server)
    port = server.add_insecure_port("localhost:0")
    await server.start()
    try:
        yield f"localhost:{port}"
    finally:
        await server.stop(None)
