"""Judges of answers: whoever serves a JudgeService, and the reward adapters of a server."""

import math
from collections.abc import Sequence
from typing import Protocol

from graftwork import requests
from graftwork.calls import Calls
from graftwork.channel import Connection
from graftwork.client import Client
from graftwork.errors import FailedPrecondition, InvalidArgument
from graftwork.types import Prompt
from graftwork.v1 import judge_service_pb2 as judge_pb
from graftwork.v1.judge_service_pb2_grpc import JudgeServiceStub

_ADAPTER = "adapter:"


class Judge(Protocol):
    def score(self, prompt: Prompt, completions: Sequence[str]) -> list[float | None]:
        """What each completion is worth, higher is better; None where the judge cannot say.
        Raises the errors of `graftwork.errors`."""

    def close(self) -> None:
        """Closes the connection that the judge opened itself, if any."""


class RemoteJudge:
    """A JudgeService (protos/graftwork/v1/judge_service.proto) at HOST:PORT."""

    def __init__(self, target: str, *, tls: bool = False, timeout: float | None = 60.0) -> None:
        """`timeout`, in seconds, is for the answers to one prompt."""
        self._target = target
        self._calls = Calls(
            Connection.of(
                target,
                tls=tls,
                ca=None,
                client_cert=None,
                client_key=None,
                timeout=timeout,
                metadata=None,
            )
        )
        self._stub = JudgeServiceStub(self._calls.channel)  # type: ignore[no-untyped-call]

    def score(self, prompt: Prompt, completions: Sequence[str]) -> list[float | None]:
        """As Judge; FailedPrecondition where there is not one reward for each completion."""
        request = requests.judge_request(prompt, completions)
        response: judge_pb.JudgeResponse = self._calls.unary(self._stub.Score, request, None)
        if len(response.rewards) != len(completions):
            raise FailedPrecondition(
                f"the judge at {self._target} gave {len(response.rewards)} rewards for "
                f"{len(completions)} completions: one for each is wanted, in order"
            )
        return [
            reward.value if reward.HasField("value") and math.isfinite(reward.value) else None
            for reward in response.rewards
        ]

    def close(self) -> None:
        self._calls.channel.close()


class AdapterJudge:
    """A reward adapter of the server that the client talks to; does not own the client."""

    def __init__(self, client: Client, adapter: str) -> None:
        self._client = client
        self._adapter = adapter

    def score(self, prompt: Prompt, completions: Sequence[str]) -> list[float | None]:
        """As Judge; FailedPrecondition for an adapter that gives no reward."""
        scores = self._client.score(prompt, completions, adapter=self._adapter).scores
        found: list[float | None] = []
        for score in scores:
            if score.classification is None or score.classification.reward is None:
                raise FailedPrecondition(
                    f'adapter "{self._adapter}" gives no reward: name one that the recipe reward '
                    "trained"
                )
            found.append(score.classification.reward)
        return found

    def close(self) -> None:
        """Nothing of its own is open."""


def open_judge(uri: str, client: Client) -> Judge:
    """The judge behind "HOST:PORT", "grpc://HOST:PORT", "grpcs://HOST:PORT" (with TLS and the
    system's authorities) or "adapter:NAME[@VERSION]", a reward adapter of `client`'s server.

    Raises InvalidArgument for any other.
    """
    if uri.startswith(_ADAPTER):
        name = uri.removeprefix(_ADAPTER)
        if name:
            return AdapterJudge(client, name)
    else:
        scheme, separator, target = uri.rpartition("://")
        if target and scheme in {"", "grpc", "grpcs"} and (scheme or not separator):
            return RemoteJudge(target, tls=scheme == "grpcs")
    raise InvalidArgument(
        f"{uri!r} is no judge: HOST:PORT, grpcs://HOST:PORT or adapter:NAME is wanted",
        field="judge",
    )
